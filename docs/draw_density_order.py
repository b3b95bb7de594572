"""Draw docs/density-order.png: leaf densities of a synthetic pool before and after sort and split.

pip install matplotlib
python docs/draw_density_order.py
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "test"))
from pools import llama_on_a100, mixed_pool
from sglang.srt.blend.core.order.ordering import order_by_density
from sglang.srt.blend.core.pool.prefix_tree import densities

REQUESTS, SEED = 4000, 1


def main() -> None:
    cost, tree = llama_on_a100(), mixed_pool(SEED, REQUESTS).tree()
    sorted_only = order_by_density(tree, cost, split=False)
    split = order_by_density(tree, cost)
    panels = [
        ("depth-first order", densities(tree.comp - tree.saved, tree.mem), 1.0),
        ("children sorted by density", sorted_only.density, 1.0),
        (
            f"and {split.splits} nodes split",
            split.density,
            split.shared_tokens / tree.shared_tokens,
        ),
    ]
    figure, axes = plt.subplots(1, 3, figsize=(10, 2.8), sharey=True, constrained_layout=True)
    for axis, (title, density, sharing) in zip(axes, panels, strict=True):
        axis.scatter(np.arange(REQUESTS), density, s=1.5, c="#30638e", linewidths=0)
        axis.set(yscale="log", title=f"{title}\nsharing kept: {sharing:.1%}", xlabel="request")
        axis.axhline(1.0, color="#d1495b", linewidth=0.7)
        axis.title.set_fontsize(9)
    axes[0].set_ylabel("density Comp / Mem")
    figure.savefig(Path(__file__).with_name("density-order.png"), dpi=100)


if __name__ == "__main__":
    main()
