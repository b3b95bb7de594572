"""A device's `Correction` from the times of its own steps: a robust regression with three unknowns.

A step's time is the engine's formula over its work (`engines`), so it is fitted as a whole: no kind of work
need run alone. Residuals are logarithms of predicted over real seconds, so that long steps do not outweigh
short ones, and outliers (a compilation, a page fault, a neighbour) count no more than by their number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from sglang.srt.blend.core.cost.correction import AS_TOLD, FARTHEST, Correction
from sglang.srt.blend.core.cost.engines import load_engine
from sglang.srt.blend.core.cost.hardware import Hardware
from sglang.srt.blend.core.cost.model_shape import ModelShape
from sglang.srt.blend.core.cost.step_time import StepTimeModel, StepWork

Floats = NDArray[np.float64]

WINDOW = 128
"""Steps that are looked at: the last ones, and as many spread evenly over the whole run."""

_NOISE = 0.05
"""Relative error of a step that the model explains as well as it can; errors well beyond it are outliers."""

_PRIOR = 0.7
"""Logarithm of the factor by which a correction may well change: what no step shows stays as it is."""

_TOGETHER = np.array([[1.0, -1.0, 0.0], [1.0 / 3.0, 1.0 / 3.0, 0.0], [0.0, 0.0, 2.0**0.5]]) / 2.0**0.5
"""What the same is said of, unless start-up has timed another speed than told. A device that is not what it
was told to be most likely has both compute and memory slower, or both faster: together they may change three
times as much."""

_INDEPENDENT = 16
"""Steps that the model's errors are worth at most: those of like steps are alike, however many there are."""

_CLEARLY = 0.01
"""Error by which one course of GEMMs has to be better than the other that is expected."""

_OUTLIER = 0.5
"""Error as which a larger one counts, so that single steps do not make a profile wrong."""

_WORK = ("prefill_tokens", "decode_rows", "kv_tokens", "prefill_pairs", "finished_prefills")
_COLUMNS = ("seconds", *_WORK)


class StepTimes:
    """Work and seconds of a run's steps: of the last `WINDOW`, and of as many spread over the whole run.

    A paced pool makes hundreds of steps that are all alike, which do not tell compute and memory apart;
    those before them do.

    Attributes:
        count: steps so far, those that are forgotten included.
    """

    def __init__(self) -> None:
        self.count = 0
        self._recent = np.zeros((WINDOW, len(_COLUMNS)))
        self._spread = np.zeros((WINDOW, len(_COLUMNS)))
        self._kept, self._stride = 0, 1  # rows of `_spread`, and steps between two of them

    def __len__(self) -> int:
        return min(self.count, WINDOW) + self._kept

    def add(self, work: Mapping[str, float], seconds: float) -> None:
        """A step has ended.

        Args:
            work: fields of `StepWork`; what is missing is 0.
            seconds: more than 0.
        """
        row = [seconds, *(work.get(name, 0.0) for name in _WORK)]
        self._recent[self.count % WINDOW] = row
        if self.count % self._stride == 0:
            if self._kept == WINDOW:
                self._spread[: WINDOW // 2] = self._spread[::2]
                self._kept, self._stride = WINDOW // 2, 2 * self._stride
            self._spread[self._kept] = row
            self._kept += 1
        self.count += 1

    def last(self, number: int) -> StepTimes:
        """The last steps only, `WINDOW` at most."""
        taken = StepTimes()
        taken.count = min(number, self.count, WINDOW)
        rows = np.arange(self.count - taken.count, self.count) % WINDOW
        taken._recent[: taken.count] = self._recent[rows]
        return taken

    @property
    def seconds(self) -> Floats:
        """(n,) of each step, in no particular order."""
        return self._rows[:, 0]

    @property
    def work(self) -> StepWork:
        """(n,) of each step, in the same order."""
        return StepWork(**dict(zip(_WORK, self._rows[:, 1:].T, strict=True)))

    @property
    def _rows(self) -> Floats:
        return np.concatenate([self._recent[: min(self.count, WINDOW)], self._spread[: self._kept]])


@dataclass(frozen=True, slots=True)
class StepFit:
    """Fits corrections of one profile for one model.

    Attributes:
        shape: of the model.
        hardware: the profile that is corrected.
        engine: how passes combine their parts, by its name in `engines`.
    """

    shape: ModelShape
    hardware: Hardware
    engine: str

    def times(self, correction: Correction) -> StepTimeModel:
        """The step times of the corrected profile."""
        return StepTimeModel(self.shape, self.hardware, correction=correction)

    def predict(self, steps: StepTimes, correction: Correction) -> Floats:
        """(n,) seconds of the steps on the corrected profile."""
        return load_engine(self.engine)(self.times(correction), steps.work)

    def errors(self, steps: StepTimes, correction: Correction) -> Floats:
        """(n,) natural logarithms of predicted over real seconds."""
        return np.asarray(np.log(self.predict(steps, correction) / steps.seconds))

    def fit(self, steps: StepTimes, prior: Correction) -> Correction:
        """The correction that explains the steps, as near to `prior` as they allow.

        GEMMs are tried as the profile has them, a measured table or a smooth curve, and as stairs. Kernels of
        GPUs make stairs, though paced steps are often too much alike to show them; a table has its own.
        """
        told, stairs = (self._fit(steps, prior, tiled=tiled) for tiled in (False, True))
        expected = self.times(AS_TOLD).tile == 1 and not self.hardware.measured
        ahead = _CLEARLY if expected else -_CLEARLY
        return stairs if self.error(steps, stairs) < self.error(steps, told) + ahead else told

    def error(self, steps: StepTimes, correction: Correction) -> float:
        """Mean relative error, outliers cut off; 0 without steps."""
        if not len(steps):
            return 0.0
        return float(np.minimum(np.abs(self.errors(steps, correction)), _OUTLIER).mean())

    def _fit(self, steps: StepTimes, prior: Correction, *, tiled: bool) -> Correction:
        weight = max(len(steps) / _INDEPENDENT, 1.0) ** 0.5

        def residuals(logs: Floats) -> Floats:
            errors, change = self.errors(steps, Correction.from_logs(logs, tiled=tiled)), logs - prior.logs
            if prior == AS_TOLD:
                change = _TOGETHER @ change
            return np.concatenate([errors / _NOISE, weight * change / _PRIOR])

        bound = np.log(FARTHEST)
        start = np.clip(prior.logs, -0.99 * bound, 0.99 * bound)
        found = least_squares(residuals, start, bounds=(-bound, bound), loss="soft_l1", diff_step=1e-4)
        return Correction.from_logs(found.x, tiled=tiled)
