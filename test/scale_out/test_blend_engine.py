"""The class for Ray Data, called as Ray Data calls it, with an echo engine."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from sglang.batch.ray_data import BlendEngine
from sglang.batch.usage import BadUsage

WORKER = Path(__file__).parents[1] / "faults" / "echo_worker.py"

Make = Callable[..., BlendEngine]


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Make]:
    made: list[BlendEngine] = []

    def make(**more: Any) -> BlendEngine:
        fields = {"prompt_template": "{q}", "url": "/v1/completions", **more}
        server = [str(tmp_path / "log"), "0"]
        made.append(BlendEngine("echo", server=server, worker=[str(WORKER)], **fields))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_rows_come_back_with_their_answers_whatever_the_engine_dies_of(engine: Make) -> None:
    questions = ["one", "refuse", None, "kill", "raise", "two"]
    table = engine()(pa.table({"n": range(6), "q": questions}))
    assert table.column("n").to_pylist() == [*range(6)]
    assert table.column("q").to_pylist() == questions
    texts = table.column("response_text").to_pylist()
    assert texts == ["echo one", None, None, None, None, "echo two"]
    codes = table.column("error_code").to_pylist()
    assert codes == [None, "BadRequestError", "invalid_row", "engine_crashed", "internal_error", None]
    assert table.column("completion_tokens").to_pylist()[0] == 2


def test_columns_of_numpy_and_names_that_are_taken(engine: Make) -> None:
    answer = engine(prompt_template="row {n}")({"n": np.arange(3), "response": np.array(["a", "b", "c"])})
    assert answer.column("response_text").to_pylist() == [f"echo row {i}" for i in range(3)]
    assert answer.column("input_response").to_pylist() == ["a", "b", "c"]


def test_no_rows_are_no_rows(engine: Make) -> None:
    assert engine()(pa.table({"q": pa.array([], pa.string())})).num_rows == 0


def test_an_engine_without_prompts_is_refused() -> None:
    with pytest.raises(BadUsage, match="prompt_template or messages_column"):
        BlendEngine("echo")
