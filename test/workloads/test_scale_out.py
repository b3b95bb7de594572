"""Replicas in arrays answer everything once, and the table says what misses its bar."""

from pathlib import Path

import numpy as np
import pytest
from benchmark import scale_out
from benchmark.replica_model import Pool, run_replicas
from numpy.typing import NDArray

from pools import llama_on_a100
from sglang.srt.blend.core.pool.workload import Workload

DOCUMENTS, EACH, LENGTH = 40, 4, 200


@pytest.fixture
def pool() -> Pool:
    """Questions about documents, of which the cache holds eight."""
    tokens = [
        [*range(1000 * d, 1000 * d + LENGTH), 900_000 + q] for d in range(DOCUMENTS) for q in range(EACH)
    ]
    n = len(tokens)
    workload = Workload(
        tokens=np.concatenate(tokens).astype(np.int32),
        offsets=np.arange(n + 1, dtype=np.int64) * (LENGTH + 1),
        output=np.full(n, 40, np.int32),
        known=np.full(n, False),
        max_new_tokens=np.full(n, 100, np.int32),
        source=np.zeros(n, np.int16),
    )
    made = Pool(workload, np.full(n, 40), llama_on_a100())
    made.capacity = 8 * LENGTH
    return made


def halves(pool: Pool) -> list[NDArray[np.int64]]:
    return [np.arange(len(pool.prompt) // 2), np.arange(len(pool.prompt) // 2, len(pool.prompt))]


@pytest.mark.parametrize("stealing", [False, True])
def test_every_prompt_is_computed_once(pool: Pool, stealing: bool) -> None:
    replicas = run_replicas(pool, halves(pool), stealing=stealing, speeds=(0.3, 1.0))
    once = DOCUMENTS * (LENGTH + EACH)
    computed = sum(replica.prefill_tokens for replica in replicas)
    assert once <= computed <= once * 1.1  # a document may be split at the end
    assert not any(replica.waiting or replica.running for replica in replicas)
    assert sum(replica.answers for replica in replicas) == len(pool.prompt)


def test_stealing_makes_up_for_a_slow_replica(pool: Pool) -> None:
    without, ours = (
        scale_out.seconds(run_replicas(pool, halves(pool), stealing=stealing, speeds=(0.3, 1.0)))
        for stealing in (False, True)
    )
    assert ours < 0.7 * without


def test_a_division_beats_what_people_route_by_where_few_documents_are_most_of_the_work(pool: Pool) -> None:
    rows = {row["figure"]: row for row in scale_out.routed(pool)}
    assert rows["over round robin"]["value"] > 1.15, "each replica computes every document"
    assert rows["over hash of 64 tokens"]["value"] > 1.0, "documents are whole and unevenly many"
    better = rows["over the better of round robin and hash"]
    assert better["value"] == min(row["value"] for row in rows.values())


def test_a_figure_below_its_bar_is_marked(tmp_path: Path) -> None:
    row = {"row": "division", "trace": 1, "requests": 9, "value": 1.9}
    rows = [{**row, "figure": "DP=2, stealing"}, {**row, "figure": "sharing kept, DP=2", "value": 0.9995}]
    lines = scale_out.text(rows).splitlines()
    assert lines[2].endswith("| 1.95 | 1.900x |  | missed |")
    assert lines[3].endswith("| 0.999 | 99.95% |  |  |")
    scale_out.draw(rows, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size
