"""What the command line shows and refuses."""

import dataclasses
import subprocess
import sys

import pytest

from sglang.srt.blend.runtime.arguments import BlendOptions, flag


@pytest.fixture(scope="module")
def help_text() -> str:
    return subprocess.run(
        [sys.executable, "-m", "sglang.launch_server", "--help"],
        capture_output=True,
        text=True,
        check=True,
        timeout=480,
    ).stdout


def test_help_offers_the_policy(help_text: str) -> None:
    start = help_text.index("--schedule-policy")
    assert "blend" in help_text[start : start + 300]


@pytest.mark.parametrize("option", dataclasses.fields(BlendOptions), ids=lambda option: option.name)
def test_help_explains_every_blend_flag_with_its_default(help_text: str, option: dataclasses.Field) -> None:
    start = help_text.index(flag(option.name), help_text.index("Options of --schedule-policy blend"))
    explanation = " ".join(help_text[start:].split(" --blend-")[0].split())
    default = "off" if option.default is None else option.default
    assert explanation.endswith(f"Default: {default}.")


def test_an_unknown_policy_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sglang.launch_server", "--model-path", "x", "--schedule-policy", "blender"],
        capture_output=True,
        text=True,
        timeout=480,
    )
    assert done.returncode != 0
    assert "blend" in done.stderr
