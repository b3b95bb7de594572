"""Who attends to what in one step of the model."""

from dataclasses import dataclass, field

import torch


@dataclass(slots=True)
class AttentionPlan:
    """Who attends to what in one step; made once, used by every layer with the same head grouping.

    Attributes:
        table_rows: row of the token table per sequence, (sequences,) int64.
        lengths: cached tokens per sequence, this step's included, (sequences,) int64.
        extends: this step's tokens per sequence, 1 for a decoding one, (sequences,) int64.
        causal: a token sees itself and what is before it; otherwise its whole sequence.
        tasks, merges, partial_rows: how the compiled kernel cuts the work; None and 0 in PyTorch.
    """

    table_rows: torch.Tensor
    lengths: torch.Tensor
    extends: torch.Tensor
    causal: bool = True
    tasks: torch.Tensor | None = None
    merges: torch.Tensor | None = None
    partial_rows: int = 0
    _workspace: torch.Tensor | None = field(default=None, repr=False)

    def workspace(self, heads: int, value_dim: int) -> torch.Tensor:
        """Room for partial results (accumulator, maximum, sum), float32; shared by the layers."""
        needed = self.partial_rows * heads * (value_dim + 2)
        if self._workspace is None or self._workspace.numel() < needed:
            self._workspace = torch.empty(needed, dtype=torch.float32)
        return self._workspace[:needed]
