"""Two tensor-parallel ranks take the same decisions: a difference would mix up or stop their batches."""

from pathlib import Path

from servers import running_server
from traffic import Reference, send_chats, tokens_of


def test_two_ranks_give_the_tokens_of_fcfs(llama: Path, reference: Reference, tmp_path: Path) -> None:
    flags = ("--schedule-policy", "blend", "--tp-size", "2", "--max-total-tokens", "4096")
    with running_server(llama, tmp_path / "server.log", *flags) as server:
        assert tokens_of(send_chats(server, reference.chats[:30])) == reference.chat_tokens[:30]
        assert "Traceback" not in server.log.read_text(errors="replace")
