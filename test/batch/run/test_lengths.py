"""Lengths of answers are learned by template, kept for later jobs, and told to the planner alone."""

import stat
from pathlib import Path
from typing import Any

import pytest
from journals import recorded
from stand_ins import line

from sglang.batch.input.source import find_sources
from sglang.batch.records import BatchRequest, Usage, parse_line
from sglang.batch.run import lengths as lengths_module
from sglang.batch.run.files import JobFiles
from sglang.batch.run.journal import Journal, Log, Recorded
from sglang.batch.run.lengths import ENOUGH, EXPECTED_OUTPUT, Lengths, answered_lines
from sglang.batch.run.record_log import Span
from sglang.batch.run.scan import scan


def chat(system: str, user: str, **body: Any) -> BatchRequest:
    messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
    fields = {"messages": messages, "max_tokens": 500, **body}
    request = parse_line(1, line("a", url="/v1/chat/completions", body=fields))
    assert isinstance(request, BatchRequest)
    return request


LONG = "Write a story about the following, at length and in detail. " * 5
SHORT = "Answer with one word: is this sentence positive or negative? " * 5


def learned(*answers: tuple[BatchRequest, int], model: str = "m") -> Lengths:
    made = Lengths(model)
    made.learn(answers)
    return made


def stories_and_words() -> Lengths:
    stories = [(chat(LONG, str(i)), 300) for i in range(ENOUGH)]
    words = [(chat(SHORT, str(i)), 2) for i in range(3 * ENOUGH)]
    return learned(*stories, *words)


def test_a_request_is_expected_to_be_answered_like_those_that_begin_as_it_does() -> None:
    known = stories_and_words()
    assert known.expected(chat(LONG, "new")) == 300
    assert known.expected(chat(SHORT, "new")) == 2
    assert known.expected(chat("Write a story about the following, at length and more", "x")) == 300
    assert known.expected(chat("something else", "x")) == round((300 + 3 * 2) / 4)
    assert known.expected(chat(LONG, "new", max_tokens=40)) is None, "another limit is another template"


def test_few_answers_tell_nothing() -> None:
    assert not learned(*((chat(LONG, str(i)), 300) for i in range(ENOUGH - 1)))


def test_choices_and_prompts_of_one_request_are_answers_of_their_own() -> None:
    known = learned((chat(LONG, "x", n=ENOUGH), 100 * ENOUGH))
    assert known.expected(chat(LONG, "y")) == 100
    prompts = parse_line(1, line("a", body={"prompt": [LONG, LONG], "max_tokens": 9, "n": 2}))
    tokens = parse_line(1, line("a", body={"prompt": [1, 2, 3], "max_tokens": 9}))
    assert isinstance(prompts, BatchRequest)
    assert isinstance(tokens, BatchRequest)
    assert learned((prompts, 20)).expected(prompts) == 5
    assert not learned((tokens, 20))


@pytest.mark.parametrize(
    "body", [{}, {"messages": None}, {"messages": [1, {"content": [2, {"text": 3}]}]}, {"prompt": []}]
)
def test_any_body_has_a_template(body: dict[str, Any]) -> None:
    request = BatchRequest(1, "a", "/v1/completions", body)
    assert learned(*[(request, 7)] * ENOUGH).expected(request) == 7


def test_the_planner_is_told_beside_what_the_user_says() -> None:
    known = stories_and_words()
    assert known.told(chat(LONG, "x")).body["custom_params"] == {EXPECTED_OUTPUT: 300}
    both = known.told(chat(LONG, "x", custom_params={"mine": 1}))
    assert both.body["custom_params"] == {"mine": 1, EXPECTED_OUTPUT: 300}
    for request in (chat(LONG, "x", custom_params="broken"), chat(LONG, "x", max_tokens=40)):
        assert known.told(request) is request
    assert Lengths("m").told(chat(LONG, "x")).body == chat(LONG, "x").body


def test_the_runtime_reads_what_is_told() -> None:
    from sglang.srt.blend.runtime import pool

    assert EXPECTED_OUTPUT == pool.EXPECTED_OUTPUT


def test_what_was_learned_is_kept_for_its_owner_and_belongs_to_a_model(tmp_path: Path) -> None:
    path = tmp_path / "cache" / "lengths.sqlite"
    stories_and_words().save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    other, same = Lengths("other"), Lengths("m")
    other.load(path)
    same.load(path)
    assert other.expected(chat(LONG, "x")) is None
    assert same.expected(chat(LONG, "x")) == 300
    same.learn([(chat(LONG, str(i)), 40) for i in range(ENOUGH)])
    assert same.expected(chat(LONG, "x")) == 40, "what is new replaces what was known"
    same.save(path)
    again = Lengths("m")
    again.load(path)
    assert again.expected(chat(LONG, "x")) == 40
    assert again.expected(chat(SHORT, "x")) == 2


def test_the_cache_keeps_what_was_used_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lengths_module, "KEPT", 3)
    path = tmp_path / "lengths.sqlite"
    for number, tokens in ((1, 10), (2, 20)):
        learned(*[(chat(f"{number}" * 300, "x"), tokens)] * ENOUGH).save(path)
    left = Lengths("m")
    left.load(path)
    assert left.expected(chat("1" * 300, "x")) == 20, "of the first only the coarsest template is left"
    assert left.expected(chat("2" * 300, "x")) == 20


def test_a_cache_that_cannot_be_used_has_nothing(tmp_path: Path) -> None:
    damaged, elsewhere = tmp_path / "damaged", tmp_path / "link"
    damaged.write_bytes(b"x" * 5000)
    elsewhere.symlink_to(tmp_path / "target")
    for path in (damaged, elsewhere, damaged / "below"):
        known = stories_and_words()
        known.save(path)
        empty = Lengths("m")
        empty.load(path)
        assert not empty
    assert damaged.read_bytes() == b"x" * 5000
    assert not (tmp_path / "target").exists()


def test_answered_lines_are_read_back_from_the_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(b"".join(line(f"r{i}") for i in range(40)))
    files = JobFiles.of(tmp_path / "out.jsonl", None)
    files.make_work()
    journal = Journal(files.journal, create=True)
    inputs = scan(journal, find_sources([str(source)]), files)
    copy = Recorded(31, Log.ANSWERS, Span(300, 10), None, Usage(), same_as=0)
    failed = recorded(32, 0, code="bad")
    journal.record([*(recorded(i, i * 10) for i in range(30)), copy, failed])
    answered = list(answered_lines(journal, inputs))
    assert [(request.custom_id, tokens) for request, tokens in answered] == [(f"r{i}", 3) for i in range(30)]
    monkeypatch.setattr(lengths_module, "READ", 10)
    some = [request.custom_id for request, _ in answered_lines(journal, inputs)]
    assert some == [f"r{i}" for i in range(3, 30, 4)]
