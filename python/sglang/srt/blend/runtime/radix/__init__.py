"""SGLang's RadixAttention tree with resource annotations (paper A.2).

* `tree_core`, `node`: a tree core whose nodes know their range of the sorted prompts.
* `annotations`: what a node is still needed for: pending requests, compute saved, next use.
* `heaviest`: the annotations that a user sees.
* `eviction`: which node leaves the cache first.
* `cache`: registers and selects all of it.
* `namespaces`: which prompts may share.
* `sharing`: KV counted once, shared prefixes computed once per step.
"""
