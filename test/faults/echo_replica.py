"""The echo engine as a replica on Ray. An actor's process imports this before anything else of SGLang's."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import light_sglang  # noqa: F401  before all of SGLang

from sglang.batch.run.ray_replicas import actor

actor.BEAT_SECONDS = 0.5


class EchoReplica(actor.ReplicaActor):
    WORKER: ClassVar[tuple[str, ...]] = (str(Path(__file__).with_name("echo_worker.py")),)
