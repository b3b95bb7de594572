"""sgl.Engine(schedule_policy="blend") in a Python program."""

import json
import os
import subprocess
import sys
from pathlib import Path

from transformers import AutoTokenizer

from traffic import Reference


def test_the_engine_gives_the_tokens_of_an_fcfs_server(
    llama: Path, reference: Reference, tmp_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(llama)
    requests = [
        {
            "input_ids": tokenizer.apply_chat_template(
                chat.body()["messages"], add_generation_prompt=True, return_dict=False
            ),
            "max_new_tokens": chat.max_tokens,
        }
        for chat in reference.chats
    ]
    (tmp_path / "requests.json").write_text(json.dumps(requests))
    subprocess.run(
        [sys.executable, str(Path(__file__).with_name("engine_script.py"))]
        + [str(tmp_path / "requests.json"), str(tmp_path / "answers.json"), str(llama)],
        check=True,
        timeout=600,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    answers = json.loads((tmp_path / "answers.json").read_text())
    assert [tuple(answer) for answer in answers] == reference.chat_tokens
