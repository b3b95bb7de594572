"""The protocols of what we read upstream name what upstream has."""

from __future__ import annotations

from array import array

import pytest

from radix_pool import make_cache, server_arguments
from sglang.srt.blend.runtime import request as protocols
from sglang.srt.managers.schedule_batch import (
    FINISH_ABORT,
    Modality,
    MultimodalDataItem,
    MultimodalInputs,
    Req,
)
from sglang.srt.sampling.sampling_params import SamplingParams


def members(protocol: type) -> set[str]:
    """Attributes and methods that a protocol lists, but for what we set ourselves."""
    methods = {name for name in vars(protocol) if not name.startswith("_")}
    return {name for name in methods | set(protocol.__annotations__) if not name.startswith("blend_")}


def upstream() -> dict[type, object]:
    """One object of upstream for each protocol."""
    with server_arguments():
        request = Req("a", "", array("q", [1, 2]), SamplingParams())
        cache = make_cache()
    item = MultimodalDataItem(modality=Modality.IMAGE)
    return {
        protocols.Request: request,
        protocols.SamplingParams: request.sampling_params,
        protocols.FinishReason: FINISH_ABORT(),
        protocols.MediaItem: item,
        protocols.MultimodalInputs: MultimodalInputs(mm_items=[item]),
        protocols.TreeCache: cache,
    }


@pytest.mark.parametrize("protocol", upstream(), ids=lambda protocol: protocol.__name__)
def test_upstream_has_every_member_of_the_protocol(protocol: type) -> None:
    found = upstream()[protocol]
    known = set(dir(found))
    assert members(protocol) <= known, members(protocol) - known
