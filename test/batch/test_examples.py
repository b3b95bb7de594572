"""The example batch is what its script writes, and all of it can be run."""

import json
import runpy
from pathlib import Path

from sglang.batch.records import BatchRequest, parse_line

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_the_demo_file_is_what_its_script_writes() -> None:
    script = runpy.run_path(str(EXAMPLES / "make_demo.py"))
    lines = [json.loads(raw) for raw in (EXAMPLES / "demo.jsonl").read_text().splitlines()]
    assert lines == script["requests"]()


def test_all_forty_lines_of_the_demo_can_be_run() -> None:
    items = [parse_line(i, raw) for i, raw in enumerate((EXAMPLES / "demo.jsonl").open("rb"), start=1)]
    assert all(isinstance(item, BatchRequest) for item in items)
    assert len({item.custom_id for item in items}) == 40


def test_the_demo_mixes_a_shared_prefix_long_prompts_and_long_answers() -> None:
    bodies = [json.loads(raw)["body"] for raw in (EXAMPLES / "demo.jsonl").open()]
    prompts = [body["messages"][0]["content"] for body in bodies]
    assert max(prompts.count(prompt) for prompt in prompts) == 1
    prefixes = [prompt[:1000] for prompt in prompts]
    assert max(prefixes.count(prefix) for prefix in prefixes) == 16
    assert sum(len(prompt) > 2000 for prompt in prompts) == 12
    assert sum(body["max_tokens"] >= 256 for body in bodies) == 12
