"""What decides an answer beside its request: the model's files, SGLang's version, some of the server's flags.

A job goes on only with what it began with. Flags that move work about (schedule, memory, parallelism, ports,
logs) may change between two runs, since they change an answer by rounding at most.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sglang.batch.upstream import ServerArgs

DECIDING_FLAGS = (
    "allow_auto_truncate",
    "chat_template",
    "completion_template",
    "context_length",
    "decrypted_config_file",
    "default_chat_template_kwargs",
    "dtype",
    "enable_custom_logit_processor",
    "enable_deterministic_inference",
    "enable_lora",
    "enable_multimodal",
    "enable_strict_thinking",
    "grammar_backend",
    "hf_chat_template_name",
    "is_embedding",
    "json_model_override_args",
    "kv_cache_dtype",
    "limit_mm_data_per_request",
    "load_format",
    "lora_paths",
    "mamba_ssm_dtype",
    "mm_process_config",
    "model_config_parser",
    "modelopt_quant",
    "preferred_sampling_params",
    "quantization",
    "quantization_param_path",
    "random_seed",
    "reasoning_parser",
    "revision",
    "sampling_backend",
    "sampling_defaults",
    "skip_tokenizer_init",
    "speculative_accept_threshold_acc",
    "speculative_accept_threshold_single",
    "speculative_algorithm",
    "speculative_draft_model_path",
    "tokenizer_backend",
    "tokenizer_mode",
    "tokenizer_path",
    "tool_call_parser",
    "trust_request_chat_template",
    "uno_lora_path",
)
"""Arguments of the server that decide answers, as the user gave them."""

FILES = "the model's files"

SMALL_FILE = 1 << 20
"""Bytes of a file up to which all of it counts (configs, templates, tokenizers); of larger ones, pieces."""

PIECES, PIECE = 16, 1 << 14
"""Of a large file, so many pieces of so many bytes count, evenly spread: other weights differ everywhere."""


def identity(server_args: ServerArgs) -> dict[str, Any]:
    """Describe what decides answers, as JSON values.

    Args:
        server_args: as parsed, before upstream has resolved them.
    """
    return {
        "SGLang": importlib.metadata.version("sglang"),
        "--model-path": server_args.model_path,
        FILES: fingerprint(server_args.model_path),
        **{
            f"--{name.replace('_', '-')}": repr(value)
            for name in DECIDING_FLAGS
            if (value := getattr(server_args, name, None)) is not None and value is not False
        },
    }


def differences(was: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """List what changed.

    >>> differences({"--dtype": "'half'"}, {"--dtype": "'auto'", "--revision": "'b'"})
    ["--dtype: was 'half', is 'auto'", "--revision: was not set, is 'b'"]
    """
    files = was.get(FILES), now.get(FILES)
    # The same files in another place are the same model; a model that was not here yet had no files.
    same = {FILES} if None in files else {"--model-path"} if files[0] == files[1] else set()
    return [
        f"{key}: was {was.get(key, 'not set')}, is {now.get(key, 'not set')}"
        for key in dict.fromkeys([*was, *now])
        if was.get(key) != now.get(key) and key not in same
    ]


def fingerprint(model_path: str) -> str | None:
    """Hash the files of a model: names, sizes, small files whole and pieces of large ones.

    A model of the Hugging Face hub is what the cache has of it; None if it is not there yet.
    """
    folder = _folder(model_path)
    if folder is None:
        return None
    total = hashlib.blake2b(digest_size=16)
    for path in _files(folder):
        total.update(f"{path.relative_to(folder)}\0{path.stat().st_size}\0".encode())
        for piece in _pieces(path):
            total.update(piece)
    return total.hexdigest()


def weight_bytes(model_path: str) -> int:
    """Count the bytes of a model's `.safetensors` files; 0 if it has none, or is not there yet."""
    folder = _folder(model_path)
    files = [] if folder is None else _files(folder)
    return sum(path.stat().st_size for path in files if path.suffix == ".safetensors")


def _folder(model_path: str) -> Path | None:
    """Where a model's files are; a file if it is one."""
    return Path(model_path) if Path(model_path).exists() else _cached(model_path)


def _files(folder: Path) -> list[Path]:
    """List the files of a model in order, hidden ones left out."""
    return [
        path
        for path in (sorted(folder.rglob("*")) if folder.is_dir() else [folder])
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]


def _cached(model_path: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        config = try_to_load_from_cache(model_path, "config.json")
    except HFValidationError:
        return None
    return Path(config).parent if isinstance(config, str | os.PathLike) else None


def _pieces(path: Path) -> Iterator[bytes]:
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= SMALL_FILE:
            yield file.read()
            return
        for i in range(PIECES):
            file.seek((size - PIECE) * i // (PIECES - 1))
            yield file.read(PIECE)
