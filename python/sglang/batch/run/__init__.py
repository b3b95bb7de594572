"""`sglang-batch run`.

* `command`: engine up, job through, report out, engine down.
* `job`: the life of a batch: lines in, records out.
* `in_process`: SGLang's engine in this process and its own request handlers.
* `barrier`: nothing is admitted before the first pool is complete.
* `state_poller`, `blend_history`: the scheduler's numbers over time.
* `report`, `picture`: what a user reads at the end.
"""
