"""What is measured: engines, policies and their options, and how a worker for each is started."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmark.offline.machine import best_dtype
from benchmark.offline.protocol import Worker

from sglang.batch.smollm2 import resolve_model_path

POLICIES = ("fcfs", "lpm", "dfs-weight", "lof", "random", "blend")
CONTEXT = 4096
"""Longest request of the workloads at full length, tokens."""


@dataclass(frozen=True, slots=True)
class Configuration:
    """One engine with one set of options, and the order in which it gets the requests.

    Attributes:
        policy: SGLang's --schedule-policy; "vllm" for vLLM.
        mixed_chunk: prefill chunks and decode rows share steps (vLLM always does that).
        depth_first: requests come in the order of a depth-first walk of their prefix tree, not shuffled.
        paced: blend spreads prefill over the mixed steps (--blend-engine auto) instead of filling memory.
    """

    policy: str
    mixed_chunk: bool = False
    depth_first: bool = False
    paced: bool = False

    @property
    def name(self) -> str:
        options = {"mixed chunk": self.mixed_chunk, "paced": self.paced, "DFS order": self.depth_first}
        return ", ".join([self.policy, *(option for option, given in options.items() if given)])


def variants(policy: str, mixed_chunk: bool) -> list[Configuration]:
    """A policy with or without mixed chunk, in all ways that may be its best."""
    configurations = [Configuration(policy, mixed_chunk)]
    if policy == "blend" and mixed_chunk:
        configurations.append(Configuration(policy, mixed_chunk, paced=True))
    return configurations


@dataclass(frozen=True, slots=True)
class Setting:
    """What all engines have in common.

    Attributes:
        model_path: folder of the checkpoint.
        dtype: the fastest on this machine.
        kv_tokens: KV capacity.
        threads: cores that compute.
        hardware: blend's profile.
        context: longest request, tokens; an engine refuses a cache that does not hold one.
        vllm_python: interpreter of vLLM's environment, None to leave vLLM out.
    """

    model_path: str
    dtype: str
    kv_tokens: int
    threads: int
    hardware: str = "auto"
    context: int = CONTEXT
    vllm_python: str | None = None

    @classmethod
    def of(cls, arguments: argparse.Namespace, *, kv_tokens: int) -> Setting:
        """What `add_machine_arguments` has read, with a cache of so many tokens."""
        return cls(
            model_path=resolve_model_path(arguments.model_path),
            dtype=best_dtype() if arguments.dtype == "auto" else arguments.dtype,
            kv_tokens=kv_tokens,
            threads=arguments.threads,
        )

    def record(self) -> dict[str, Any]:
        """For results that leave this machine: files by their names alone."""
        return {
            **asdict(self),
            "model_path": Path(self.model_path).name,
            "hardware": Path(self.hardware).name,
            "vllm_python": self.vllm_python and Path(self.vllm_python).name,
        }


def sglang_options(configuration: Configuration, setting: Setting) -> dict[str, Any]:
    """Keyword arguments of `sgl.Engine`."""
    options: dict[str, Any] = {
        "model_path": setting.model_path,
        "device": "cpu",
        "dtype": setting.dtype,
        # The kernels take a 16-bit cache beside float32 weights: half of the memory to read.
        "kv_cache_dtype": "bf16" if setting.dtype == "float32" else "auto",
        "max_total_tokens": setting.kv_tokens,
        "context_length": setting.context,
        "schedule_policy": configuration.policy,
        "enable_mixed_chunk": configuration.mixed_chunk,
        "skip_tokenizer_init": True,
        "random_seed": 0,
        "log_level": "error",
    }
    if configuration.policy == "blend":
        options["blend_hardware"] = setting.hardware
        options["blend_engine"] = "auto" if configuration.paced else "alternating"
    return options


def start_worker(configuration: Configuration, setting: Setting, log: Path) -> Worker:
    """A worker that is starting; wait for its `ready`."""
    if configuration.policy == "vllm":
        assert setting.vllm_python is not None
        options = {
            "model_path": setting.model_path,
            "dtype": setting.dtype,
            "kv_capacity": setting.kv_tokens,
            "context_length": setting.context,
        }
        # All cores, as SGLang: by itself vLLM leaves one to its other processes.
        environment = {
            "VLLM_CPU_OMP_THREADS_BIND": _cores(setting),
            "OMP_NUM_THREADS": str(setting.threads),
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
        }
        command = [setting.vllm_python, "-m", "benchmark.offline.vllm_worker", json.dumps(options)]
        return Worker(command, log, environment)
    return start_sglang(sglang_options(configuration, setting), setting, log, SGLANG_CPU_KERNELS="require")


def start_sglang(options: dict[str, Any], setting: Setting, log: Path, **environment: str) -> Worker:
    """A worker with an `sgl.Engine` on the portable_cpu platform, starting.

    Args:
        environment: further variables of the engine's processes.
    """
    command = [sys.executable, "-m", "benchmark.offline.sglang_worker", json.dumps(options)]
    ours = {
        "SGLANG_PLATFORM": "portable_cpu",
        "OMP_NUM_THREADS": str(setting.threads),
        "HF_HUB_OFFLINE": "1",
        "PYTHONWARNINGS": "ignore",
    }
    return Worker(command, log, {**ours, **environment})


def _cores(setting: Setting) -> str:
    """The first cores, as OpenMP bindings name them."""
    return ",".join(map(str, range(setting.threads)))
