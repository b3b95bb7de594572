"""What the runtime reads of upstream's request, of its sampling parameters and of the tree cache.

Upstream carries no types, so these protocols are the list of what must not change there. Fields named
``blend_...`` are our own, set on upstream's object.
"""

from __future__ import annotations

from array import array
from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch


class SamplingParams(Protocol):
    """How a request's answer is sampled and what ends it.

    Attributes:
        max_new_tokens: output tokens after which the answer is cut.
        min_new_tokens: output tokens before which no end-of-sequence token ends the answer.
        ignore_eos: whether end-of-sequence tokens do not end the answer.
        stop_strs, stop_regex_strs: texts and patterns that end the answer; None or empty without any.
        custom_params: what the body's field of that name has; None without it.
        json_schema, regex, ebnf, structural_tag: grammar that the answer follows; at most one is given.
    """

    max_new_tokens: int
    min_new_tokens: int
    ignore_eos: bool
    stop_strs: str | Sequence[str] | None
    stop_regex_strs: str | Sequence[str] | None
    custom_params: Mapping[str, object] | None
    json_schema: str | None
    regex: str | None
    ebnf: str | None
    structural_tag: str | None


class MediaItem(Protocol):
    """One image, video or audio of a prompt.

    Attributes:
        offsets: its runs of prompt tokens, first and last index of each; None before it was placed.
    """

    offsets: Sequence[tuple[int, int]] | None


class MultimodalInputs(Protocol):
    """The media of a prompt.

    Attributes:
        mm_items: in order of appearance.
    """

    mm_items: Sequence[MediaItem]


class FinishReason(Protocol):
    """Why an answer ended."""

    def to_json(self) -> Mapping[str, object]:
        """The reason as the API reports it; ``type`` is ``stop``, ``length`` or ``abort``."""


class HeldKV(Protocol):
    """The KV of a request that runs.

    Attributes:
        req_pool_idx: upstream's row of the request; None before it has one.
        kv_committed_len: tokens of it that hold content.
        kv_allocated_len: tokens for which it has been allocated, as many or more.
    """

    req_pool_idx: int | None
    kv_committed_len: int
    kv_allocated_len: int


class Request(Protocol):
    """A request in upstream's scheduler.

    Attributes:
        rid: the request's id.
        origin_input_ids: token ids of the prompt, images padded with ids of up to 62 bits.
        output_ids: token ids of the answer so far; kept when the request is retracted.
        full_untruncated_fill_ids: token ids whose KV the next prefill must have: the prompt, and after a
            retraction the answer so far. Valid once upstream has matched the request for this step.
        prefix_len: tokens of these that the cache holds on the device; valid like them.
        host_hit_length: tokens behind them that the host tier holds; valid like them.
        extend_end: tokens of these that have KV after this step's prefill; None before one is formed.
        extend_len: tokens that this step's prefill computes, ``extend_end - prefix_len``.
        last_node: handle of the cached node where the match ends; valid like ``prefix_len``.
        extra_key, cache_salt: namespace of the cache; two requests share a prefix only where both are equal.
        positional_embed_overrides: not None where the KV of equal tokens differs, so nothing is shared.
        priority: the user's priority class; None without one.
        multimodal_inputs: media of the prompt; None without any.
        sampling_params: how the answer is sampled and what ends it.
        finished_reason: why the answer ended; None while it has not.
        kv: what it holds.
        spec_verify_ct: steps that verified drafts for it, ever; 0 without speculative decoding.
        spec_num_correct_drafts: drafts that they accepted.
        blend_slot: the request's slot in the planner's `RequestTable`; set when the pool first sees the
            request, and kept after the slot went to another, so only `RequestPool.slot` reads it.
        blend_pool: the `RequestPool` that holds it; upstream's retraction asks it who may be preempted.
        blend_expected: output tokens expected when it was admitted last; None where the request fixes them.
        blend_verified: ``spec_num_correct_drafts`` and ``spec_verify_ct`` when they were observed last.
    """

    rid: str
    origin_input_ids: array[int]
    output_ids: array[int]
    full_untruncated_fill_ids: array[int]
    prefix_len: int
    host_hit_length: int
    extend_end: int | None
    last_node: Hashable
    extra_key: str | None
    cache_salt: str | None
    positional_embed_overrides: object | None
    priority: int | None
    multimodal_inputs: MultimodalInputs | None
    sampling_params: SamplingParams
    finished_reason: FinishReason | None
    kv: HeldKV
    spec_verify_ct: int
    spec_num_correct_drafts: int
    blend_slot: int
    blend_pool: object
    blend_expected: int | None
    blend_verified: tuple[int, int]

    @property
    def extend_len(self) -> int: ...

    def finished(self) -> bool:
        """Whether the answer has ended, by an abort too."""


class Batch(Protocol):
    """Requests that decode together.

    Attributes:
        reqs: (n,).
        seq_lens_cpu: (n,) tokens of each that have KV; None where upstream keeps them on the device alone.
        req_pool_indices_cpu: (n,) row of each.
    """

    reqs: Sequence[Request]
    seq_lens_cpu: torch.Tensor | None
    req_pool_indices_cpu: torch.Tensor


class TreeCache(Protocol):
    """The prefix cache of a scheduler, whichever class it is.

    Attributes:
        page_size: tokens of a KV page; prefixes are matched, kept and evicted in whole pages.
    """

    page_size: int

    def supports_prefix_sharing(self) -> bool:
        """Whether one request can use the KV that another computed."""

    def supports_mamba(self) -> bool:
        """Whether nodes hold recurrent states beside KV."""
