"""Corrects what the planner takes the hardware for by the times of the scheduler's own steps.

Clocks differ between tensor-parallel ranks, and their decisions must not. So the first rank's steps decide
for all: at step counts that all ranks reach alike it fits a `Correction` and tells the others, and between
those nothing changes. While the profile explains the steps nothing is changed at all.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from sglang.srt.blend.core.cost.correction import AS_TOLD, Correction
from sglang.srt.blend.core.cost.step_fit import WINDOW, StepFit, StepTimes
from sglang.srt.blend.core.cost.step_report import StepReport
from sglang.srt.blend.runtime.step_work import Work

logger = logging.getLogger(__name__)

_WARM_UP = 4
"""First steps, which compile kernels or fill caches, and are not looked at."""

_FIRST = 16
"""Steps after which the profile is judged; then after twice as many, and in the end every `WINDOW`."""

_SELDOM = 4
"""Windows between two judgements in the end, if no correction is better: looking for one takes 20 ms."""

_TOLERANCE = 0.05
"""Mean relative error up to which a profile is right."""

_BETTER = 0.75
"""A correction with more than this part of the error of the one before is not worth a new plan."""

Agree = Callable[[Correction], Correction]
"""Tells all ranks what the first one has decided; each gets that."""

Adopt = Callable[[StepFit, Correction], None]
"""Puts a correction into effect."""


class MeasuredHardware:
    """Judges a profile by steps, and corrects it between plans.

    Args:
        fit: of the profile.
        correction: that holds at first, as measured at start-up.
        adopt: puts another one into effect, between two steps.
        agree: see `Agree`.
        decides: whether this rank's steps count; the others only count them.

    Attributes:
        correction: the one in effect.
        seconds, predicted_seconds: of the steps that have been summed up, as in `StepReport`.
    """

    def __init__(
        self,
        fit: StepFit,
        *,
        adopt: Adopt,
        agree: Agree = lambda mine: mine,
        decides: bool = True,
        correction: Correction = AS_TOLD,
    ) -> None:
        self.correction = self._prior = correction
        self._fit, self._adopt, self._agree, self._decides = fit, adopt, agree, decides
        self._times = StepTimes()
        self._seen, self._next, self._wait = 0, _WARM_UP + _FIRST, WINDOW
        self.seconds = self.predicted_seconds = 0.0
        self._pool_over = False
        self._summed = self._reported = 0  # steps

    def add(self, work: Work, seconds: float) -> None:
        """A step has ended; all ranks are told of the same steps."""
        self._seen += 1
        if self._seen <= _WARM_UP or not self._decides or seconds <= 0.0:
            return
        self._times.add(work, seconds)
        if self._times.count - self._summed >= WINDOW:
            self._sum_up()

    def correct(self) -> None:
        """Before a step begins: judge the profile if it is time, and correct it if it is wrong."""
        if self._pool_over:
            self._say_how_well()
        if self._seen < self._next:
            return
        found = self._agree(self._decide() if self._decides else self.correction)
        in_vain = found == self.correction
        self._wait = min(2 * self._wait, _SELDOM * WINDOW) if in_vain else WINDOW
        self._next = self._seen + min(self._seen, self._wait)
        if in_vain:
            return
        self._sum_up()
        self.correction = found
        self._adopt(self._fit, found)
        logger.info("blend: %s", self.report().line)

    def report(self) -> StepReport:
        """What steps were predicted to take, and what they took."""
        self._sum_up()
        return StepReport(
            hardware=self._fit.hardware.name,
            compute=self.correction.compute,
            memory=self.correction.memory,
            overhead=self.correction.overhead,
            steps=self._summed,
            seconds=self.seconds,
            predicted_seconds=self.predicted_seconds,
            error=self._fit.error(self._times, self.correction),
        )

    def pool_ended(self) -> None:
        """Nothing waits or runs any more: the next step begins by saying how well steps were predicted."""
        self._pool_over = True

    def _say_how_well(self) -> None:
        self._pool_over = False
        if self._decides and self._times.count - self._reported >= WINDOW:
            self._reported = self._times.count
            logger.info("blend: %s", self.report().line)

    def _decide(self) -> Correction:
        """The correction that the last steps ask for: the one in effect, unless it is wrong."""
        error = self._fit.error(self._times, self.correction)
        if error <= _TOLERANCE:
            return self.correction
        found = self._fit.fit(self._times, self._prior)
        return found if self._fit.error(self._times, found) < _BETTER * error else self.correction

    def _sum_up(self) -> None:
        """Add the steps since the last time to the sums, while what predicted them is still in effect."""
        new = self._times.last(self._times.count - self._summed)
        self._summed = self._times.count
        if len(new):
            self.seconds += float(new.seconds.sum())
            self.predicted_seconds += float(self._fit.predict(new, self.correction).sum())
