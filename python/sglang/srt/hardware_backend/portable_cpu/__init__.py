"""Portable CPU platform: SGLang on any CPU with nothing but packages from PyPI.

Entry point of the group ``sglang.srt.platforms``; see ``activation`` for when it is selected and
``srt_platform`` for what it answers.
"""

from sglang.srt.hardware_backend.portable_cpu.activation import activate

__all__ = ["activate"]
