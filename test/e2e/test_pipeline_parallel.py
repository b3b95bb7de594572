"""Pipeline stages take the same decisions, and tokenizer processes of their own change nothing."""

from pathlib import Path

from servers import running_server
from traffic import Reference, send_chats, tokens_of


def test_two_stages_and_two_tokenizers_give_the_tokens_of_fcfs(
    llama: Path, reference: Reference, tmp_path: Path
) -> None:
    flags = ("--pp-size", "2", "--tokenizer-worker-num", "2", "--max-total-tokens", "4096")
    with running_server(llama, tmp_path / "server.log", "--schedule-policy", "blend", *flags) as server:
        assert tokens_of(send_chats(server, reference.chats[:30])) == reference.chat_tokens[:30]
        assert "Traceback" not in server.log.read_text(errors="replace")
