"""KV pools that keep the books and store nothing."""

from __future__ import annotations

from typing import Any

import torch

from sglang.srt.mem_cache.memory_pool import DSATokenToKVPool, MLATokenToKVPool, NoOpMHATokenToKVPool


class SimulatedMLATokenToKVPool(MLATokenToKVPool):
    """Latent KV pool of full logical size over one page of storage."""

    def _create_buffers(self) -> None:
        self.kv_buffer = [
            torch.zeros((self.page_size, 1, self.kv_cache_dim), dtype=self.store_dtype, device=self.device)
            for _ in range(self.layer_num)
        ]

    def _finalize_allocation_log(self, num_tokens: int) -> None:
        self.mem_usage = 0.0

    def get_kv_size_bytes(self) -> int:
        return 0


class UnsupportedDSATokenToKVPool(DSATokenToKVPool):
    """Upstream asks for the classes of all kinds at start-up; only building this one is refused."""

    def __init__(self, *_: Any, **__: Any) -> None:
        raise NotImplementedError("the simulated GPU has no KV pool for DSA models; use MHA or MLA models")


_CLASSES = {
    "mha": NoOpMHATokenToKVPool,
    "mla": SimulatedMLATokenToKVPool,
    "dsa": UnsupportedDSATokenToKVPool,
}


def pool_class(kind: str) -> type | None:
    """The pool for upstream's kind of attention."""
    return _CLASSES.get(kind)
