"""Sampling that looks at the likely tokens only, on upstream's sampler.

Upstream sorts the whole vocabulary for every row whenever one request of the batch uses top-p, and
``torch.multinomial`` draws a random number for every token. On a CPU both take longer than the rest of a
small model's step. What is drawn here has the same distribution; requests with a seed, and those that ask
for their sampling mask, take upstream's path.
"""

import torch

from sglang.srt.layers.sampler import Sampler
from sglang.srt.sampling.sampling_batch_info import SamplingBatchInfo

# How many of the most likely tokens are tried, one after the other, before the vocabulary is sorted.
CANDIDATES = (256, 4096)

# Columns whose sum is looked at first.
_BLOCK = 256


class PortableSampler(Sampler):
    """Upstream's sampler but for how a token is drawn from probabilities."""

    def _sample_from_probs(
        self,
        probs: torch.Tensor,
        sampling_info: SamplingBatchInfo,
        positions: torch.Tensor,
        simple_sampling_case: bool,
    ) -> tuple[torch.Tensor, object]:
        if sampling_info.sampling_seed is not None or sampling_info.sampling_mask_batch_indices is not None:
            result: tuple[torch.Tensor, object] = super()._sample_from_probs(
                probs, sampling_info, positions, simple_sampling_case
            )
            return result
        if simple_sampling_case:
            return draw(probs), None
        filtered, tokens = filter_probs(
            probs, sampling_info.top_ks, sampling_info.top_ps, sampling_info.min_ps
        )
        return tokens.gather(1, draw(filtered).long().unsqueeze(1)).squeeze(1).to(torch.int32), None


def filter_probs(
    probs: torch.Tensor,
    top_ks: torch.Tensor,
    top_ps: torch.Tensor,
    min_ps: torch.Tensor,
    candidates: tuple[int, ...] = CANDIDATES,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What top-k, top-p and min-p leave of each row.

    Args:
        probs: (rows, vocabulary), rows sum to 1.
        top_ks, top_ps, min_ps: (rows,); a token stays if it is among the first `top_k`, those before it sum
            to no more than `top_p`, and it has at least `min_p` times the probability of the first.
        candidates: how many of the most likely tokens to try, until no row needs more.

    Returns:
        Weights, most likely token first and zero where filtered out, and the tokens they belong to; both
        (rows, n).
    """
    for count in candidates:
        if count >= probs.shape[1]:
            continue
        weights, tokens = torch.topk(probs, count, dim=1)
        before = weights.cumsum(1) - weights
        # Of a row that is not cut within the candidates, something may be missing.
        complete = (top_ks <= count) | (before[:, -1] > top_ps) | (weights[:, -1] < weights[:, 0] * min_ps)
        if complete.all():
            break
    else:
        weights, tokens = probs.sort(dim=1, descending=True)
        before = weights.cumsum(1) - weights
    rank = torch.arange(weights.shape[1], device=weights.device)
    out = (rank >= top_ks.unsqueeze(1)) | (before > top_ps.unsqueeze(1))
    out |= weights < weights[:, :1] * min_ps.unsqueeze(1)
    return weights.masked_fill(out, 0.0), tokens


def draw(weights: torch.Tensor) -> torch.Tensor:
    """One column of each row, with a probability in proportion to its weight; (rows,) int32.

    First a block of columns by its sum, then a column of it: the weights are read once, and two random
    numbers per row do.
    """
    columns = weights.shape[1]
    if columns <= _BLOCK:
        return _draw_few(weights)
    whole = columns - columns % _BLOCK
    sums = weights[:, :whole].unflatten(1, (-1, _BLOCK)).sum(2)
    if whole < columns:
        sums = torch.cat((sums, weights[:, whole:].sum(1, keepdim=True)), 1)
    start = _draw_few(sums) * _BLOCK
    members = start.long().unsqueeze(1) + torch.arange(_BLOCK, device=weights.device)
    inside = weights.gather(1, members.clamp(max=columns - 1)).masked_fill_(members >= columns, 0.0)
    return start + _draw_few(inside)


def _draw_few(weights: torch.Tensor) -> torch.Tensor:
    """``draw`` by one running sum: float64, for float32 loses what is small beside all that is before it."""
    sums = weights.cumsum(1, dtype=torch.float64)
    # In (0, total]: a column of weight zero adds nothing to the sum and is never the first to reach it.
    points = (1.0 - torch.rand(weights.shape[0], 1, dtype=torch.float64, device=weights.device)) * sums[
        :, -1:
    ]
    # Rows of NaN reach nothing; upstream says what becomes of them, no token number may lie outside.
    return torch.searchsorted(sums, points).squeeze(1).clamp_(max=weights.shape[1] - 1).to(torch.int32)
