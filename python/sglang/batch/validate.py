"""`sglang-batch validate`: the lines of a batch checked without an engine, counted by error code."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable, Sequence

from sglang.batch.checks import Limits, Refused, check_body, check_fields
from sglang.batch.input.rows import row_format
from sglang.batch.input.source import Source, add_input, find_sources, read_sources
from sglang.batch.media import (
    MediaPolicy,
    MediaRefused,
    add_media_arguments,
    media_policy,
)
from sglang.batch.records import BatchFailure, parse_lines

SHOWN = 3
"""Bad lines of each code that are shown."""

ALL_GOOD, SOME_BAD = 0, 1
"""Exit codes, as `cli` explains them."""

USAGE = "sglang-batch validate -i FILE [--model-path MODEL [server flags]]"


def add_validate_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that are `validate`'s own."""
    add_input(parser, more=", - for standard input")
    add_media_arguments(parser)
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")


def validate(options: argparse.Namespace, server: Sequence[str]) -> int:
    """Print how many lines can be run, and why others cannot.

    Args:
        server: flags that the parser did not know. With a model among them, requests go through its chat
            template and tokenizer and SGLang's own checks; without, the fields are checked whose limits every
            model has.

    Returns:
        The exit code: what a run's would be if it answers what can be answered.

    Raises:
        BadUsage: an input cannot be read, or the model's config or tokenizer.
    """
    sources = find_sources(options.input, rows=row_format(options))
    media = media_policy(options)
    lines, bad = (
        _through_the_tokenizer(sources, server, media, quiet=options.quiet)
        if server
        else _by_fields(sources, media)
    )
    print(_text(lines, bad))
    return SOME_BAD if bad else ALL_GOOD


def _by_fields(sources: Sequence[Source], media: MediaPolicy) -> tuple[int, list[tuple[str, str]]]:
    lines, bad = 0, []
    for item in parse_lines(read_sources(sources)):
        lines += 1
        if isinstance(item, BatchFailure):
            bad.append((item.code, item.message))
            continue
        try:
            check_body(item.body)
            check_fields(item.body, Limits())
            media.check(item.body)
        except Refused as error:
            bad.append(("BadRequestError", f"line {item.line}: {error}"))
        except MediaRefused as error:
            bad.append((error.code, f"line {item.line}: {error}"))
    return lines, bad


def _through_the_tokenizer(
    sources: Sequence[Source], server: Sequence[str], media: MediaPolicy, *, quiet: bool
) -> tuple[int, list[tuple[str, str]]]:
    from sglang.batch.plan.command import read_in_a_process
    from sglang.batch.plan.schedules import simulator_processes

    with simulator_processes(1) as processes:
        prompts = read_in_a_process(processes, sources, list(server), media, quiet=quiet)
    return prompts.lines, [(line.code, line.message) for line in prompts.bad]


def _text(lines: int, bad: Iterable[tuple[str, str]]) -> str:
    messages: dict[str, list[str]] = {}
    counts: Counter[str] = Counter()
    for code, message in bad:
        counts[code] += 1
        if counts[code] <= SHOWN:
            messages.setdefault(code, []).append(message)
    rows = [f"{lines - counts.total():,} of {lines:,} lines can be run"]
    for code, count in counts.most_common():
        rows.append(f"  {code:<24} {count:,}")
        rows += [f"    {message}" for message in messages[code]]
    return "\n".join(rows)
