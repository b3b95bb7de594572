"""The pending requests as arrays (paper 5.1).

* `token_store`: prompts by slot.
* `request_table`: everything else that is known of a request: the one owner of request state.
* `sorted_pool`: the pool's sorted prompts through arrivals and departures.
* `sorted_prompts`: prompts in lexicographic order and their common prefixes; `prefix_sort` has the kernels.
* `prefix_tree`: the resource-aware prefix tree over sorted prompts.
* `life_table`: what shares of answers that go on let expect; `output_length`: such tables, learned by group.
* `pending_index`: what a cached prefix is still needed for, and when.
* `workload`: a whole pool with its answers' lengths, for simulations and planning.
"""
