"""The decision of one prefill step (paper 5.3).

* `partition`: the KV capacity of each side of the density order.
* `pacing`: how many tokens to prefill so that compute and memory traffic end together.
* `dual_scan`: whom to propose, from both ends (Algorithm 3).
* `forecast`: future KV use of those who run.
"""
