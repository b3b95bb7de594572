"""Two replicas on two cores: the division and the cores, without engines."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from benchmark import cpu_replicas

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "vocab_size": 32_000,
}


def test_each_replica_gets_whole_documents_and_half_of_the_prompts(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    workload = cpu_replicas.questions(32, seed=0)
    parts = cpu_replicas.divided(workload, str(tmp_path), 2)
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(workload)))
    documents = [{workload.prompt_tokens(i)[:8].tobytes() for i in part.tolist()} for part in parts]
    assert len(documents[0] & documents[1]) <= 1, "one may be cut to make the parts equal"
    assert abs(len(parts[0]) - len(parts[1])) <= cpu_replicas.QUESTIONS


def test_what_is_started_while_pinned_stays_there_and_this_process_does_not() -> None:
    before = os.sched_getaffinity(0)
    core = max(before)
    with cpu_replicas.pinned(core):
        code = "import os; print(os.sched_getaffinity(0))"
        started = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert started.stdout.strip() == str({core})
    assert os.sched_getaffinity(0) == before
