"""PD multiplexing on the simulated GPU: SGLang's own loop over two streams that only tell time.

`event_loop_pdmux` of the installed SGLang runs as it is. It gets streams, events and SM divisions of ours,
and `MultiplexedDevice` takes the batches that it launches.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch

from sglang.srt.blend.core.cost.pdmux import Load, PdmuxConfig, PdmuxTimes
from sglang.srt.blend.core.cost.step_time import StepTimeModel, StepWork
from sglang.srt.blend.core.cost.two_streams import Stream, TwoStreams
from sglang.srt.blend.runtime.step_work import Work, batch_work
from sglang.srt.hardware_backend.simulated_gpu.device import SimulatedDevice
from sglang.srt.managers.utils import GenerationBatchResult

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import ScheduleBatch
    from sglang.srt.managers.scheduler import Scheduler

_STANDSTILL = 1000
"""Idle turns after which no batch will come: nothing changes between them."""


class MultiplexedDevice(SimulatedDevice):
    """A GPU whose SMs are divided between a prefill batch and decode steps.

    A row of the log is a turn of the loop: its decode step, and the part of prefill that ran meanwhile.

    Args:
        model: times of forward passes on the whole GPU.
        config: the divisions; see `PdmuxConfig`.
        others: as of `SimulatedDevice`.

    Raises:
        ValueError: SGLang cannot divide this GPU.
    """

    def __init__(self, model: StepTimeModel, config: PdmuxConfig, **others: Any) -> None:
        super().__init__(model, "pdmux", **others)
        self.config = config
        self._times = PdmuxTimes(model)
        self._streams = TwoStreams(self._times)
        whole = self._times.total
        divided = [(division.prefill, division.decode) for division in config.divisions]
        self.sm_counts = [(whole, 0), *divided, (0, whole)]
        self._group = 0
        self._begin = 0.0  # of the turn
        self._decode: Work = {}  # of the turn
        self._prefill: Work = {}  # of the batch in flight
        self._requests = 0

    def begin_turn(self) -> None:
        """The CPU handles results and prepares what comes next; the streams go on."""
        self._log_turn()
        self._streams.pass_time(self._times.turn)

    def divide(self, group: int) -> None:
        """Use one of `sm_counts` from here on."""
        self._group = group

    def forward(self, batch: ScheduleBatch) -> GenerationBatchResult:
        """Launch a decode step and return a token for each of its rows."""
        if batch.forward_mode.is_extend():
            raise RuntimeError(
                "the pdmux engine takes prefill by layers: `simulate` and `sglang-batch plan` run it, "
                "programs and servers on the simulated GPU run alternating, mixed or overlapped"
            )
        self._decode, self._requests = batch_work(batch), len(batch.reqs)
        self._streams.launch(Stream.DECODE, self._load(self._decode, self.sm_counts[self._group][1]))
        tokens = [self._next_token(req, prefilled=False) for req in batch.reqs]
        return _result(tokens)

    def forward_split_prefill(self, batch: ScheduleBatch) -> GenerationBatchResult:
        """Launch some layers of a prefill batch; tokens come with the last of them."""
        layers, all_layers = batch.split_forward_count, self.model.shape.layers
        if batch.split_index == 0:
            self._prefill = batch_work(batch)
        part = layers / all_layers
        whole = self._load(self._prefill, self.sm_counts[self._group][0])
        self._streams.launch(Stream.PREFILL, Load(part * whole.seconds, whole.bus), part)
        self._streams.pass_time(layers * self._times.launch)
        if batch.split_index + layers < all_layers:
            return _result(None)
        return _result([self._next_token(req, prefilled=True) for req in batch.reqs])

    def wait(self, stream: Stream) -> None:
        """Let the CPU wait for a stream."""
        self._streams.wait(stream)
        self.clock = self._streams.now

    def prefill_has_ended(self) -> bool:
        """Whether the layers launched so far are done; a loop with nothing to decode asks until they are."""
        if not self._decode:
            self.wait(Stream.PREFILL)
        return not self._streams.busy(Stream.PREFILL)

    def _load(self, work: Work, sms: int) -> Load:
        if sms <= 0:
            raise RuntimeError("pdmux: work was launched on a stream without SMs")
        return self._times.load(StepWork(**work), sms)

    def _log_turn(self) -> None:
        done = self._streams.done(Stream.PREFILL)
        work = {name: done * amount for name, amount in self._prefill.items()} if done else {}
        for name, amount in self._decode.items():
            work[name] = work.get(name, 0.0) + amount
        if work:
            self._log(self._streams.now - self._begin, work, self._requests)
            self._begin = self._streams.now
        self._decode, self._requests = {}, 0


def _result(tokens: list[int] | None) -> GenerationBatchResult:
    ids = None if tokens is None else torch.tensor(tokens, dtype=torch.int64)
    return GenerationBatchResult(next_token_ids=ids, can_run_cuda_graph=False)


class _Stream:
    """What the loop sees of one of the device's streams."""

    def __init__(self, device: MultiplexedDevice, stream: Stream) -> None:
        self._device, self._stream = device, stream

    def synchronize(self) -> None:
        self._device.wait(self._stream)

    def record_event(self) -> SimpleNamespace:
        return SimpleNamespace(query=self._device.prefill_has_ended)


class _Drained(Exception):
    """There is nothing left to do."""


def run_to_the_end(scheduler: Scheduler, device: MultiplexedDevice) -> None:
    """Run upstream's loop until nothing is left, or nothing moves any more."""
    from sglang.srt.multiplex import multiplexing_mixin

    idle = 0

    def on_idle() -> None:
        nonlocal idle
        idle += 1
        if scheduler.is_fully_idle() or idle > _STANDSTILL:
            raise _Drained

    def ingest_requests() -> None:
        device.begin_turn()

    pair = _Stream(device, Stream.PREFILL), _Stream(device, Stream.DECODE)
    scheduler.split_prefill_batch = None
    scheduler.pdmux_config = SimpleNamespace(
        manual_divisions=[(d.prefill, d.decode, d.from_rows) for d in device.config.divisions],
        split_forward_token_budget=device.config.split_tokens,
    )
    scheduler.sm_counts = device.sm_counts
    scheduler.stream_groups = [pair] * len(device.sm_counts)
    scheduler.real_sm_group_num = len(device.sm_counts)
    scheduler.enable_pdmux = True
    scheduler.ingest_requests, scheduler.on_idle = ingest_requests, on_idle
    scheduler.tp_worker.model_runner.update_decode_attn_backend = device.divide
    with _streams_of(multiplexing_mixin, scheduler.stream_groups), contextlib.suppress(_Drained):
        scheduler.event_loop_pdmux()


@contextlib.contextmanager
def _streams_of(loop: Any, groups: list[tuple[_Stream, _Stream]]) -> Iterator[None]:
    """Give the loop's module streams that need no GPU."""
    from sglang.srt.multiplex import pdmux_context

    def inside(*_: Any) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    cuda = SimpleNamespace(stream=inside, empty_cache=lambda: None)
    names = {
        "torch": SimpleNamespace(cuda=cuda, ones=torch.ones, zeros=torch.zeros, int32=torch.int32),
        "pdmux_prefill_tp_group": inside,
    }
    before = {name: getattr(loop, name) for name in names}
    pdmux_context.STREAM_GROUPS, pdmux_context.CURRENT_STREAM_IDX = groups, 0
    for name, replacement in names.items():
        setattr(loop, name, replacement)
    try:
        yield
    finally:
        for name, original in before.items():
            setattr(loop, name, original)
