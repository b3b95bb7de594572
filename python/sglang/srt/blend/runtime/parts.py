"""What a scheduler that runs the policy has besides upstream's parts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sglang.srt.blend.core.planner import Planner
from sglang.srt.blend.core.step.outlook import PoolClock
from sglang.srt.blend.runtime.admission_log import AdmissionLog
from sglang.srt.blend.runtime.measured_hardware import MeasuredHardware
from sglang.srt.blend.runtime.policy import BlendSchedulePolicy
from sglang.srt.blend.runtime.pool import RequestPool
from sglang.srt.blend.runtime.prometheus import PrometheusGauges
from sglang.srt.blend.runtime.stopwatch import Stopwatch

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_policy import PrefillAdder


@dataclass
class BlendParts:
    """One scheduler's planner and what translates between it and upstream.

    Attributes:
        adder_class: the prefill adder bound to these parts.
        watched_adder_class: the same for another policy, which the planner watches.
        annotated: whether cached prefixes carry annotations.
        clock: models how long the pool takes; None where step times cannot be modelled.
        measured: corrects the hardware profile by step times; None where that is off or impossible.
        stopwatch: takes those times.
        watches: the policy of upstream's that decides now; None while blend does. See `switching`.
    """

    planner: Planner
    pool: RequestPool
    policy: BlendSchedulePolicy
    log: AdmissionLog
    gauges: PrometheusGauges | None
    adder_class: type[PrefillAdder]
    watched_adder_class: type[PrefillAdder]
    annotated: bool
    clock: PoolClock | None
    measured: MeasuredHardware | None
    stopwatch: Stopwatch | None
    watches: str | None = None
