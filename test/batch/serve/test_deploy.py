"""What `deploy/` holds is well formed and fits the service; none of it is run here."""

import argparse
import importlib.metadata
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from sglang.batch.run.arguments import add_run_arguments
from sglang.batch.run.ray_replicas.arguments import check_ray
from sglang.batch.serve.arguments import add_serve_arguments

DEPLOY = Path(__file__).parents[3] / "deploy"
BIN = Path(sys.executable).parent

HARMLESS = {"ExecNotFound", "Delegate", "UMaskOW"}
"""What the linter says of any unit whose program is not installed; and a umask of 0077 is open to it."""


def lint(*command: str) -> str:
    done = subprocess.run([str(BIN / command[0]), *command[1:]], capture_output=True, text=True, timeout=120)
    return done.stdout + done.stderr


def known_flags() -> set[str]:
    parser = argparse.ArgumentParser()
    add_serve_arguments(parser)
    return set(parser._option_string_actions) | {"--model-path"}


def test_the_dockerfile_is_clean() -> None:
    assert lint("hadolint", "--no-color", str(DEPLOY / "Dockerfile")) == ""


def test_the_unit_is_clean() -> None:
    found = re.findall(r"\[(?:\w+\.)?(\w+)\]", lint("systemdlint", str(DEPLOY / "sglang-batch.service")))
    assert set(found) <= HARMLESS


def test_the_manifest_is_valid_and_has_one_replica() -> None:
    said = lint("kubernetes-validate", "--strict", str(DEPLOY / "kubernetes.yaml"))
    assert said.count("passed for resource") == 4, said
    parts: dict[str, Any] = {
        part["kind"]: part for part in yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())
    }
    assert parts["StatefulSet"]["spec"]["replicas"] == 1
    (container,) = parts["StatefulSet"]["spec"]["template"]["spec"]["containers"]
    assert {flag for flag in container["args"] if flag.startswith("--")} <= known_flags()


def test_the_ray_job_has_valid_pods_and_flags_that_exist(tmp_path: Path) -> None:
    claim, job = yaml.safe_load_all((DEPLOY / "kuberay.yaml").read_text())
    cluster = job["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    # Kubernetes itself knows nothing of a RayJob: of that, the pods are checked.
    kind = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "pod"}}
    pods = [kind | {"template": group["template"]} for group in groups]
    (tmp_path / "parts.yaml").write_text(yaml.safe_dump_all([claim, *pods]))
    said = lint("kubernetes-validate", "--strict", str(tmp_path / "parts.yaml"))
    assert said.count("passed for resource") == 3, said
    assert cluster["rayVersion"] == importlib.metadata.version("ray")
    program, command, *rest = job["spec"]["entrypoint"].split()
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_run_arguments(parser)
    options, server = parser.parse_known_args(rest)
    assert (program, command, server[0]) == ("sglang-batch", "run", "--model-path")
    ray = check_ray(options)
    assert ray is not None
    assert ray.most == cluster["workerGroupSpecs"][0]["maxReplicas"]


def test_flags_that_are_written_there_exist() -> None:
    unit = (DEPLOY / "sglang-batch.service").read_text()
    docker = (DEPLOY / "Dockerfile").read_text()
    start = re.search(r"^ExecStart=.*$", unit, re.MULTILINE)
    entry = re.search(r"^ENTRYPOINT (.*)$", docker, re.MULTILINE)
    assert start is not None
    assert entry is not None
    used = set(re.findall(r"--[\w-]+", start[0])) | {
        flag for flag in json.loads(entry[1]) if flag.startswith("--")
    }
    assert used
    assert used <= known_flags()
