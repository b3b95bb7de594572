"""The table of parts: what each adds to those before it, and what is left."""

import pytest
from benchmark.paper import parts, tables
from benchmark.paper.compare import CHUNKS

SECONDS = {
    ("dfs", ""): 100.0,
    **{("dfs", variant): 90.0 + i for i, variant in enumerate(CHUNKS)},
    ("blend", "depth first, no pace"): 75.0,
    ("blend", "depth first"): 60.0,
    ("blend", "longest first"): 50.0,
    ("blend", ""): 40.0,
}


def records(trace=1, times=1.0, engine="mixed"):
    return [
        {"policy": policy, "variant": variant, "engine": engine, "trace": trace, "seconds": times * seconds}
        for (policy, variant), seconds in SECONDS.items()
    ]


def test_each_part_is_told_against_those_before_it():
    factors = parts.factors(records(), "mixed")
    assert list(factors) == list(parts.PARTS)
    assert [row[1] for row in factors.values()] == pytest.approx(
        [100 / 90, 90 / 75, 75 / 60, 60 / 50, 50 / 40]
    )


def test_all_of_them_are_the_whole_gain(tmp_path):
    text = parts.text(records() + records(trace=2, times=3.0))
    assert "all of it" in text
    assert text.splitlines()[-2].split()[-1] == "2.500x"
    parts.draw(tmp_path / "parts.png", records())
    assert (tmp_path / "parts.png").stat().st_size > 0


def test_a_trace_that_lacks_a_run_is_left_out():
    assert parts.factors(records()[:-1], "mixed") == {}
    assert list(parts.factors(records() + records(trace=2)[:-1], "mixed")["order"]) == [1]


def test_the_table_has_every_run_that_is_told():
    for trace in (1, 2, 3, 4):
        for engine in parts.ENGINES:
            runs = {(r.policy, r.variant) for r in tables.parts() if (r.trace, r.engine) == (trace, engine)}
            assert runs == set(SECONDS)
