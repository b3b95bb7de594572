"""Workloads from files that people have: lengths, block hashes, conversations, batch files, and SGLang's own.

Files of lengths and of block hashes hold no text, so tokens are made up: equal blocks get equal tokens,
everything else differs. Files of text are tokenised by the function passed in.

Raises, all of them, a ValueError that names file, line and what is wrong.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from benchmark.workloads.traces import VOCABULARY
from numpy.typing import ArrayLike, NDArray

from sglang.srt.blend.core.pool.workload import Workload

Encode = Callable[[str], Sequence[int]]
"""Text to token ids, without special tokens."""

EncodeChat = Callable[[list[dict[str, Any]]], Sequence[int]]
"""OpenAI messages to token ids: a tokenizer's chat template."""

MOONCAKE_BLOCK = 512  # tokens per hash id


def load_lengths(path: str | Path, *, limit: int | None = None, seed: int = 0) -> Workload:
    """CSV with the columns input_tokens and output_tokens, prompts of random tokens without sharing."""
    prompt, output = [], []
    with Path(path).open(newline="") as file:
        for line, row in enumerate(csv.DictReader(file), start=2):
            try:
                prompt.append(int(row["input_tokens"]))
                output.append(max(int(row["output_tokens"]), 1))
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(
                    f"{path}:{line}: needs numbers input_tokens, output_tokens: {error}"
                ) from None
            if len(prompt) == limit:
                break
    tokens = np.random.default_rng(seed).integers(1000, VOCABULARY, sum(prompt), dtype=np.int32)
    return _workload(Path(path).stem, tokens, prompt, output)


def load_mooncake(
    path: str | Path, *, limit: int | None = None, block: int = MOONCAKE_BLOCK, seed: int = 0
) -> Workload:
    """Mooncake trace: JSON lines with input_length, output_length and hash_ids, one id per block of tokens.

    Equal ids are equal blocks. The last block of a prompt may be shorter.
    """
    prompt, output, tokens = [], [], []
    for line, row in _json_lines(path):
        try:
            length, ids = int(row["input_length"]), list(row["hash_ids"])
            output.append(max(int(row["output_length"]), 1))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}:{line}: needs input_length, output_length, hash_ids: {error}") from None
        if len(ids) * block < length:
            raise ValueError(f"{path}:{line}: {len(ids)} blocks of {block} do not cover {length} tokens")
        blocks = [np.random.default_rng([seed, i]).integers(1000, VOCABULARY, block) for i in ids]
        tokens.append(np.concatenate(blocks)[:length] if length else np.zeros(0, np.int64))
        prompt.append(length)
        if len(prompt) == limit:
            break
    return _workload(Path(path).stem, np.concatenate(tokens or [np.zeros(0)]), prompt, output)


def load_sharegpt(path: str | Path, encode: Encode, *, limit: int | None = None) -> Workload:
    """ShareGPT JSON: the first human turn is the prompt, the answer to it gives the output length.

    Conversations without such a pair are left out, as SGLang's benchmark does.
    """
    try:
        conversations = json.loads(Path(path).read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}:{error.lineno}: not JSON: {error.msg}") from None
    prompts, output = [], []
    for conversation in conversations:
        turns = conversation.get("conversations") or conversation.get("conversation") or []
        if len(turns) < 2:
            continue
        question, answer = (encode(turn["value"]) for turn in turns[:2])
        if len(question) and len(answer):
            prompts.append(question)
            output.append(len(answer))
        if len(prompts) == limit:
            break
    return _texts(Path(path).stem, prompts, output, output)


def load_openai_batch(
    path: str | Path,
    encode: Encode,
    encode_chat: EncodeChat,
    *,
    output_tokens: int,
    limit: int | None = None,
) -> Workload:
    """OpenAI Batch input: chat and text completions.

    Args:
        output_tokens: assumed length of an answer, less where max_tokens caps it: a batch does not say
            how long its answers will be.
    """
    prompts, output, caps = [], [], []
    for line, row in _json_lines(path):
        body = row.get("body") or {}
        if "messages" in body:
            prompts.append(encode_chat(body["messages"]))
        elif isinstance(body.get("prompt"), str):
            prompts.append(encode(body["prompt"]))
        else:
            raise ValueError(f"{path}:{line}: body has neither messages nor a prompt string")
        cap = int(body.get("max_completion_tokens") or body.get("max_tokens") or max(output_tokens, 1))
        caps.append(cap)
        output.append(max(min(output_tokens, cap), 1))
        if len(prompts) == limit:
            break
    return _texts(Path(path).stem, prompts, output, caps)


def load_sglang_dataset(flags: Sequence[str], tokenizer: Any) -> Workload:
    """A dataset of SGLang's own benchmarks, by the flags of `python -m sglang.benchmark.offline_throughput`.

    Seeded by its --seed; answers are as long as the dataset says.

    Args:
        flags: such as ["--dataset-name", "generated-shared-prefix", "--gsp-num-groups", "8"].
        tokenizer: Hugging Face tokenizer of the model.
    """
    # Local: importing SGLang's benchmarks takes seconds, and no other loader needs them.
    from sglang.benchmark.datasets import get_dataset
    from sglang.benchmark.offline_throughput import BenchArgs

    parser = argparse.ArgumentParser(prog="load_sglang_dataset", exit_on_error=False)
    BenchArgs.add_cli_args(parser)
    arguments = BenchArgs.from_cli_args(parser.parse_args(list(flags)))
    random.seed(arguments.seed)
    np.random.seed(arguments.seed)  # noqa: NPY002  upstream draws from the global generator
    prompts, output = [], []
    for number, row in enumerate(get_dataset(arguments, tokenizer)):
        if isinstance(row.prompt, str) and not row.image_data:
            prompts.append(tokenizer.encode(row.prompt))
        elif isinstance(row.prompt, list) and all(isinstance(token, int) for token in row.prompt):
            prompts.append(row.prompt)
        else:
            raise ValueError(f"{arguments.dataset_name}: row {number} is neither a text nor token ids")
        output.append(max(row.output_len, 1))
    return _texts(arguments.dataset_name, prompts, output, output)


def _json_lines(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with Path(path).open() as file:
        for line, text in enumerate(file, start=1):
            if not text.strip():
                continue
            try:
                row = json.loads(text)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}:{line}: not JSON: {error.msg}") from None
            if not isinstance(row, dict):
                raise ValueError(f"{path}:{line}: not a JSON object")
            yield line, row


def _texts(name: str, prompts: list[Sequence[int]], output: ArrayLike, caps: ArrayLike) -> Workload:
    tokens = np.concatenate([np.asarray(prompt, np.int32) for prompt in prompts] or [np.zeros(0, np.int32)])
    return _workload(name, tokens, [len(prompt) for prompt in prompts], output, caps)


def _workload(
    name: str, tokens: NDArray[Any], prompt: ArrayLike, output: ArrayLike, caps: ArrayLike | None = None
) -> Workload:
    lengths = np.asarray(output, np.int32)
    n = len(lengths)
    return Workload(
        tokens=np.asarray(tokens, np.int32),
        offsets=np.concatenate([[0], np.cumsum(np.asarray(prompt, np.int64))]),
        output=lengths,
        max_new_tokens=lengths if caps is None else np.asarray(caps, np.int32),
        known=np.zeros(n, np.bool_),
        source=np.zeros(n, np.int16),
        names=(name,),
    )
