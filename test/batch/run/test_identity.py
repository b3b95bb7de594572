"""What decides answers is noticed when it changes, and nothing else is."""

import argparse
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sglang.batch.run.identity import (
    DECIDING_FLAGS,
    PIECE,
    PIECES,
    SMALL_FILE,
    differences,
    fingerprint,
    identity,
    weight_bytes,
)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "generation_config.json").write_text('{"temperature": 0.6}')
    (folder / "model.safetensors").write_bytes(b"w" * (3 * SMALL_FILE))
    return folder


def settings(model: Path | str, **flags: Any) -> dict[str, Any]:
    return identity(SimpleNamespace(model_path=str(model), **flags))


def test_a_copy_of_the_model_is_the_same_model(model: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(model, tmp_path / "copy")
    (copy / ".cache").mkdir()
    (copy / ".cache" / "x").write_text("not of the model")
    assert differences(settings(model), settings(copy)) == []


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_a_changed_config_or_sampling_default_is_another_model(name: str, model: Path) -> None:
    before = settings(model)
    (model / name).write_text('{"temperature": 1.0}')
    (change,) = differences(before, settings(model))
    assert change.startswith("the model's files: was ")


def test_other_weights_of_the_same_size_are_another_model(model: Path) -> None:
    before = fingerprint(str(model))
    (model / "model.safetensors").write_bytes(b"v" * (3 * SMALL_FILE))
    assert fingerprint(str(model)) != before


def test_little_of_large_files_is_read() -> None:
    assert PIECES * PIECE <= SMALL_FILE


def test_a_model_that_is_not_here_yet_is_no_change_when_it_is() -> None:
    was, now = settings("nobody/nothing"), settings("nobody/nothing")
    assert fingerprint("nobody/nothing") is None
    now["the model's files"] = "abc"
    assert differences(was, now) == []
    assert differences(was, settings("nobody/else")) == ["--model-path: was nobody/nothing, is nobody/else"]


def test_only_flags_that_decide_answers_count(model: Path) -> None:
    before = settings(model, dtype="auto", schedule_policy="fcfs", mem_fraction_static=0.8)
    after = settings(model, dtype="half", schedule_policy="blend", mem_fraction_static=0.5)
    assert differences(before, after) == ["--dtype: was 'auto', is 'half'"]
    assert differences(settings(model), settings(model, random_seed=0)) == [
        "--random-seed: was not set, is 0"
    ]


def test_every_deciding_flag_is_one_of_the_servers() -> None:
    from sglang.srt.server_args import ServerArgs

    parser = argparse.ArgumentParser(add_help=False)
    ServerArgs.add_cli_args(parser)
    assert set(DECIDING_FLAGS) <= {action.dest for action in parser._actions}


def test_the_weights_are_the_safetensors_of_a_folder(model: Path, tmp_path: Path) -> None:
    (model / "pytorch_model.bin").write_bytes(b"the same weights again")
    assert weight_bytes(str(model)) == 3 * SMALL_FILE
    assert weight_bytes("nobody/nothing") == 0
