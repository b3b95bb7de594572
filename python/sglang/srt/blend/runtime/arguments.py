"""The `--blend-*` flags of `--schedule-policy blend`, from every way in which SGLang takes arguments.

Upstream's ``ServerArgs`` is a sealed record that cannot get new fields, but it carries bookkeeping
attributes (leading underscore) to every process it is pickled into. Our options travel as one of them.
"""

from __future__ import annotations

import argparse
import dataclasses
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from sglang.srt.blend.core.cost.engines import engine_names
from sglang.srt.blend.core.cost.hardware import hardware_names, load_hardware

POLICY = "blend"
"""Value of --schedule-policy."""

_ATTRIBUTE = "_blend_options"
_PREFIX = "blend_"

ServerArgs = TypeVar("ServerArgs")
"""Upstream's record of server arguments, which carries no types."""

Check = Callable[[object], str | None]
"""What is wrong with an option's value, in words; None if nothing is."""


@dataclass(frozen=True, slots=True)
class BlendOptions:
    """What the user may choose; every field is the flag ``--blend-<name>``.

    Attributes:
        hardware: name or file of the profile for the cost model; ``auto`` asks the device.
        sample_fraction: share of the requests of unknown output length that run first at least, in [0, 1].
        sharing_budget: share of the possible prefix sharing that reordering must keep, in [0, 1].
        replan_interval: completed requests after which what waits is planned anew, at least 1.
        window: requests planned together, in order of arrival; 0 plans all that wait.
        patience: admissions, per request that waited, after which those that were passed over go first.
        engine: how a pass combines prefill and decode; ``auto`` follows the server's own flags.
        measure: ``on`` corrects the hardware profile by what steps take, ``off`` takes it as it is.
        admission_log: file that gets one JSON line per prefill step; None writes none.

    Raises:
        ValueError: a value is impossible; the message names flag, value and remedy.
    """

    hardware: str = "auto"
    sample_fraction: float = 0.01
    sharing_budget: float = 0.99
    replan_interval: int = 256
    window: int = 0
    patience: float = 4.0
    engine: str = "auto"
    measure: str = "on"
    admission_log: str | None = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            problem = _CHECKS[field.name](getattr(self, field.name)) if field.name in _CHECKS else None
            if problem:
                raise ValueError(f"{flag(field.name)} {getattr(self, field.name)!r}: {problem}")


_HELP = {
    "hardware": "Hardware profile for the planner's cost model: auto (from the device), "
    f"{', '.join(hardware_names())}, or a .toml file with flops, bandwidth and memory.",
    "sample_fraction": "Share of the requests of unknown output length that run first at least, so that "
    "their answers tell how long the others will be.",
    "sharing_budget": "Share of the possible prefix sharing that reordering must keep.",
    "replan_interval": "Completed requests after which the waiting requests are planned anew.",
    "window": "Plan only among this many requests in order of arrival and drain them before the next; "
    "0 plans all that wait.",
    "patience": "Bound on waiting: after this many admissions for each request that waited, those that were "
    "passed over go first, in order of arrival; inf never.",
    "engine": "How the engine combines prefill and decode: alternating; mixed, where prefill is spread over "
    "the decode steps that are left; pdmux, where prefill batches are made to last as long as decode steps "
    "beside them; overlapped (NanoFlow-like; not in upstream). auto is pdmux with --enable-pdmux, mixed with "
    "--enable-mixed-chunk, else alternating.",
    "measure": "on: step times correct the hardware profile while the server runs, so that a wrong one costs "
    "little. off: the profile is taken as it is, and decisions are the same in every run.",
    "admission_log": "Append one JSON line per prefill step (who was admitted from which side, memory "
    "used and partition) to this file; for analysis.",
}


def _between_zero_and_one(value: object) -> str | None:
    ok = isinstance(value, (int, float)) and not isinstance(value, bool) and 0.0 <= value <= 1.0
    return None if ok else "must be a number from 0 to 1"


def _at_least(minimum: int) -> Check:
    def check(value: object) -> str | None:
        ok = isinstance(value, int) and not isinstance(value, bool) and value >= minimum
        return None if ok else f"must be an integer of at least {minimum}"

    return check


def _not_negative(value: object) -> str | None:
    ok = isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0
    return None if ok else "must be a number of at least 0"


def _known_engine(value: object) -> str | None:
    names = ("auto", *engine_names())
    return None if value in names else f"unknown; choose one of {', '.join(names)}"


def _on_or_off(value: object) -> str | None:
    return None if value in ("on", "off") else "must be on or off"


def _known_hardware(value: object) -> str | None:
    if value == "auto":
        return None
    try:
        load_hardware(str(value))
    except ValueError as error:
        return f"{str(error).split(': ', 1)[-1]}, or 'auto'"
    return None


_CHECKS: dict[str, Check] = {
    "hardware": _known_hardware,
    "sample_fraction": _between_zero_and_one,
    "sharing_budget": _between_zero_and_one,
    "replan_interval": _at_least(1),
    "window": _at_least(0),
    "patience": _not_negative,
    "engine": _known_engine,
    "measure": _on_or_off,
}


def flag(name: str) -> str:
    """The option's spelling on the command line.

    >>> flag("sharing_budget")
    '--blend-sharing-budget'
    """
    return "--" + (_PREFIX + name).replace("_", "-")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Give the parser the ``--blend-*`` flags as a group of their own, unless it has them."""
    if any(group.title == "blend" for group in parser._action_groups):
        return
    group = parser.add_argument_group(POLICY, "Options of --schedule-policy blend.")
    for field in dataclasses.fields(BlendOptions):
        group.add_argument(
            flag(field.name),
            dest=_PREFIX + field.name,
            type=_parser(field.name, type(field.default)),
            default=field.default,
            metavar="FILE" if field.name == "admission_log" else field.name.rpartition("_")[2].upper(),
            help=f"{_HELP[field.name]} Default: {'off' if field.default is None else field.default}.",
        )


def _parser(name: str, kind: type) -> Callable[[str], object]:
    """An argparse type that converts and checks, so that argparse reports one line with the flag."""
    convert = kind if kind in (int, float) else str

    def parse(text: str) -> object:
        try:
            value: object = convert(text)
        except ValueError:
            value = text
        problem = _CHECKS[name](value) if name in _CHECKS else None
        if problem:
            raise argparse.ArgumentTypeError(f"{text!r}: {problem}")
        return value

    return parse


def offer_policy(server_args_class: type) -> None:
    """Let upstream's --schedule-policy accept ``blend``; harmless when called again."""
    annotation = typing.get_type_hints(server_args_class, include_extras=True)["schedule_policy"]
    choices = next(extra.choices for extra in annotation.__metadata__ if getattr(extra, "choices", None))
    if POLICY not in choices:
        choices.append(POLICY)


def set_options(server_args: object, options: BlendOptions) -> None:
    """Attach options to a record of server arguments; they follow it into child processes."""
    setattr(server_args, _ATTRIBUTE, options)


def get_options(server_args: object) -> BlendOptions:
    """The options attached to a record of server arguments; the defaults where none were given."""
    options: BlendOptions = getattr(server_args, _ATTRIBUTE, None) or BlendOptions()
    return options


def options_from(values: Mapping[str, Any]) -> BlendOptions:
    """The options among values by name; names without ``blend_`` before them are ignored.

    >>> options_from({"blend_window": 512, "port": 30000}).window
    512

    Raises:
        ValueError: a value is impossible; the message names flag, value and remedy.
    """
    names = {field.name for field in dataclasses.fields(BlendOptions)}
    return BlendOptions(**{name: values[_PREFIX + name] for name in names if _PREFIX + name in values})


def server_args_factory(server_args_class: Callable[..., ServerArgs]) -> Callable[..., ServerArgs]:
    """Constructor for ``Engine(**kwargs)`` that also takes ``blend_*`` keyword arguments.

    The result raises TypeError for an unknown ``blend_*`` name, ValueError for a bad value.
    """

    def create(**kwargs: object) -> ServerArgs:
        ours = {name: kwargs.pop(name) for name in list(kwargs) if name.startswith(_PREFIX)}
        known = {_PREFIX + field.name for field in dataclasses.fields(BlendOptions)}
        unknown = sorted(set(ours) - known)
        if unknown:
            raise TypeError(f"{unknown[0]}: no such option; choose among {', '.join(sorted(known))}")
        server_args = server_args_class(**kwargs)
        set_options(server_args, options_from(ours))
        return server_args

    create.accepts_blend_options = True  # type: ignore[attr-defined]
    return create


def attention_groups(server_args: Any) -> int:
    """Groups of ranks that each run attention for requests of their own (`--attn-dp-size`).

    Until upstream has resolved its arguments, the old spelling counts them with `--dp-size`.
    """
    if server_args.attn_dp_size == 1 and server_args.enable_dp_attention:
        return int(server_args.dp_size)
    return int(server_args.attn_dp_size)


def rank_count(server_args: Any) -> int:
    """Ranks over all nodes, each a scheduler process with a device of its own."""
    replicas = server_args.dp_size if attention_groups(server_args) == 1 else 1
    return int(server_args.tp_size * server_args.pp_size * replicas)


def why_not(server_args: Any) -> str | None:
    """Why replicas get their requests as upstream deals them; None where they do not, or there is one."""
    if server_args.schedule_policy != POLICY:
        return None
    if attention_groups(server_args) > 1:
        return (
            "--attn-dp-size (--enable-dp-attention): its ranks run every step together, for which no pool is"
            " divided; requests go to them in turns"
        )
    if server_args.dp_size > 1 and server_args.load_balance_method not in ("auto", "round_robin"):
        return f"--load-balance-method {server_args.load_balance_method} decides where requests go"
    return None
