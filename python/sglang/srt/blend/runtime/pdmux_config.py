"""The file of `--pdmux-config-path`: upstream's YAML, read and written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from sglang.srt.blend.core.cost.pdmux import PdmuxConfig


def read_pdmux_config(path: str | None) -> Mapping[str, Any] | None:
    """The file's fields as `PdmuxConfig.of` takes them; None without a file.

    Raises:
        ValueError: it cannot be read, or is no mapping.
    """
    if not path:
        return None
    try:
        fields = yaml.safe_load(Path(path).read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"--pdmux-config-path {path}: cannot be read ({error})") from None
    if not isinstance(fields, Mapping):
        raise ValueError(f"--pdmux-config-path {path}: not a mapping of names to values")
    return fields


def write_pdmux_config(path: Path, config: PdmuxConfig, comment: str = "") -> None:
    """Write a config that `--pdmux-config-path` takes.

    Args:
        comment: lines that are put above it.

    Raises:
        OSError: the file cannot be written.
    """
    head = "".join(f"# {line}\n" for line in comment.splitlines())
    path.write_text(head + yaml.safe_dump(config.raw(), default_flow_style=None, sort_keys=False))


def pdmux_problems(server_args: Any) -> list[str]:
    """What SGLang refuses, or later fails over, beside --enable-pdmux, each with its remedy.

    Args:
        server_args: upstream's record as it was given, not resolved yet.
    """
    if not server_args.enable_pdmux:
        return []
    wrong = {
        "add --chunked-prefill-size -1: a prefill batch passes the layers whole": (
            server_args.chunked_prefill_size != -1
        ),
        "add --disable-overlap-schedule: its loop schedules in step with the GPU": (
            not server_args.disable_overlap_schedule
        ),
        "drop --pp-size, or take --tp-size: layers cannot be spread over pipeline stages": (
            server_args.pp_size != 1
        ),
        "drop --disaggregation-mode: prefill and decode share one GPU instead": (
            server_args.disaggregation_mode != "null"
        ),
    }
    found = [remedy for remedy, needed in wrong.items() if needed]
    try:
        fields = read_pdmux_config(server_args.pdmux_config_path) or {}
    except ValueError as error:
        return [*found, str(error)]
    thresholds = [division[2] for division in fields.get("manual_divisions") or ()]
    if min(thresholds, default=0) > 1:
        found.append(
            f"give one of manual_divisions in {server_args.pdmux_config_path} 1 as its third number, the "
            "threshold: SGLang fails where fewer requests decode than every threshold"
        )
    return found


def refuse_pdmux_problems(server_args: Any) -> None:
    """Refuse what `pdmux_problems` finds before anything is loaded.

    Raises:
        ValueError: with every remedy.
    """
    found = pdmux_problems(server_args)
    if found:
        raise ValueError(f"--enable-pdmux: {'; '.join(found)}")
