"""Data-parallel replicas: the controller of ``--dp-size`` sends a request where its prefix is.

A pool that is held back by the pool barrier passes the controller before the word to go on does. So the
controller keeps what arrives in between, divides it when that word comes, and sends each part to its replica
ahead of the word. Whatever comes later is routed as it arrives. Upstream's own dispatch does the sending: it
honours ``routed_dp_rank``, which is all that is set here.
"""

from __future__ import annotations

import logging
import time
import zlib
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sglang.srt.blend.core.cost.cost_model import CostModel
from sglang.srt.blend.core.cost.hardware import Hardware, load_hardware
from sglang.srt.blend.core.cost.model_shape import ModelShape
from sglang.srt.blend.core.cost.nearest import Device, hardware_of
from sglang.srt.blend.core.order.replicas import Replicas
from sglang.srt.blend.core.pool.output_length import OPEN_TOKENS, prior_tokens
from sglang.srt.blend.runtime.arguments import POLICY, get_options, why_not
from sglang.srt.blend.runtime.model_config import config_dict
from sglang.srt.blend.runtime.pool import expected_output, known_output
from sglang.srt.blend.runtime.token_ids import fold
from sglang.srt.managers.io_struct import AbortReq, ContinueGenerationReqInput, PauseGenerationReqInput

logger = logging.getLogger(__name__)

LOOK = 0.02
"""Seconds between two looks at what the replicas say they have."""

ARRIVAL = 1.0
"""Seconds for which a request counts although its replica does not: it reads its socket between steps."""

Send = Callable[[Any], object]
"""Upstream's dispatch of a request, which honours `routed_dp_rank`."""

LIKE_ANY = "h100"
"""Profile for a GPU without one: a division balances compute and memory one by one, whatever the rates."""


def attach(controller: Any) -> None:
    """Give a controller a router, or say why it gets none."""
    controller.blend_router = None
    server_args = controller.server_args
    if server_args.schedule_policy != POLICY:
        return
    if (reason := why_not(server_args)) is not None:
        logger.warning("blend: requests are not kept with their prefixes: %s", reason)
        return
    cost = _cost_model(server_args)
    _compile(cost)
    controller.blend_router = Router(controller, Replicas(cost, server_args.dp_size))


class Router:
    """Chooses the replica of every request that passes a controller.

    Args:
        controller: upstream's `DataParallelController`.
        clock: seconds since the epoch, as the replicas' reports have them.
    """

    def __init__(
        self, controller: Any, replicas: Replicas, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._controller = controller
        self._replicas = replicas
        self._clock = clock
        self._holding = False
        self._held: list[tuple[Send, Any]] = []
        self._sent: list[deque[float]] = [deque() for _ in replicas.loads]
        self._looked = 0.0

    def dispatch(self, send: Send, request: Any) -> None:
        """Send a request to its replica, or keep it until its pool is complete."""
        if request.routed_dp_rank is None and self._holding:
            self._held.append((send, request))
            return
        self._look()
        tokens, output, namespace = _tokens(request), _output(request), _namespace(request)
        if request.routed_dp_rank is None:
            request.routed_dp_rank = self._replicas.join(
                tokens, output, namespace=namespace, among=self._among()
            )
        elif request.routed_dp_rank in range(len(self._sent)):
            self._replicas.took(request.routed_dp_rank, tokens, output, namespace=namespace)
        self._send(send, request)

    def control(self, message: Any) -> None:
        """Hear a message that goes to all replicas next: a pool begins, or it is complete.

        To abort a request that is kept here its replica must have it, so that ends the keeping of all so far.
        """
        if isinstance(message, PauseGenerationReqInput):
            self._holding = True
        elif isinstance(message, ContinueGenerationReqInput):
            self._holding = False
            self._deal()
        elif isinstance(message, AbortReq):
            self._deal()

    def _deal(self) -> None:
        """Divide what is kept, and send each request to its replica."""
        held, self._held = self._held, []
        if not held:
            return
        self._look()
        prompts = [_tokens(request) for _, request in held]
        owner, shards = self._replicas.deal(
            np.concatenate(prompts),
            np.concatenate([[0], np.cumsum([len(tokens) for tokens in prompts])]).astype(np.int64),
            np.array([_output(request) for _, request in held], np.int64),
            namespace=np.array([_namespace(request) for _, request in held], np.int32),
            among=self._among(),
        )
        logger.info(
            "blend: %d requests for %d replicas: %.2f%% of the sharing kept, the largest part %.2f%% above"
            " the mean",
            len(held),
            len(shards.parts),
            100.0 * shards.sharing_kept,
            100.0 * shards.imbalance,
        )
        for (send, request), replica in zip(held, owner.tolist(), strict=True):
            request.routed_dp_rank = replica
            self._send(send, request)

    def _send(self, send: Send, request: Any) -> None:
        if request.routed_dp_rank in range(len(self._sent)):
            self._sent[request.routed_dp_rank].append(self._clock())
        send(request)

    def _among(self) -> list[int]:
        """The replicas that may get requests; all if there is none, and upstream says so."""
        controller = self._controller
        living = [replica for replica in controller._active_workers if controller.status[replica]]
        return living or list(range(len(self._sent)))

    def _look(self) -> None:
        """Hear from the replicas how many requests they have; what was sent since counts, too."""
        now = self._clock()
        if now - self._looked < LOOK:
            return
        self._looked = now
        for report in self._controller.load_snapshot_reader.read_all():
            if report.timestamp == 0.0 or report.dp_rank not in range(len(self._sent)):
                continue  # nothing was reported yet
            sent = self._sent[report.dp_rank]
            while sent and sent[0] < report.timestamp - ARRIVAL:
                sent.popleft()
            known = report.num_running_reqs + report.num_waiting_reqs
            self._replicas.has(report.dp_rank, max(known, len(sent)))


def _namespace(request: Any) -> int:
    """Number what a prefix is shared within: adapter, key, and media, whose tokens are all alike here."""
    media = request.mm_inputs.mm_items if request.mm_inputs is not None else ()
    # Media without a hash are like no others.
    hashes = [request.rid if item.hash is None else item.hash for item in media]
    key = (request.lora_id, getattr(request, "extra_key", None), *hashes)
    return zlib.crc32(repr(key).encode()) & 0x7FFFFFFF if any(key) else 0


def _tokens(request: Any) -> NDArray[np.int32]:
    """Token ids of the prompt; none of a prompt that is embeddings."""
    return fold(np.asarray(request.input_ids if request.input_ids is not None else (), np.int64))


def _output(request: Any) -> int:
    """Output tokens, known, expected by the sender, or assumed."""
    expected, longest = expected_output(request), request.sampling_params.max_new_tokens
    if longest is None:  # up to the end of the context
        return expected or OPEN_TOKENS
    return known_output(request) or min(expected or prior_tokens(longest).item(), longest)


def _cost_model(server_args: Any) -> CostModel:
    from sglang.srt.arg_groups.overrides import resolved_view
    from sglang.srt.configs.model_config import ModelConfig

    config = config_dict(ModelConfig.from_server_args(server_args))
    shape = ModelShape.from_config(config, tensor_parallel=server_args.tp_size)
    return CostModel(shape, _hardware(get_options(server_args).hardware, resolved_view(server_args).device))


def _hardware(name: str, device: str) -> Hardware:
    """Find a profile without opening the device, which would take memory from a replica."""
    if name != "auto":
        return load_hardware(name)
    if str(device).startswith("cpu"):
        return load_hardware("cpu")
    try:
        import pynvml

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        reported, memory = pynvml.nvmlDeviceGetName(handle), pynvml.nvmlDeviceGetMemoryInfo(handle).total
        name = reported.decode() if isinstance(reported, bytes) else reported
        return hardware_of(Device(name, memory=float(memory)))[0]
    except Exception as error:  # the library's errors have no common class where it is missing
        logger.info("blend: the pool is divided as for %s: %s", LIKE_ANY, error)
        return load_hardware(LIKE_ANY)


def _compile(cost: CostModel) -> None:
    """Divide a tiny pool, so that what divides is compiled before the first request needs it."""
    tokens, offsets = np.array([1, 2, 1, 3], np.int32), np.array([0, 2, 4], np.int64)
    Replicas(cost, 2).deal(tokens, offsets, np.array([1, 1]))
