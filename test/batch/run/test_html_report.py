"""The page holds what the run can tell, loads nothing, runs nothing, and shows users' text as text."""

import re
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from plans import families, make_prompts
from test_report import report, state

from sglang.batch.plan.groups import Group
from sglang.batch.plan.schedules import NotSimulated, Schedule, Simulated
from sglang.batch.plan.timeline import Timeline
from sglang.batch.run import html_report
from sglang.batch.run.arguments import add_run_arguments, check_run
from sglang.batch.run.blend_history import BlendHistory
from sglang.batch.run.html_report import EXPLAINED, render, write_page
from sglang.batch.run.look_back import LookBack, with_real_lengths
from sglang.batch.usage import BadUsage
from sglang.srt.blend.core.step.verdict import Reason

pytest.importorskip("matplotlib")

HOSTILE = "<script>alert('a')</script>&<img src=http://evil.example/x>"
VOID = {"meta", "path", "use", "rect", "line", "br"}


class Page(HTMLParser):
    """Collects tags, attributes and text, and checks that what is opened is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def history(speed: float = 0.5, seconds: int = 40) -> BlendHistory:
    """A run in which `speed` modelled seconds passed in each real one."""
    polls = []
    for second in range(seconds):
        outlook = {
            "done": speed * second,
            "left": 20.0 - 0.5 * second,
            "left_high": 20.0,
            "estimated": 0.5,
            "compute": 0.3 * second,
            "memory": 0.2 * second,
        }
        polls.append(
            (
                float(second),
                state(
                    waiting=40 - second,
                    outlook=outlook,
                    sharing_achieved=second / 100,
                    lengths=[[7, 3, second], [4, 6, 2]],
                    decisions={reason.value: 10 * i for i, reason in enumerate(Reason)},
                    engine="mixed",
                ),
            )
        )
    made = BlendHistory.of(polls)
    assert made is not None
    return made


def look(**changes: Any) -> LookBack:
    flat = Timeline(1.0, (0.5,) * 120, (0.25,) * 120)
    fields: dict[str, Any] = {
        "lines": 5000,
        "read": 3000,
        "requests": 2900,
        "hardware": "a100",
        "engine": "mixed",
        "kv_capacity": 4000,
        "groups": (Group(12, 7, HOSTILE, 100, 120.0, 8.0, 0.8, 2.5, 0.4),) * 20,
        "excerpt": 1000,
        "simulated": tuple(
            Simulated(Schedule(policy, "mixed"), seconds, 0.5, 10, 0, 4000, 1.0, flat)
            for policy, seconds in (("blend", 50.0), ("fcfs", 100.0))
        ),
        "failed": (),
    }
    return LookBack(**{**fields, **changes})


def page(**changes: Any) -> str:
    arguments: dict[str, Any] = {"title": HOSTILE, "model": HOSTILE, "past": look(), "when": 0.0}
    return render(report(history()), **{**arguments, **changes})


def test_users_text_is_text() -> None:
    html = page()
    assert "<script" not in html
    assert "<img" not in html
    assert Page(html).text.count(HOSTILE) == 3 + html_report.GROUPS  # title, heading, model, groups


def test_nothing_is_loaded_and_nothing_runs() -> None:
    html = page(title="run", model="m", past=look(groups=()))
    assert not re.search(r"https?:|url\((?!#)|@import|javascript:", html)
    for tag, attributes in Page(html).tags:
        assert tag not in ("script", "link", "iframe", "object", "embed", "img", "image")
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("href", "src"):
                assert str(value).startswith("#")


def test_what_charts_refer_to_is_there_once() -> None:
    html = page()
    ids = re.findall(r' id="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:href="|url\()#([^")]+)', html)) <= set(ids)


def test_charts_have_the_pages_colours() -> None:
    html = page()
    assert "prefers-color-scheme: dark" in html
    drawn = html[html.index("<svg") : html.rindex("</svg>")]
    assert "currentColor" in drawn
    assert not re.search(r"#(000000|ffffff|010203)\b", drawn)


def test_every_part_is_there() -> None:
    text = Page(page()).text
    for part in (
        "3 answered, 2 with an error record",
        "Compute and memory over time",
        "Memory partition",
        "Prefix sharing",
        "Predicted against real time",
        "Expected against real lengths",
        "What waited and why",
        "Slowest prefix groups",
        "8 smaller ones are left out. Of the first 3,000 lines of 5,000.",
        "What fcfs would have taken, simulated",
        "an excerpt of 2,900",
        "from the first 3,000 of 5,000 lines",
    ):
        assert part in text


def test_fcfs_is_told_at_the_ratio_of_the_simulations() -> None:
    """11.5 seconds after the pool was complete, of a policy that is twice as fast."""
    text = Page(page()).text
    assert "the 12 s that this run needed for its requests" in text
    assert "100.0 / 50.0 = 2.00, are about 23 s under fcfs" in text
    assert "this run took 2 s for each second that the model has for its work" in text
    failed = look(simulated=look().simulated[:1], failed=(NotSimulated(Schedule("fcfs", "mixed"), "killed"),))
    text = Page(page(past=failed)).text
    assert "under fcfs" not in text
    assert "not simulated: killed" in text


@pytest.mark.parametrize(
    ("speed", "seconds", "why"),
    [
        (0.01, 40, "took 100 s for each second that the model has"),
        (10.0, 40, "took 0.1 s for each second that the model has"),
        (0.5, 1, "too short to compare"),
    ],
)
def test_fcfs_is_not_told_where_the_model_is_far_off(speed: float, seconds: int, why: str) -> None:
    html = render(report(history(speed, seconds)), title="run", model="m", past=look())
    text = Page(html).text
    assert why in text
    assert "under fcfs" not in text
    assert "simulated seconds" in text


def test_every_reason_is_explained() -> None:
    assert set(EXPLAINED) == set(Reason)
    text = Page(page()).text
    assert f"10 began: {EXPLAINED[Reason.NOTHING_RUNS]}" in text
    assert f"80 waited: {EXPLAINED[Reason.NO_ROOM]}" in text
    assert EXPLAINED[Reason.FITS] not in text  # never given


def test_another_policy_has_a_page_of_what_is_known() -> None:
    html = render(report(None, policy="fcfs"), title="run", model="m", note="Nothing was simulated.")
    text = Page(html).text
    assert "3 answered" in text
    assert "Nothing was simulated." in text
    assert "<svg" not in html


def run_arguments(folder: Path, *flags: str) -> Any:
    import argparse

    (folder / "in.jsonl").write_bytes(b"{}\n")
    parser = argparse.ArgumentParser()
    add_run_arguments(parser)
    files = ["-i", str(folder / "in.jsonl"), "-o", str(folder / "out.jsonl")]
    return check_run(parser.parse_args([*files, *flags]), [])


SERVER = SimpleNamespace(
    model_path="models/<b>", dp_size=1, tp_size=1, attn_dp_size=1, enable_dp_attention=False
)


def test_a_look_back_that_fails_leaves_a_page_that_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> LookBack:
        raise BadUsage("in.jsonl: is gone")

    monkeypatch.setattr(html_report, "look_back", fails)
    arguments = run_arguments(tmp_path, "--report-html", str(tmp_path / "page.html"))
    write_page(arguments, SERVER, {0: 5}, report(history()))
    text = Page((tmp_path / "page.html").read_text()).text
    assert "simulations are missing: in.jsonl: is gone" in text
    assert "Memory partition" in text


def test_a_page_without_matplotlib_is_refused_before_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sglang.batch.run.arguments.find_spec", lambda name: None)
    with pytest.raises(BadUsage, match="pip install matplotlib"):
        run_arguments(tmp_path, "--report-html", str(tmp_path / "page.html"))


def test_lengths_come_from_the_lines_that_were_answered() -> None:
    prompts = make_prompts(families({1: 2, 2: 2}), cap=[0, 50, 0, 0], known=[0, 0, 9, 0])
    workload, kept = with_real_lengths(prompts, {0: 7, 1: 20, 2: 9})
    assert kept.tolist() == [0, 1, 2]
    assert workload.output.tolist() == [7, 20, 9]
    assert workload.max_new_tokens.tolist() == [7, 50, 9]
    assert workload.known.tolist() == [False, False, True]


def test_a_line_of_several_answers_is_divided_among_them() -> None:
    prompts = make_prompts(families({1: 4}))
    object.__setattr__(prompts, "position", np.array([0, 1, 1, 1]))
    workload, _ = with_real_lengths(prompts, {0: 8, 1: 30})
    assert workload.output.tolist() == [8, 10, 10, 10]


def test_a_run_of_which_nothing_was_answered_has_no_look_back() -> None:
    with pytest.raises(LookupError, match="answered"):
        with_real_lengths(make_prompts(families({1: 2})), {5: 3})
