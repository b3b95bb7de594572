"""What the command line shows and refuses."""

import subprocess
import sys

import pytest


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


@pytest.mark.parametrize(
    "flag", ["hardware", "sample-fraction", "sharing-budget", "replan-interval", "window"]
)
def test_help_explains_every_blend_flag_with_its_default(help_text: str, flag: str) -> None:
    start = help_text.index(f"--blend-{flag}", help_text.index("options:"))
    assert "default" in help_text[start : start + 600].lower()


def test_an_unknown_policy_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sglang.launch_server", "--model-path", "x", "--schedule-policy", "blender"],
        capture_output=True,
        text=True,
        timeout=480,
    )
    assert done.returncode != 0
    assert "blend" in done.stderr
