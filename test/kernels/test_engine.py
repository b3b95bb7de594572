"""The attention backend inside SGLang: the tokens of torch_native, however the step is made up."""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from checkpoints import make_llama, make_qwen2

LOG = "engine.log"


def make_prompts() -> list[list[int]]:
    """Ragged prompts, eight of them with a common prefix, several longer than a prefill chunk."""
    source = random.Random(0)

    def tokens(count: int) -> list[int]:
        return [source.randrange(10, 500) for _ in range(count)]

    common = tokens(100)
    ragged = [tokens(source.choice([3, 20, 70, 300])) for _ in range(16)]
    return ragged + [common + tokens(10) for _ in range(8)]


def answers(
    model: Path,
    folder: Path,
    *,
    environment: dict[str, str],
    sampling: dict[str, float] | None = None,
    **engine: object,
) -> list[list[int]]:
    """Output tokens of each prompt; greedy unless `sampling` says otherwise."""
    folder.mkdir(exist_ok=True)
    request = {
        "engine": {
            "model_path": str(model),
            "dtype": "float32",
            "max_total_tokens": 4096,
            "chunked_prefill_size": 128,
            "log_level": "info",
            **engine,
        },
        "prompts": make_prompts(),
        "sampling": sampling or {"temperature": 0},
    }
    (folder / "request.json").write_text(json.dumps(request))
    with (folder / LOG).open("w") as log:
        process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("engine_script.py"))]
            + [str(folder / "request.json"), str(folder / "answers.json")],
            env={**os.environ, "HF_HUB_OFFLINE": "1", "SGLANG_PLATFORM": "portable_cpu", **environment},
            start_new_session=True,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        assert process.wait(timeout=500) == 0, (folder / LOG).read_text()
    finally:
        # The engine's own processes are in the group and outlive a killed parent.
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait()
    result: list[list[int]] = json.loads((folder / "answers.json").read_text())
    return result


@pytest.fixture(scope="module", params=[make_llama, make_qwen2], ids=["llama", "qwen2"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = request.param(tmp_path_factory.mktemp("model"))
    return folder


@pytest.fixture(scope="module")
def expected(model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[list[int]]:
    return answers(
        model,
        tmp_path_factory.mktemp("torch_native"),
        attention_backend="torch_native",
        environment={"SGLANG_FORCE_FUSED_OP_BACKEND": "torch"},  # and upstream's own norms and rotation
    )


@pytest.mark.parametrize(
    ("kernels", "page_size", "mixed"),
    [("auto", 1, False), ("auto", 16, True), ("off", 1, True)],
    ids=["compiled", "compiled-pages-mixed", "torch-mixed"],
)
def test_greedy_float32_tokens_are_those_of_torch_native(
    model: Path, expected: list[list[int]], tmp_path: Path, kernels: str, page_size: int, mixed: bool
) -> None:
    got = answers(
        model,
        tmp_path / "engine",
        environment={"SGLANG_CPU_KERNELS": kernels},
        attention_backend="portable_cpu",
        page_size=page_size,
        enable_mixed_chunk=mixed,
    )
    assert got == expected
    in_one_call = "2 decoder layers run in one call" in (tmp_path / "engine" / LOG).read_text()
    assert in_one_call == (kernels == "auto")


def test_what_top_p_leaves_is_drawn(model: Path, expected: list[list[int]], tmp_path: Path) -> None:
    got = answers(
        model,
        tmp_path / "engine",
        environment={},
        sampling={"temperature": 1.0, "top_p": 1e-6},
        attention_backend="portable_cpu",
    )
    assert got == expected
