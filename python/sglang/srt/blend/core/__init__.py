"""The scheduling algorithm, free of torch and SGLang: arrays in, admission order out.

Packages, each importing only those before it:

* `cost`: what a request and a forward pass cost: model shape, hardware, densities, step times.
* `pool`: the pending requests as arrays: prompts, request table, prefix tree, next use of cached prefixes.
* `step`: the decision of one prefill step: both scanners, the partition, pacing, the forecast of KV use.
* `order`: the order of a whole pool: output lengths, density order with node splits, data-parallel parts.

`planner.py` is the one entry that holds them together; `warm_up.py` compiles the Numba kernels.
"""
