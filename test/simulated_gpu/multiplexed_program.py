"""Three requests under SGLang's PD multiplexing loop on a simulated GPU; prints one JSON object.

python multiplexed_program.py CONFIG      with SGLANG_PLATFORM=simulated_gpu
"""

import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from scenarios import known_lengths

from models import LLAMA_3_8B
from sglang.srt.hardware_backend.simulated_gpu.simulate import simulate

PROMPT, OUTPUT = np.array([1024, 1024, 2048]), np.array([40, 3, 1], np.int32)


def main() -> None:
    workload = known_lengths(
        np.random.default_rng(0).integers(3, 500, PROMPT.sum(), dtype=np.int32), PROMPT, OUTPUT
    )
    result = simulate(
        workload,
        policy="fcfs",
        engine="pdmux",
        hardware="a100-80gb",
        model_config=LLAMA_3_8B,
        max_prefill_tokens=1024,  # a batch for each
        pdmux_config_path=sys.argv[1],
    )
    columns = ("seconds", "prefill_tokens", "decode_rows", "kv_tokens")
    steps = {name: result.steps[name].tolist() for name in columns}
    print(json.dumps({"finished": result.finished.tolist(), "ended": result.seconds, **steps}))


if __name__ == "__main__":
    main()
