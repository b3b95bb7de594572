"""Run by test_engine.py in a process of its own: generate from token ids with sgl.Engine under blend.

Reads a JSON list of {"input_ids": [...], "max_new_tokens": n} from the file named first; writes the list
of answered token ids to the file named second. The third argument is the model's folder.
"""

import json
import sys
from pathlib import Path

import sglang as sgl


def main(requests_file: str, answers_file: str, model: str) -> None:
    requests = json.loads(Path(requests_file).read_text())
    with sgl.Engine(
        model_path=model, schedule_policy="blend", dtype="float32", max_total_tokens=4096, log_level="error"
    ) as engine:
        answers = engine.generate(
            input_ids=[request["input_ids"] for request in requests],
            sampling_params=[
                {"temperature": 0, "max_new_tokens": request["max_new_tokens"]} for request in requests
            ],
        )
    Path(answers_file).write_text(json.dumps([answer["output_ids"] for answer in answers]))


if __name__ == "__main__":
    main(*sys.argv[1:])
