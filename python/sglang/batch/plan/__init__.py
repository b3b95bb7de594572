"""`sglang-batch plan`.

* `command`: file in, plan out; `arguments`: its flags.
* `prompts`: the file's requests as token ids, through SGLang's own request handlers.
* `pool`: lengths assumed for answers, prefix groups, samples of large files.
* `schedules`, `preload`: simulations, each in a process of its own; `timeline`: resource use over time.
* `advice`: recommended flags and their reasons.
* `report`, `chart`: what a user reads.
"""
