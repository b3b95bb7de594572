"""Requests go to running servers instead of an engine of the run's own.

* `arguments`: the flags.
* `window`: how many requests a server has at a time.
* `transport`: what is needed of whoever answers, a server or another.
* `client`: one server over HTTP: what it is, and one request to its end.
* `prompt`: of a request, what the planner needs: token ids or stand-ins, and the answer's length.
* `queue`: requests in the planner's order.
* `dispatcher`: which request goes to which server, and when.
* `dispatched`: a dispatcher as the engine of a job.
* `engine`: the same with servers over HTTP.
* `command`: servers asked what they are, then the run.

Nothing here imports torch or SGLang's engine.
"""
