"""What tests of steps share."""

import pytest

from sglang.srt.blend.core.step import step as step_module


@pytest.fixture
def nobody_preemptible(monkeypatch):
    """No gain is large enough to begin where there is no room to the end."""
    monkeypatch.setattr(step_module, "PREEMPTION_GAIN", float("inf"))
