"""Simulated GPU: SGLang's real scheduler over a device that only tells how long each step would take.

Entry point of the group ``sglang.srt.platforms``, selected by ``SGLANG_PLATFORM=simulated_gpu`` and never
otherwise. Scheduler, policies, radix cache and KV accounting are upstream's, at the modelled GPU's
capacity; no weights are loaded, no KV cache is stored, no forward pass runs. ``simulate`` runs a
workload in this process; ``sgl.Engine`` programs and servers run too.
"""

from sglang.srt.hardware_backend.simulated_gpu.activation import activate

__all__ = ["activate"]
