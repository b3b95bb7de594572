"""Translators onto SGLang's seams: the decisions are `core`'s.

* `plugin`: the hooks on upstream, each with its reason; `installer`: puts these and the platforms' in place;
  `compatibility`: what upstream must have; `versions`: where the supported versions of it differ.
* `startup`: what a scheduler gets when it starts with the policy; `arguments`: the `--blend-*` flags.
* `parts`: one scheduler's planner and translators together.
* `policy`: the order of the waiting queue; `queue_order`: where each request stands in it.
* `prefill_adder`: who is admitted in a prefill step; `switching`: another policy decides for a while.
* `speculation`: what steps yield and what is allocated ahead, under speculative decoding.
* `pool`: upstream's requests and the planner's slots; `output_counts`: how far those are that run;
  `priorities`: the classes of those that wait.
* `replicas`: which data-parallel replica gets a request.
* `device`: the profile of this device; `device_speed`: what it does at start-up.
* `measuring`, `measured_hardware`: steps correct it; `stopwatch`, `step_work`: what a step took and did.
* `model_config`: upstream's model config as the cost model wants it; `encoder_cost`, `token_ids`: the same of
  multimodal requests and odd token ids.
* `metrics`, `prometheus`, `admission_log`: what a user can see.
* `radix/`: the RadixAttention tree with resource annotations, and its eviction.
"""
