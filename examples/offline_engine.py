"""The blend policy in a Python program: `sgl.Engine`, a few prompts of two kinds, what the scheduler saw."""

import sglang as sgl
from sglang.batch.smollm2 import resolve_model_path

CONTEXT = "The museum opens at nine, closes at six, and is shut on Mondays. Children pay nothing. " * 12
QUESTIONS = ["When does it open?", "When does it close?", "On which day is it shut?", "What do children pay?"]
TASKS = ["Write a short poem about a museum at night.", "Tell the story of a lost key.", "Describe a storm."]


def main() -> None:
    prompts = [f"{CONTEXT}\nQuestion: {question}\nAnswer:" for question in QUESTIONS] + TASKS
    lengths = [12] * len(QUESTIONS) + [120] * len(TASKS)
    with sgl.Engine(
        model_path=resolve_model_path("smollm2"),
        dtype="float32",
        schedule_policy="blend",
        max_total_tokens=1024,
    ) as engine:
        answers = engine.generate(
            prompts, [{"max_new_tokens": length, "temperature": 0} for length in lengths]
        )
        state = engine.get_server_info()["internal_states"][0]["blend"]
    for prompt, answer in zip(prompts, answers, strict=True):
        cached = answer["meta_info"]["cached_tokens"]
        print(f"...{prompt[-40:]!r} ({cached} tokens cached)\n    {answer['text'].strip()[:100]!r}")
    print(f"sharing {state['sharing_achieved']:.0%}, held {state['held']} times, {state['replans']} plans")


if __name__ == "__main__":
    main()
