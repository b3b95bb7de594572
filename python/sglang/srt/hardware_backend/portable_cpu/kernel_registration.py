"""Hands the kernels to upstream: the backend's name to the argument parser, the rest to the workers."""

from typing import TYPE_CHECKING

from sglang.srt.blend.runtime import installer
from sglang.srt.hardware_backend.portable_cpu import hooks
from sglang.srt.hardware_backend.portable_cpu.names import ATTENTION_BACKEND, SAMPLING_BACKEND

if TYPE_CHECKING:
    from sglang.srt.hardware_backend.portable_cpu.attention_backend import PortableCpuAttnBackend
    from sglang.srt.model_executor.model_runner import ModelRunner


def add_attention_backend_choice() -> None:
    """Let ``--attention-backend portable_cpu`` pass the argument parser. Call before arguments are parsed."""
    from sglang.srt.arg_groups import choices

    if ATTENTION_BACKEND not in choices.ATTENTION_BACKEND_CHOICES:
        choices.add_attention_backend_choices([ATTENTION_BACKEND])


def register_kernels(dispatch_key: str) -> None:
    """Register attention backend, fused operators and sampler, in every worker before the model is built.

    Args:
        dispatch_key: the platform's ``get_dispatch_key_name()``.

    Raises:
        RuntimeError: this SGLang lacks a function that has to be replaced.
    """
    from sglang.srt.hardware_backend.portable_cpu.fused_ops import register_fused_ops
    from sglang.srt.hardware_backend.portable_cpu.sampler import PortableSampler
    from sglang.srt.layers.attention.attention_registry import register_attention_backend
    from sglang.srt.layers.sampler import register_sampler_backend

    register_attention_backend(ATTENTION_BACKEND)(_create_attention_backend)
    register_fused_ops(dispatch_key)
    register_sampler_backend(SAMPLING_BACKEND, PortableSampler)
    install(hooks.STEP_HOOKS)


def _create_attention_backend(runner: "ModelRunner") -> "PortableCpuAttnBackend":
    """Called once the model is loaded, so this is where its weights are packed, too."""
    from sglang.srt.hardware_backend.portable_cpu.attention_backend import PortableCpuAttnBackend

    _pack_weights_of(runner)
    return PortableCpuAttnBackend(runner)


def install(table: tuple[installer.Hook, ...]) -> None:
    """Put the platform's hooks in place.

    Raises:
        RuntimeError: naming what this SGLang lacks.
    """
    installer.install(
        table, f"--attention-backend {ATTENTION_BACKEND}: the installed SGLang has no {{target}}"
    )


def _pack_weights_of(runner: "ModelRunner") -> None:
    """Pack the loaded model's weights, now and whenever they change, and let its layers run in one call.

    Raises:
        RuntimeError: this SGLang lacks a function that updates weights.
    """
    from sglang.srt.hardware_backend.portable_cpu.packed_linear import pack_weights

    pack_weights(runner.model)
    install(hooks.decoder_hooks(runner.model) + hooks.WEIGHT_HOOKS)
