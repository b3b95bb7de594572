"""`sglang-batch run`.

* `command`: SGLang up, job through, report out, SGLang down; `arguments`: the flags.
* `job`: the life of a batch: lines in, records out.
* `in_process`: SGLang in this process.
* `barrier`: nothing is admitted before the first pool is complete.
* `state_poller`: polls the scheduler's state during the run; `blend_history`: what that says of a run.
* `report`, `picture`: what a user reads at the end; `tally`: what it counts.

Parts of a run that survives its own death (docs/durable-run.md); `command` does not use them yet:

* `line_state`: the states of a line. `record_log`: records with a committed length, torn tails cut.
* `journal`: a row per line, in SQLite. `committer`: writes answers in groups and pauses on a full disk.
"""
