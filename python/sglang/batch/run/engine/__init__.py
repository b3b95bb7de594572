"""Engines of a run: SGLang in a process group of its own, which may die without taking the run along.

* `protocol`: what a run wants of an engine; `restarts`: how often it is started again, and when.
* `supervisor` is the runner's side: it starts the group, watches it, and leaves nothing of it behind
  (`leftovers`). `worker` is the first process of the group, `channel` what the two say to each other,
  `signals` what the worker ignores.
* `in_process`: SGLang in the worker; `flight_recorder`: the requests that its scheduler was working on.
"""
