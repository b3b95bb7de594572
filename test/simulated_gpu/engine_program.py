"""A user's program: `sgl.Engine` over a folder that holds nothing but config.json."""

import json
import sys
from pathlib import Path

if __name__ == "__main__":
    import sglang as sgl

    engine = sgl.Engine(
        model_path=str(Path(sys.argv[1])),
        load_format="dummy",
        skip_tokenizer_init=True,
        log_level="error",
        schedule_policy="blend",
    )
    answers = engine.generate(
        input_ids=[[i + 5] * 50 for i in range(8)],
        sampling_params=[
            {"max_new_tokens": 40, "custom_params": {"simulated_output_tokens": 10 + i}} for i in range(8)
        ],
    )
    state = engine.get_server_info()["internal_states"][0]["simulated_gpu"]
    engine.shutdown()
    lengths = [answer["meta_info"]["completion_tokens"] for answer in answers]
    print(json.dumps({"lengths": lengths, "state": state}))
