"""Signals that an engine's processes leave to the runner."""

import signal

IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""A terminal or a service manager may send them to every process; what they mean is decided in one place."""
