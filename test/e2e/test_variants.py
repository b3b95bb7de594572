"""The tokens stay those of fcfs with other caches, loops and ways to start the server."""

import sys
from pathlib import Path

import pytest

from servers import running_server
from traffic import Reference, run_program, send_chats, tokens_of

_SGLANG_SERVE = (str(Path(sys.executable).with_name("sglang")), "serve")

VARIANTS = {
    "pages-of-16-without-overlap-mixed-chunks": (
        *("--page-size", "16", "--disable-overlap-schedule", "--enable-mixed-chunk"),
        *("--max-total-tokens", "4096", "--chunked-prefill-size", "256"),
    ),
    "without-radix-cache-priorities": (
        *("--disable-radix-cache", "--enable-priority-scheduling"),
        *("--max-total-tokens", "4096"),
    ),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_sglang_serve_gives_the_tokens_of_fcfs(
    variant: str, llama: Path, reference: Reference, tmp_path: Path
) -> None:
    flags = ("--schedule-policy", "blend", *VARIANTS[variant])
    with running_server(llama, tmp_path / "server.log", *flags, command=_SGLANG_SERVE) as server:
        assert tokens_of(send_chats(server, reference.chats)) == reference.chat_tokens
        assert tokens_of(run_program(server, reference.texts)) == reference.text_tokens
        assert "Traceback" not in server.log.read_text(errors="replace")
