"""Whatever a line contains, it gets one record, and the run goes on to its end."""

import json
import random
import re
from collections import Counter
from typing import Any

import pytest
from echo_jobs import FAULTS, EchoJob, request

from sglang.batch.input.lines import bare
from sglang.batch.records import parse_line

MUTATED = 10_000 if FAULTS == "all" else 1_000

ODD: list[Any] = [
    *(None, True, False, "", "\0", "\u2028\x85", "x" * 10_000, -1, 0, 1, 1e308, 5e-324, -0.0),
    *(2**31, 2**32, -(2**31), 2**63, -(2**63) - 1, 2**64, 10**400, "nan", "1", "²", [], {}, [[]], [None]),
    *([-1], [2**63], [[1], "x"], {"": {}}, {"-1": 1e39}, {"tokenize": True}, "(?P", "(" * 200, "[" * 200),
]
"""Values where others are expected."""

FIELDS = (
    "prompt messages n best_of max_tokens logprobs top_logprobs top_k seed temperature stop stop_regex"
    " stop_token_ids logit_bias regex json_schema response_format chat_template_kwargs stream input_ids new"
).split()


def base(chance: random.Random, number: int) -> dict[str, Any]:
    """A request, half of the time with odd values in its body."""
    body: dict[str, Any] = {"prompt": f"Hello {number}", "max_tokens": 6}
    if chance.random() < 0.5:
        for field in chance.sample(FIELDS, 3):
            body[field] = chance.choice(ODD)
    return {"custom_id": f"r{number}", "method": "POST", "url": "/v1/completions", "body": body}


def odd_field(line: dict[str, Any], chance: random.Random) -> dict[str, Any]:
    """The line with one of its own fields odd, missing or said twice in effect."""
    field = chance.choice([*line, "body"])
    if chance.random() < 0.3:
        return {name: value for name, value in line.items() if name != field}
    return line | {field: chance.choice(ODD)}


def odd_bytes(raw: bytes, chance: random.Random) -> bytes:
    """The line cut, repeated, turned around, or with other bytes in it."""
    at, to = sorted(chance.randrange(len(raw) + 1) for _ in range(2))
    noise = bytes(chance.choices(range(256), k=chance.randrange(1, 9)))
    return chance.choice(
        [
            raw[:at],
            raw[at:],
            raw[:at] + raw[to:],
            raw[:to] + raw[at:],
            raw[:at] + noise + raw[at:],
            raw[:at] + noise + raw[to:],
            raw[:at] + chance.choice([b"[", b'{"a":', b'"', b"\\u", b"\xef\xbb\xbf", b"\0"]) * 20 + raw[at:],
            raw[:at] + raw[at:to][::-1] + raw[to:],
        ]
    )


def mutated(chance: random.Random, number: int) -> bytes:
    """One line, which is not blank."""
    line = base(chance, number)
    if chance.random() < 0.5:
        line = odd_field(line, chance)
    raw = json.dumps(line, ensure_ascii=chance.random() < 0.5).encode("utf-8", "surrogatepass")
    if chance.random() < 0.5:
        raw = odd_bytes(raw, chance)
    raw = raw.replace(b"\n", b" ").replace(b"\r", b" ")
    return (raw if bare(raw) else b"?") + b"\n"


def test_mutated_lines_get_one_record_each(tmp_path: Any) -> None:
    chance = random.Random(18)
    lines = [request("first"), *(mutated(chance, i) for i in range(MUTATED)), request("last")]
    job = EchoJob(tmp_path, lines)

    code, said = job.run("--errors", "-", "--in-order")

    assert code == 1, said
    assert "Traceback" not in said
    records = job.records()
    assert [record["custom_id"] for record in records] == [
        parse_line(number, bare(raw)).custom_id for number, raw in enumerate(lines, start=1)
    ], "one record per line, in its place"
    assert len({record["id"] for record in records}) == len(lines)
    kinds = Counter(
        record["response"]["status_code"] if record["error"] is None else record["error"]["code"]
        for record in records
    )
    seldom = {kind: count for kind, count in kinds.items() if count < MUTATED // 500}
    assert kinds.keys() >= {200, 400, "invalid_json_line", "invalid_body", "missing_custom_id"}
    assert not seldom.keys() & {200, 400, "invalid_json_line"}, "the mutations are of one kind only"


def run_measured(job: EchoJob, *flags: str) -> int:
    """Run to the end; returns the runner's largest resident memory in bytes."""
    code, said = job.run(*flags)
    assert code == 1, said
    found = re.search(r"echo: peak memory (\d+) kB", said)
    assert found, said
    return int(found[1]) * 1024


LONG = 50 * 10**6


@pytest.mark.skipif(FAULTS != "all", reason="only in `make faults`")
@pytest.mark.parametrize(
    ("name", "raw"),
    [
        ("text", request("odd", "x" * LONG)),
        ("token ids", request("odd").replace(b'"odd"}', b"[49151" + b",49151" * (LONG // 6) + b"]}")),
        ("brackets", b"[" * LONG + b"\n"),
        ("custom_id", request("x" * LONG, "refuse")),
        ("nesting", request("odd").replace(b'"odd"}', b"[" * 100_000 + b"]" * 100_000 + b"}")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_line_of_50_megabytes_or_100000_levels_gets_one_record(
    name: str, raw: bytes, tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    few = EchoJob(tmp_path, [request("first"), b"{\n", request("last")])
    usual = run_measured(few, "--errors", "-")
    (tmp_path / "odd").mkdir()
    job = EchoJob(tmp_path / "odd", [request("first"), raw, b"{\n", request("last")])
    peak = run_measured(job, "--errors", "-")
    with capsys.disabled():
        print(
            f"\n{name}, {len(raw) / 1e6:.1f} MB: peak memory {peak / 1e6:.0f} MB, {usual / 1e6:.0f} MB else"
        )
    assert len(job.records()) == 4
    assert {"first", "last"} <= {record["custom_id"] for record in job.records()}
    assert peak < usual + 30 * len(raw) + 50e6
