"""Which lines of a batch ask for the same answer, as a hash."""

from __future__ import annotations

import msgspec

from sglang.batch.records import BatchRequest, digest, parse_line

IGNORED = frozenset(
    {
        "metadata",
        "prompt_cache_key",
        "rid",
        "safety_identifier",
        "service_tier",
        "store",
        "temperature",
        "user",
    }
)
"""Fields of a body that do not decide its answer. SGLang reads none of them but `rid`, which a batch
replaces, and `temperature`, which is in the key as a number."""


def answer_key(raw: bytes) -> bytes | None:
    """Hash what decides the answer of a line that asks for the same one each time, 16 bytes.

    Such a line has `"temperature": 0` or an integer `seed`. A body with neither is left to the model's own
    sampling defaults, which need not be greedy. The order of fields does not count.

    Args:
        raw: the line without what surrounds it.

    Returns:
        None for other lines, and for those that cannot be run.
    """
    if b'"temperature"' not in raw and b'"seed"' not in raw:
        return None  # spares most lines the parser
    request = parse_line(0, raw)
    if not isinstance(request, BatchRequest):
        return None
    temperature, seed = request.body.get("temperature"), request.body.get("seed")
    if temperature == 0 and not isinstance(temperature, bool):
        temperature = 0  # 0, 0.0 and -0.0 are one number
    elif type(seed) is not int:
        return None
    deciding = {name: value for name, value in request.body.items() if name not in IGNORED}
    try:
        return digest(msgspec.json.encode([request.url, temperature, deciding], order="deterministic"))
    except (msgspec.MsgspecError, OverflowError, RecursionError, ValueError):
        return None
