"""Engines of a run: SGLang in a process group of its own, which may die without taking the run along.

`supervisor` is the runner's side: it starts the group, watches it, and leaves nothing of it behind. `worker`
is the first process of the group, `channel` what the two say to each other.
"""
