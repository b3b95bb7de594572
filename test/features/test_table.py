"""docs/features.md: a row for each feature, one of four words, and tests that exist."""

import ast
import re
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "features.md"

WORDS = ("works", "refused", "falls back", "not tried")
FEATURES = """page sizes; overlap schedule; mixed chunks; pdmux; another policy on a live server;
tensor parallel; pipeline parallel; data parallel; DP attention; expert parallel;
speculative: EAGLE; speculative: NGRAM;
PD disaggregation: prefill; PD disaggregation: decode; HiCache; LMCache; LoRA; LoRA batching limits;
sliding windows (Gemma, gpt-oss); recurrent states (Falcon-H1, Qwen3-Next); MLA; multimodal;
embedding models; reward models; diffusion LLMs; sessions; priority preemption; deterministic inference;
fp8 KV; AWQ and GPTQ weights; fp8 weights; weight updates; memory release; --tokenizer-worker-num;
--skip-tokenizer-init"""


class Row(NamedTuple):
    feature: str
    word: str
    tests: list[str]


def rows(page: str) -> list[Row]:
    """The rows of the page's tables: feature, *word*, and the tests that it names."""
    found = []
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if line.startswith("| ") and len(cells) == 3 and cells[0] not in ("feature", "---"):
            tests = re.findall(r"`(test/[\w/]+\.py::\w+)`", cells[2])
            found.append(Row(cells[0].replace("`", ""), cells[1].strip("*"), tests))
    return found


ROWS = rows(PAGE.read_text())


def exists(test: str) -> bool:
    """Whether a test's file has a function of its name."""
    path, _, name = test.partition("::")
    file = ROOT / path
    if not file.is_file():
        return False
    return any(
        isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == name
        for node in ast.walk(ast.parse(file.read_text()))
    )


def test_every_feature_has_a_row() -> None:
    assert [row.feature for row in ROWS] == [one.strip() for one in FEATURES.split(";")]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.feature)
def test_a_row_has_one_of_four_words_and_names_tests_that_exist(row: Row) -> None:
    assert row.word in WORDS
    assert bool(row.tests) == (row.word != "not tried")
    assert [test for test in row.tests if not exists(test)] == []


def test_a_test_that_is_missing_is_found() -> None:
    here = "test/features/test_table.py"
    assert exists(f"{here}::test_a_test_that_is_missing_is_found")
    assert not exists(f"{here}::test_nothing")
    assert not exists("test/features/none.py::test_nothing")
    line = "| x | *works* | `test/a.py::test_b`, and `test/c.py::test_d` |"
    assert rows(line) == [Row("x", "works", ["test/a.py::test_b", "test/c.py::test_d"])]
