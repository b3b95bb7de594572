"""What is timed, on a clock that runs the work and tells what it is told to; a GPU's parts with stand-ins."""

from dataclasses import replace
from enum import Enum
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from benchmark.gpu import decode, gemm, green_contexts, prefill, together
from benchmark.gpu.green_contexts import NotDivided, divide
from benchmark.gpu.layer import LLAMA_3_8B, TINY, Layer
from benchmark.gpu.machine import Machine, find_machine
from benchmark.gpu.points import DECODE_PART, DIVIDED, GEMM_PART, Point

from sglang.batch.usage import BadUsage
from sglang.srt.blend.core.cost.model_shape import ModelShape

LAYER = Layer.of(TINY, 4)


class ToldClock:
    """A clock that runs the work and tells seconds from a list, one behind the other, or 1.

    Attributes:
        streams: those on which it was asked to time something.
    """

    def __init__(self, *seconds: float) -> None:
        self._seconds = list(seconds)
        self.streams: list[Any] = []

    def seconds(self, work: Any, stream: Any = None) -> float:
        work()
        self.streams.append(stream)
        return self._seconds.pop(0) if self._seconds else 1.0

    def at_once(self, first: Any, second: Any, streams: Any) -> float:
        first()
        return self.seconds(second, streams)


def cpu(clock: ToldClock, **changed: Any) -> Machine:
    return replace(find_machine("cpu"), clock=clock, **changed)


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of the inputs and weights that are multiplied."""
    seen: list[tuple[int, ...]] = []
    linear = torch.nn.functional.linear

    def noted(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        seen.append((*x.shape, *weight.shape))
        return linear(x, weight)

    monkeypatch.setattr(torch.nn.functional, "linear", noted)
    return seen


def test_the_layer_has_the_parameters_and_kv_bytes_that_the_cost_model_counts() -> None:
    shape = ModelShape.from_config({**LLAMA_3_8B, "vocab_size": 128256})
    layer = Layer.of(LLAMA_3_8B)
    assert layer.params * 32 == shape.gemm_params - shape.head_params
    assert layer.kv_bytes == shape.kv_bytes
    assert layer.shape().attention_width == shape.attention_width
    assert layer.shape(4).tensor_parallel == 4


def test_a_gemm_point_is_every_matrix_of_the_layer_once(products: list[tuple[int, ...]]) -> None:
    points = list(gemm.measure(cpu(ToldClock(3.0, 5.0)), LAYER, (1, 8)))
    assert [(point.rows, point.seconds) for point in points] == [(1, 3.0), (8, 5.0)]
    assert products[4:] == [(8, a, b, a) for a, b in LAYER.matrices]


def test_decode_pools_that_do_not_fit_are_left_out() -> None:
    machine = cpu(ToldClock(), memory=2.5 * 64 * LAYER.kv_bytes)
    points = list(decode.measure(machine, LAYER, [(1, 64), (4, 64)]))
    assert [(point.requests, point.kv_tokens) for point in points] == [(1, 64)]


def test_a_prefill_point_says_what_is_new_and_what_is_cached() -> None:
    (point,) = prefill.measure(cpu(ToldClock(2.0)), LAYER, [(16, 48)])
    assert (point.new_tokens, point.cached_tokens, point.requests, point.seconds) == (16, 48, 1, 2.0)


def test_what_runs_at_once_runs_as_often_as_the_other_lasts(products: list[tuple[int, ...]]) -> None:
    # GEMMs and attention once, both at once, then all runs of each alone.
    clock = ToldClock(0.001, 0.003, 0.009, 0.006, 0.0061)
    (point,) = together.measure(cpu(clock), LAYER, [(8, 2, 32)], least=0.004)
    assert (point.compute_times, point.memory_times) == (6, 2)
    assert (point.seconds, point.compute_alone, point.memory_alone) == (0.009, 0.006, 0.0061)
    assert len(products) == 4 * (1 + 6 + 6)


def test_neither_runs_too_often_to_be_launched_beforehand() -> None:
    assert together.as_long(1e-6, 1.0, least=0.0) == (together.MOST_TIMES, 1)


def test_the_parts_of_a_divided_gpu_are_also_timed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = ToldClock()
    machine = cpu(clock, multiprocessors=132, compute_capability=9.0)
    monkeypatch.setattr(Machine, "streams", lambda self, compute_sms, memory_sms: (compute_sms, -memory_sms))
    points = list(together.measure_divided(machine, LAYER, [(8, 2, 32)], least=0.0))
    assert [(p.kind, p.compute_sms, p.memory_sms) for p in points[:3]] == [
        (DIVIDED, 104, 28),
        (GEMM_PART, 104, 0),
        (DECODE_PART, 0, 28),
    ]
    assert len(points) == 3 * together.DIVISIONS
    assert all(sum((p.compute_sms, p.memory_sms)) == 132 for p in points if p.kind == DIVIDED)
    assert clock.streams[:5] == [104, -28, (104, -28), 104, -28]


def test_a_cpu_and_gpus_that_sglang_does_not_divide_are_not_divided() -> None:
    with pytest.raises(NotDivided, match="compute capability 6 to 9"):
        together.divisions(cpu(ToldClock(), multiprocessors=148, compute_capability=10.0))
    with pytest.raises(NotDivided, match="no SMs"):
        find_machine("cpu").streams(8, 8)


class Driver:
    """A CUDA driver with 132 SMs that divides in multiples of 8."""

    CUdevResourceType = SimpleNamespace(CU_DEV_RESOURCE_TYPE_SM="sm")
    CUgreenCtxCreate_flags = SimpleNamespace(CU_GREEN_CTX_DEFAULT_STREAM="default")
    CUstream_flags = SimpleNamespace(CU_STREAM_NON_BLOCKING="non-blocking")

    class CUresult(Enum):
        CUDA_SUCCESS = 0
        CUDA_ERROR_NOT_SUPPORTED = 801

    def __init__(self, code: str = "CUDA_SUCCESS") -> None:
        self.code = self.CUresult[code]
        self.contexts: list[tuple[int, int]] = []

    @staticmethod
    def resource(begin: int, end: int) -> SimpleNamespace:
        return SimpleNamespace(span=(begin, end), sm=SimpleNamespace(smCount=end - begin))

    def cuDeviceGet(self, device: int) -> tuple[Any, ...]:
        return self.code, device

    def cuDeviceGetDevResource(self, gpu: int, kind: str) -> tuple[Any, ...]:
        return self.code, self.resource(0, 132)

    def cuDevSmResourceSplitByCount(self, groups: int, whole: Any, flags: int, least: int) -> tuple[Any, ...]:
        begin, end = whole.span
        middle = begin + -(-least // 8) * 8
        return self.code, [self.resource(begin, middle)], 1, self.resource(middle, end)

    def cuDevResourceGenerateDesc(self, resources: list[Any], count: int) -> tuple[Any, ...]:
        return self.code, resources[0].span

    def cuGreenCtxCreate(self, span: tuple[int, int], gpu: int, flags: str) -> tuple[Any, ...]:
        self.contexts.append(span)
        return self.code, span

    def cuGreenCtxStreamCreate(self, context: Any, flags: str, priority: int) -> tuple[Any, ...]:
        return self.code, context[0] + 1


def test_the_two_parts_share_no_sm(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver()
    monkeypatch.setattr(green_contexts, "_driver", lambda: driver)
    monkeypatch.setattr(torch.cuda, "ExternalStream", lambda pointer, device: (pointer, device.index))
    assert divide(112, 20) == ((1, 0), (113, 0))
    assert driver.contexts == [(0, 112), (112, 132)]


@pytest.mark.parametrize(
    ("code", "first", "message"),
    [
        ("CUDA_SUCCESS", 110, "into 112 and 20, not 110 and 22"),
        ("CUDA_ERROR_NOT_SUPPORTED", 112, "CUDA_ERROR_NOT_SUPPORTED"),
    ],
)
def test_a_driver_that_refuses_or_divides_otherwise_is_quoted(
    monkeypatch: pytest.MonkeyPatch, code: str, first: int, message: str
) -> None:
    monkeypatch.setattr(green_contexts, "_driver", lambda: Driver(code))
    with pytest.raises(NotDivided, match=message):
        divide(first, 132 - first)


def test_a_config_that_is_no_decoders_is_refused() -> None:
    with pytest.raises(BadUsage, match="num_attention_heads"):
        Layer.of({"hidden_size": 64})


def test_a_point_is_told_in_words() -> None:
    assert str(Point("GEMM", 1.0, rows=1)) == "GEMM: 1 row"
    assert str(Point("x", 1.0, requests=4, kv_tokens=256)) == "x: 4 requests, 256 kv tokens"
