"""Run by test_engine.py in a process of its own: the tokens of one engine configuration.

Reads {"engine": {...}, "prompts": [[...], ...], "sampling": {...}} from the file named first, writes the
list of answered token ids to the file named second.
"""

import json
import sys
from pathlib import Path

import sglang as sgl


def main(request_file: str, answers_file: str) -> None:
    request = json.loads(Path(request_file).read_text())
    prompts = request["prompts"]
    with sgl.Engine(**request["engine"]) as engine:
        answers = engine.generate(
            input_ids=prompts,
            sampling_params=[
                {**request["sampling"], "max_new_tokens": 16 + index % 13, "ignore_eos": True}
                for index in range(len(prompts))
            ],
        )
    Path(answers_file).write_text(json.dumps([answer["output_ids"] for answer in answers]))


if __name__ == "__main__":
    main(*sys.argv[1:])
