"""`sglang-batch doctor`: everything that was found, and the remedies."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterable
from itertools import groupby

from sglang.batch.doctor.finding import Finding

DESCRIPTION = """\
Look at this installation and this machine without starting an engine: versions, the places in SGLang that
the package hooks into, the device and the hardware profile chosen for it, CPU kernels, limits, space and
caches. Whatever is missing is listed with its remedy. It takes as long as importing SGLang."""

EPILOG = "exit codes: 0 all well, 1 something is missing"


def add_doctor_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    parser.add_argument("--json", action="store_true", help="print JSON: well, and a list of findings")


def run(options: argparse.Namespace) -> int:
    """Print what is found; returns the exit code."""
    from sglang.batch.doctor.device import device
    from sglang.batch.doctor.machine import caches, machine
    from sglang.batch.doctor.software import hooks, versions

    findings = [*versions(), *hooks(), *device(), *machine(), *caches()]
    print(as_json(findings) if options.json else as_text(findings))
    return int(any(finding.remedy for finding in findings))


def as_text(findings: Iterable[Finding]) -> str:
    """Lay findings out for people: by section, then the remedies.

    >>> print(as_text([Finding("device", "profile", "none for 'X1'", "--blend-hardware NAME")]))
    device
    ! profile           none for 'X1'
    <BLANKLINE>
    1 thing is missing:
      profile: --blend-hardware NAME
    """
    findings, lines = list(findings), []
    for section, group in groupby(findings, key=lambda finding: finding.section):
        lines.append(section)
        lines += [f"{'!' if one.remedy else ' '} {one.name:<18}{one.value}" for one in group]
        lines.append("")
    missing = [f"  {one.name}: {one.remedy}" for one in findings if one.remedy]
    if not missing:
        return "\n".join([*lines, "all well"])
    title = "1 thing is missing:" if len(missing) == 1 else f"{len(missing)} things are missing:"
    return "\n".join([*lines, title, *missing])


def as_json(findings: Iterable[Finding]) -> str:
    """Lay findings out for machines; `remedy` is "" where all is well."""
    rows = [dataclasses.asdict(finding) for finding in findings]
    well = not any(row["remedy"] for row in rows)
    return json.dumps({"well": well, "findings": rows}, indent=2)
