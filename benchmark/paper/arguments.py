"""Arguments that several tables have."""

from __future__ import annotations

import argparse


def at_least_one(text: str) -> int:
    """Argument type: a whole number, 1 or more."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return number


def add_jobs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--jobs", type=at_least_one, default=1, help="simulations at a time, about 3 GB each")
