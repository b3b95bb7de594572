"""`sglang-batch calibrate`.

Density compares two rates, FLOP/s and bytes/s (paper 4.1). For accelerators they come from datasheets
(`core/cost/hardware.toml`); a CPU's depend on instruction sets, cores and memory channels that no datasheet
combines, so they are timed.

* `command`: the model's config in, the profile out.
* `measure`: what is timed, and how.
* `calibration`: what was measured, as a table and as a profile.
"""
