"""The requests of a batch file as token ids, and the model they are for: all that a plan starts from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sglang.srt.blend.core.cost.model_shape import ModelShape


@dataclass(frozen=True)
class PlannedModel:
    """A model as its config describes it, and the server's flags that a simulation of it takes.

    Attributes:
        config: what `simulate` takes, with the dtype that SGLang settles on and an end-of-sequence token.
        context: tokens that a request may have in all.
        server: arguments that change a schedule, as `simulate` takes them; None is SGLang's default.
    """

    path: str
    config: dict[str, Any]
    context: int
    server: dict[str, Any]

    @property
    def name(self) -> str:
        """The last part of the path, for people."""
        return Path(self.path).name

    def shape(self, tensor_parallel: int) -> ModelShape:
        """Describe one GPU's share of the model."""
        return ModelShape.from_config(
            self.config, tensor_parallel=tensor_parallel, kv_dtype=self.server["kv_cache_dtype"]
        )


@dataclass(frozen=True)
class BadLine:
    """A line that cannot be run, and why.

    Attributes:
        line: number of the line in the file, from 1.
        custom_id: None where the line has no usable one.
        message: begins with the line's number.
    """

    line: int
    custom_id: str | None
    code: str
    message: str


@dataclass(frozen=True)
class Prompts:
    """The n requests of a file, in its order; a line with several prompts or answers is several requests.

    Attributes:
        tokens: (total tokens,) all prompts, one after the other.
        offsets: (n + 1,) prompt i is tokens[offsets[i]:offsets[i + 1]].
        cap: (n,) output tokens that the request allows at most, 0 where it does not say.
        known: (n,) output tokens that the request fixes itself (ignore_eos), 0 where it does not.
        line: (n,) number of the request's line in its file, from 1; `custom_ids` has the same length.
        position: (n,) index of the line among all that are not blank, over all files.
        media: how many requests have pictures, audio or video.
        lines: how many lines are not blank, `bad` ones included.
    """

    tokens: NDArray[np.int32]
    offsets: NDArray[np.int64]
    cap: NDArray[np.int64]
    known: NDArray[np.int64]
    line: NDArray[np.int64]
    position: NDArray[np.int64]
    custom_ids: tuple[str, ...]
    media: int
    lines: int
    bad: tuple[BadLine, ...]
    model: PlannedModel
