"""Replicas of the engine on a Ray cluster, among which one run's requests are shared.

* `arguments`: the flags.
* `wire`: what driver and actors send each other: many requests, or many answers, at a time.
* `actor`: one replica where Ray has placed it: a supervisor with its engine.
* `replica`: the driver's end of one, from its first actor to its last.
* `cluster`: Ray itself, which nothing else here imports.
* `engine`: all replicas as the engine of a job.
* `command`: `sglang-batch run --ray`.

The driver is the run: it has the journal, the plan and the `remote.dispatcher`, to which a replica is a
server.
"""
