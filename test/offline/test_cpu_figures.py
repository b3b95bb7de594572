"""The table of targets reads the files of both benchmarks and hides no miss."""

import json

from benchmark.cpu import figures as cpu_figures

OFFLINE = {
    "blend over the best other policy": {
        "trace1": 1.0,
        "trace2": 1.1,
        "trace3": 1.2,
        "trace4": 1.3,
        "mean": 9.0,
    },
    "blend over fcfs in arrival order": {"trace1": 1.5, "trace2": 1.2},
    "mixed chunk over none, fcfs": {"mean": 1.07},
    "mixed chunk over none, blend": {"mean": 0.9},
}


def cells(table, what):
    return next(line for line in table.splitlines() if line.startswith(what)).removeprefix(what).split()


def test_figures_are_beside_their_targets():
    table = cpu_figures.table({"decode_ratio": 3.1, "prefill_ratio": 1.2}, OFFLINE)
    assert cells(table, "decode step against torch_native") == [">=", "2.5x", "3.10x"]
    assert cells(table, "prefill tokens/s against torch_native") == [">=", "1.3x", "1.20x", "missed"]
    assert cells(table, "blend against the best other policy, mean of four traces")[2:] == ["1.15x"]
    assert cells(table, "blend against fcfs in arrival order, trace #2")[2:] == ["1.20x", "missed"]
    assert cells(table, "mixed chunk against none, its best policy")[2:] == ["1.07x"]


def test_what_was_not_measured_says_so():
    table = cpu_figures.table({}, {})
    assert all(line.endswith("-  not measured") for line in table.splitlines()[1:])


def test_a_mean_of_some_of_the_traces_is_no_figure():
    offline = {"blend over the best other policy": {"trace1": 2.0, "mean": 2.0}}
    assert (
        cells(cpu_figures.table({}, offline), "blend against the best other policy, mean of four traces")[2]
        == "-"
    )


def test_the_command_reads_the_benchmarks_files(tmp_path, capsys):
    for name, figures in (("steps", {"decode_ratio": 3.1, "prefill_ratio": 1.4}), ("offline", OFFLINE)):
        (tmp_path / name).write_text(json.dumps({"figures": figures}))
    code = cpu_figures.main(["--steps", str(tmp_path / "steps"), "--offline", str(tmp_path / "offline")])
    assert code == 0
    assert "3.10x" in capsys.readouterr().out
