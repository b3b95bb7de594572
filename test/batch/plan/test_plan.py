"""`sglang-batch plan` as a user starts it: a model folder without weights, SGLang's scheduler, no GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from plans import CONFIG
from stand_ins import line

from checkpoints import VOCABULARY, make_tokenizer
from sglang.batch import cli
from sglang.srt.multiplex.pdmux_context import load_pdmux_config

SHARED = "Classify the sentence as positive or negative. " * 8


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("config-only")
    make_tokenizer().save_pretrained(folder)
    # Without an end-of-sequence token: the tokenizer has one.
    config = {name: value for name, value in CONFIG.items() if name != "eos_token_id"}
    (folder / "config.json").write_text(
        json.dumps(config | {"vocab_size": VOCABULARY, "max_position_embeddings": 4096})
    )
    return folder


def chat(custom_id: str, content: str, **body: Any) -> bytes:
    return line(
        custom_id,
        url="/v1/chat/completions",
        body={"messages": [{"role": "user", "content": content}], **body},
    )


def plan(folder: Path, model: Path, lines: list[bytes], *flags: str) -> subprocess.CompletedProcess[str]:
    (folder / "requests.jsonl").write_bytes(b"".join(lines))
    command = [sys.executable, "-m", "sglang.batch.cli", "plan", "-i", "requests.jsonl"]
    command += ["--model-path", str(model), "--hardware", "a100-80gb", *flags]
    environment = {name: value for name, value in os.environ.items() if name != "SGLANG_PLATFORM"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=850)


def test_a_plan_without_weights_names_bad_lines_and_simulates_the_rest(tmp_path: Path, model: Path) -> None:
    lines = [
        *(chat(f"class-{i}", f"{SHARED} Sentence {i}.", max_tokens=2) for i in range(6)),
        b"{broken\n",
        *(line(f"write-{i}", body={"prompt": f"Write {i}", "max_tokens": 200}) for i in range(3)),
        chat("class-0", "again", max_tokens=2),
        line("two", body={"prompt": ["one", "other"], "max_tokens": 5, "ignore_eos": True}),
        chat("long", "word " * 5000, max_tokens=2),
        chat("open", "Hello!"),
        chat("sampled", "Hello!", n=3, max_tokens=4, logprobs=True),
        line("score", url="/v1/score", body={"query": "x", "items": ["a", "b"], "label_token_ids": [5]}),
        line("response", url="/v1/responses", body={"input": "Hello!", "max_output_tokens": 5}),
        *(line(url, url=f"/v1/{url}", body={"input": "Hello!"}) for url in ("embeddings", "classify")),
        line("rerank", url="/v1/rerank", body={"query": "x", "documents": ["a"]}),
    ]
    flags = ("--output-tokens", "50", "--max-total-tokens", "4000", "--policies", "fcfs,blend")
    files = ("--json", "plan.json", "--write-pdmux-config", "pdmux.yaml")
    done = plan(tmp_path, model, lines, *files, *flags)
    assert done.returncode == 1, done.stderr
    assert "all times are simulated" in done.stdout
    assert "--schedule-policy" in done.stdout
    result = json.loads((tmp_path / "plan.json").read_text())
    assert [bad["line"] for bad in result["bad_lines"]] == [7, 11, 13, 18, 19, 20]
    assert all(bad["message"].startswith(f"line {bad['line']}") for bad in result["bad_lines"])
    assert result["bad_lines"][1]["code"] == "duplicate_custom_id"
    assert "longer than" in result["bad_lines"][2]["message"]
    assert result["requests"] == 6 + 3 + 2 + 1 + 3 + 2 + 1
    assert result["output_tokens"] == 6 * 2 + 3 * 50 + 2 * 5 + 50 + 3 * 4 + 2 + 5
    assert (result["answers"]["fixed"], result["answers"]["open"]) == (4, 1)
    assert result["groups"][0]["custom_id"] in ("class-0", "write-0", "sampled", "score")
    assert any(group["requests"] == 6 for group in result["groups"])
    assert not result["failed"]
    config = load_pdmux_config(str(tmp_path / "pdmux.yaml"))  # upstream's reader
    divided = result["pdmux"]["config"]["divisions"][0]
    assert config.manual_divisions == [[divided["prefill"], divided["decode"], 1]]
    assert {(run["schedule"]["policy"], run["schedule"]["engine"]) for run in result["simulated"]} == {
        (policy, engine)
        for policy in ("fcfs", "blend")
        for engine in ("alternating", "mixed", "pdmux", "overlapped")
    }
    for run in result["simulated"]:
        assert run["kv_capacity"] == result["kv_capacity"] == 4000
        assert run["seconds"] >= result["optimum"][run["schedule"]["engine"]] * 0.99


def test_the_kv_capacity_and_the_prompts_are_those_of_a_real_run(tmp_path: Path, model: Path) -> None:
    """Capacity is the simulated scheduler's; tokens are the tokenizer's for the rendered template."""
    flags = ("--json", "plan.json", "--policies", "fcfs", "--engines", "mixed")
    done = plan(tmp_path, model, [chat("a", "Hello!", max_tokens=3)], *flags)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "plan.json").read_text())
    assert result["kv_capacity"] == result["simulated"][0]["kv_capacity"]
    messages = [{"role": "user", "content": "Hello!"}]
    rendered = make_tokenizer().apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert result["prompt_tokens"] == len(rendered)


def test_a_model_that_does_not_fit_is_refused_with_the_remedy(tmp_path: Path, model: Path) -> None:
    (tmp_path / "small.toml").write_text("flops = 1e12\nbandwidth = 1e11\nmemory = 1e9\n")
    done = plan(
        tmp_path, model, [chat("a", "Hi", max_tokens=3)], "--hardware", "small.toml", "--tp-size", "1"
    )
    assert done.returncode == 2
    assert "cannot hold the model" in done.stderr


def refused(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    """The message that a plan is refused with, before anything is read."""
    try:
        code = cli.main(["plan", *(str(part) for part in argv)])
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["--hardware", "abacus"], "choose one of"),
        (["--hardware", "a100", "--policies", "fifo"], "--policies 'fifo'"),
        (["--hardware", "a100", "--engines", "steam"], "--engines 'steam'"),
        (["--hardware", "a100", "--output-tokens", "0"], "--output-tokens 0"),
        (["--hardware", "a100", "--jobs", "0"], "--jobs 0"),
        (["--hardware", "a100", "--json", "nowhere/plan.json"], "nowhere"),
        (["--hardware", "a100", "--chart", "plan.txt"], ".png or .html"),
        (["--hardware", "a100", "--chart", "plan.png", "--simulate-requests", "0"], "--chart plan.png"),
        (["--hardware", "b200", "--write-pdmux-config", "pdmux.yaml"], "--hardware b200: SGLang's PD"),
        (["--hardware", "mi300x", "--engines", "mixed,pdmux"], "leave pdmux out of --engines"),
        ([], "--hardware is required"),
    ],
)
def test_bad_usage_is_one_line(
    flags: list[str], problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    requests = tmp_path / "requests.jsonl"
    requests.write_bytes(chat("a", "Hi"))
    message = refused(capsys, "-i", requests, "--model-path", "m", *flags)
    assert problem in message
    assert len(message.splitlines()) == 1


def test_a_missing_matplotlib_is_said_before_anything_is_simulated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    requests = tmp_path / "requests.jsonl"
    requests.write_bytes(chat("a", "Hi"))
    chart = tmp_path / "plan.png"
    message = refused(capsys, "-i", requests, "--model-path", "m", "--hardware", "a100", "--chart", chart)
    assert "pip install matplotlib" in message
