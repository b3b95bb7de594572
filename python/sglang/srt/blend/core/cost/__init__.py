"""What requests and forward passes cost (paper 4.1).

* `model_shape`: the sizes that matter, read from a Hugging Face config.
* `hardware`: peak rates of a device, from `hardware.toml` or a file; `nearest`: for a device that has none.
* `correction`: how far a device is from them; `step_fit`: found from its steps; `step_report`: for people.
* `cost_model`: compute and memory seconds of a request, and its density.
* `kv_capacity`: bytes and tokens of the KV cache beside the weights.
* `gemm_profile`: measured GEMM times (`gpu_gemm_profiles.csv`, `gpu_kernels.toml`).
* `step_time`: the parts of one forward pass, seconds.
* `pdmux`: work on a part of a GPU, as SGLang's PD multiplexing divides it; `two_streams`: its clock.
* `engines`: how an engine combines the parts: alternating, mixed, multiplexed or overlapped passes.
"""
