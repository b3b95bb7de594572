"""`sglang-batch plan`.

* `command`: file in, plan out; `arguments`: its flags.
* `prompt_reader`: the file's requests as token ids, through SGLang's own request handlers; `prompts`: those.
* `gpus`: how many GPUs hold the model, and how much KV with it.
* `answers`: lengths assumed for answers; `groups`: requests that share a prefix; `excerpt`: the part of a
  large file that is simulated.
* `schedules`, `preload`: simulations, each in a process of its own; `timeline`: resource use over time.
* `advice`: recommended flags and their reasons.
* `choices`: numbers of replicas on kinds of GPUs, and what they cost.
* `report`, `chart`: what a user reads.
"""
