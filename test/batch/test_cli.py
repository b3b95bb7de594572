"""Bad usage is said in one line, with exit code 2, before a model is loaded."""

from pathlib import Path

import pytest
from stand_ins import line

from sglang.batch import cli
from sglang.batch.server_flags import with_defaults


@pytest.fixture
def requests(tmp_path: Path) -> Path:
    path = tmp_path / "requests.jsonl"
    path.write_bytes(line("a"))
    return path


def refused(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    """The message that a command is refused with."""
    try:
        code = cli.main([str(part) for part in argv])
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    return capsys.readouterr().err


def test_a_missing_input_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing, output = tmp_path / "none.jsonl", tmp_path / "out"
    message = refused(capsys, "run", "-i", missing, "-o", output, "--model-path", "m")
    assert "none.jsonl" in message
    assert "No such file" in message


@pytest.mark.parametrize("flag", ["--input", "--output"])
def test_input_and_output_are_required(flag: str, requests: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = {"--input": requests, "--output": requests.with_name("out")}
    del given[flag]
    assert flag in refused(capsys, "run", *(part for pair in given.items() for part in pair))


def test_an_existing_output_is_kept(requests: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = requests.with_name("results.jsonl")
    output.write_text("precious")
    message = refused(capsys, "run", "-i", requests, "-o", output, "--model-path", "m")
    assert "--restart" in message
    assert output.read_text() == "precious"


def test_the_input_is_never_the_output(requests: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = requests.read_bytes()
    message = refused(capsys, "run", "-i", requests, "-o", requests, "--overwrite", "--model-path", "m")
    assert "is the input file" in message
    assert requests.read_bytes() == before


@pytest.mark.parametrize("flag", ["-o", "--report", "--report-png"])
def test_a_folder_that_is_not_there_is_named(
    flag: str, requests: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = requests.parent / "nowhere" / "file"
    output = [] if flag == "-o" else ["-o", requests.with_name("out")]
    assert "nowhere" in refused(capsys, "run", "-i", requests, *output, flag, target, "--model-path", "m")


def test_an_empty_pool_is_refused(requests: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = requests.with_name("out")
    message = refused(capsys, "run", "-i", requests, "-o", output, "--model-path", "m", "--pool", "0")
    assert "--pool 0" in message


def test_an_unknown_server_flag_is_upstreams_error_in_few_lines(
    requests: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = requests.with_name("out")
    flags = ["--schedule-policy", "fcfs", "--no-such-flag"]
    message = refused(capsys, "run", "-i", requests, "-o", output, "--model-path", "m", *flags)
    assert "--no-such-flag" in message
    assert len(message.splitlines()) < 5
    assert not output.exists()


def test_a_missing_model_path_is_upstreams_error(requests: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = requests.with_name("out")
    message = refused(capsys, "run", "-i", requests, "-o", output, "--schedule-policy", "fcfs")
    assert "--model-path" in message


def test_the_servers_help_is_reachable(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "--help-server"]) == 0
    help_text = capsys.readouterr().out
    assert "--tp-size" in help_text
    assert "--max-total-tokens" in help_text


def test_the_policy_is_blend_unless_the_user_or_a_config_file_says_otherwise(tmp_path: Path) -> None:
    assert "blend" in with_defaults(["--model-path", "m"])
    assert "blend" not in with_defaults(["--schedule-policy", "fcfs"])
    assert with_defaults([], {"--a": "1", "--b": "2"})[-5:-1] == ["--a", "1", "--b", "2"]
    assert with_defaults(["--a", "3"], {"--a": "1"})[-2:] == ["--a", "3"]
    assert "blend" not in with_defaults(["--schedule-policy=fcfs"])
    config = tmp_path / "config.yaml"
    config.write_text("schedule-policy: lpm\n")
    assert "blend" not in with_defaults(["--config", str(config)])
    config.write_text("tp-size: 2\n")
    assert "blend" in with_defaults(["--config", str(config)])


def test_a_config_file_that_cannot_be_read_is_left_to_upstream() -> None:
    assert "blend" in with_defaults(["--config", "/nowhere.yaml"])
