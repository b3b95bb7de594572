"""The order of a whole pool (paper 5.1, 5.2 and 5.5).

* `samples`: requests run first to learn output lengths.
* `ordering`: layer-wise sort and conditional node splits (Algorithms 1 and 2).
* `begun`: subtrees whose prefix is in use, which go first at their end of the order.
* `plan`: a window of requests in density order; the planner's options.
* `sharding`: a pool cut into equal parts for data-parallel replicas; `replicas`: who gets what comes later.
* `stealing`: what a replica that ends early takes from a late one.
"""
