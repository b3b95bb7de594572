"""The decision of one prefill step (paper 5.3).

* `step`: who is considered, and for each whether it begins now; `verdict`: what can be decided, and why.
* `step_maker`: begins steps: what to prefill, whom to propose; `step_memory`: what one leaves to the next.
* `dual_scan`: whom to propose, from both ends (Algorithm 3); `scanner`: the cursors and what each side uses.
* `partition`: the KV capacity of each side of the density order.
* `pacing`: how many tokens to prefill so that compute and memory traffic end together; `fill`: how full the
  cache is of what requests hold for themselves, measured.
* `room`: whether one more request fits until its end; `look_ahead`: makes it; `forecast`: future KV use of
  those who run.
* `speculation`: how many tokens a step yields for each who runs.
* `leaders`: a prefix that several requests share is computed by one of them.
* `ledger`: who waits and who runs: every change of a request's state.
"""
