"""The names under which users choose this platform's parts."""

ATTENTION_BACKEND = "portable_cpu"
SAMPLING_BACKEND = "pytorch"
"""Upstream's name for CPUs, so that its rules for this choice hold for ours."""
