"""What a GPU takes for the kernels of a decoder, and how far the step-time model is from it.

* `__main__`: the command line; `check`: real servers under each policy (`make gpu-check`).
* `machine`: the GPU; `timing`: its clock; `green_contexts`: its SMs, divided.
* `layer`: the decoder layer that is measured; `points`: measurements, and their file.
* `gemm`, `decode` (kernel: `paged_decode`), `prefill`, `together`, `all_reduce`: the kinds of measurement.
* `error`: the model against measurements; `profile`: the hardware profile that fits them.

PyTorch, Triton and NumPy are all that a measurement needs, with `python` and the repository's root on
PYTHONPATH; only `check` starts SGLang.
"""
