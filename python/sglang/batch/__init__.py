"""`sglang-batch`: batch files in, answers or a plan out.

* `cli`: the command line; `arguments`: what `run` takes.
* `records`: lines of the OpenAI Batch format; `progress`: the progress bar; `smollm2`: the embedded model.
* `run/`: answers a file with an engine in this process.
* `plan/`: what a file would take on a GPU, without one.
* `calibrate`: a hardware profile of this CPU.
"""
