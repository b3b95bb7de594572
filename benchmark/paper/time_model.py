"""Step times of the model against measurements that it was not fitted to.

    python -m benchmark.paper.time_model

Two sources: rows of Vidur's profiles that are not in the model's tables, and the paper's Table 1. Writes
time_model.csv, with a row for each measurement, and time_model.png. Exit code 1 if the mean absolute error of
either is 6% or more.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from statistics import fmean

from benchmark.paper import report
from benchmark.paper.compare import Run, cost_model

from sglang.srt.blend.core.cost.gemm_profile import gemm_profiles
from sglang.srt.blend.core.cost.step_time import StepTimeModel

BAR = 0.06
HELD_BACK, PAPER = "profiles, rows held back", "paper Table 1"

TABLE_1 = [(512, 1.087, 1.317), (768, 1.537, 1.913), (1024, 2.005, 2.515)]
"""Llama-3-8B on an A100, one layer, sequences of 1024 tokens: batch, GEMM ms, attention ms."""
_SEQUENCE = 1024


@dataclass(frozen=True, slots=True)
class Prediction:
    """One measurement and what the model says.

    Attributes:
        source: of the measurement; kind: "GEMM" or "decode attention".
        tokens: rows of the batch.
        measured_ms, predicted_ms: of one decoder layer on one rank.
    """

    source: str
    kind: str
    device: str
    model: str
    tensor_parallel: int
    tokens: int
    measured_ms: float
    predicted_ms: float

    @property
    def error(self) -> float:
        """Relative, without sign."""
        return abs(self.predicted_ms / self.measured_ms - 1.0)

    @property
    def series(self) -> tuple[str, str, str, int, str]:
        return self.source, self.device, self.model, self.tensor_parallel, self.kind


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmark.paper.time_model", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--out", type=Path, default=Path("benchmark/results/paper"))
    arguments = parser.parse_args()
    predictions = [*held_back(), *table_1()]
    arguments.out.mkdir(parents=True, exist_ok=True)
    name = arguments.out / "time_model"
    report.write_csv(name.with_suffix(".csv"), [{**asdict(p), "error": p.error} for p in predictions])
    draw(name.with_suffix(".png"), predictions)
    for series, errors in series_errors(predictions).items():
        source, device, model, degree, kind = series
        print(f"{source:<26}{device:<6}{model:<14}TP {degree}  {kind:<18}{fmean(errors):6.1%}")
    print(f"\n{'mean absolute error':<30}{'rows':>6}{'bar':>8}{'here':>8}")
    failed = False
    for source in (HELD_BACK, PAPER):
        some = [p.error for p in predictions if p.source == source]
        missed = fmean(some) >= BAR
        failed |= missed
        print(f"{source:<30}{len(some):>6}{BAR:>8.0%}{fmean(some):>8.1%}{'  missed' if missed else ''}")
    raise SystemExit(int(failed))


def held_back() -> Iterator[Prediction]:
    """GEMMs of a layer at token counts that the model's tables lack."""
    profiles = {(p.device, p.model, p.tensor_parallel): p for p in gemm_profiles()}
    text = Path(__file__).with_name("held_back_gemm.csv").read_text()
    for row in csv.DictReader(line for line in text.splitlines() if not line.startswith("#")):
        key = (row["device"], row["model"], int(row["tensor_parallel"]))
        tokens = int(row["tokens"])
        predicted = float(profiles[key].gemm_seconds(tokens, profiles[key].params))
        yield Prediction(HELD_BACK, "GEMM", *key, tokens, float(row["gemm_ms"]), 1e3 * predicted)


def table_1() -> Iterator[Prediction]:
    """GEMMs and decode attention as the paper measured them; neither was used in the fit."""
    run = Run(1, "any", "overlapped", 0)
    cost = cost_model(run)
    times = StepTimeModel(cost.shape, cost.hardware)
    for batch, gemm_ms, attention_ms in TABLE_1:
        gemm = times.gemm(batch, 0)
        attention = times.decode_attention(batch * _SEQUENCE)
        for kind, measured, seconds in (
            ("GEMM", gemm_ms, gemm),
            ("decode attention", attention_ms, attention),
        ):
            predicted = 1e3 * float(seconds) / cost.shape.layers
            yield Prediction(PAPER, kind, "a100", run.model, 1, batch, measured, predicted)


def series_errors(predictions: list[Prediction]) -> dict[tuple[str, str, str, int, str], list[float]]:
    """Errors of each series, in the order of the series' names."""
    ordered = sorted(predictions, key=lambda p: p.series)
    return {key: [p.error for p in group] for key, group in groupby(ordered, key=lambda p: p.series)}


def draw(path: Path, predictions: list[Prediction]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7.0, 4.0), layout="constrained")
    groups = sorted({(p.source, p.device, p.kind) for p in predictions}, reverse=True)
    for (source, device, kind), marker in zip(groups, ("s", "^", "ko", "kx"), strict=True):
        some = [p for p in predictions if (p.source, p.device, p.kind) == (source, device, kind)]
        tokens, ratio = [p.tokens for p in some], [p.predicted_ms / p.measured_ms for p in some]
        axes.plot(tokens, ratio, marker, markersize=4, fillstyle="none", label=f"{kind}, {device}, {source}")
    axes.axhspan(1.0 - BAR, 1.0 + BAR, alpha=0.15, label=f"within {BAR:.0%}")
    axes.set(xscale="log", xlabel="rows of the batch", ylabel="predicted / measured time")
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main()
