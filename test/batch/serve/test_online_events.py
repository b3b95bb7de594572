"""Server-sent events of a stream, put together from whatever pieces the connection makes of them."""

import pytest

from sglang.batch.records import Usage
from sglang.batch.serve.online import _Events


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_events_are_whole_however_they_arrive(size: int) -> None:
    usage = b'data: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":2}}\n\n'
    text = b'data: {"choices":[{"text":"\\"usage\\""}],"usage":null}\n\n: note\n\n' + usage + b"data: [DONE]"
    for wanted in (False, True):
        seen: list[bytes] = []
        events = _Events(seen.append, wanted=wanted)
        for at in range(0, len(text), size):
            events(text[at : at + size])
        assert events.usage == Usage(prompt=5, completion=2)
        events.end()
        assert b"".join(seen) == (text + b"\n\n").replace(b"" if wanted else usage, b"")
