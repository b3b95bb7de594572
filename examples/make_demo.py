"""Writes `demo.jsonl`: forty chat requests of the three kinds that a batch tends to mix.

* classify: one long few-shot prefix shared by sixteen short messages; a one-word answer.
  Almost pure prefix sharing: compute once, reuse sixteen times.
* document: six long documents, two questions each, short answers. Compute-intensive.
* write: twelve short prompts with long answers. Memory-intensive: decoding re-reads the KV cache.

They are interleaved, as requests from different users would be. All texts were written for this example.
"""

import json
from pathlib import Path

HERE = Path(__file__).parent

MESSAGES = [
    "The heating in our room cannot be turned down and it is far too warm.",
    "Do you have a double room with a view of the lake for the second week of May?",
    "Please send me the invoice again, the attachment could not be opened.",
    "There is sand in our bed and the sheets look as if they were not changed.",
    "Is the soup of the day suitable for vegetarians?",
    "We arrive at midnight instead of at six. Please keep the room for us.",
    "The lift has stopped between the second and the third floor again.",
    "My deposit should have been returned two weeks ago.",
    "Could somebody bring two more pillows to room 21?",
    "At what time does breakfast end on Saturdays?",
    "The lamp over the desk flickers so much that I cannot read.",
    "I want to move our stay from the fourth to the eleventh of June.",
    "You took the price of the large room although we slept in the small one.",
    "I forgot my reading glasses on the window sill of room 5.",
    "Can dinner be served in our room tonight? My wife has hurt her foot.",
    "The window does not close and it has rained onto the floor.",
]

QUESTIONS = {
    "lighthouse": [
        "What was the name of the barge that carried the granite blocks?",
        "For how many days could no boat land in the winter of 1886?",
    ],
    "bees": [
        "How many kilograms of honey did the society harvest?",
        "Where did the colony settle that swarmed on the way home?",
    ],
    "railway": [
        "What was the name of the locomotive, and after whom was it named?",
        "In which month and year did the flood take away the middle bridge?",
    ],
    "tide-mill": [
        "Who put up the present mill building, and in which year?",
        "Where was the wheel found after the surge of 1953?",
    ],
    "observatory": [
        "How many entries are there in the red book?",
        "What is the aperture of the telescope?",
    ],
    "bakery": [
        "How old is the sourdough?",
        "How many loaves were delivered to the hospital, and at what time?",
    ],
}
"""Two questions for each text in `texts/`."""

WRITING = [
    "Write a story about a clockmaker who builds a clock that runs backwards.",
    "Explain step by step how to plant a small vegetable garden, from choosing the place to the harvest.",
    "Write a letter from a sailor to his sister about his first month at sea.",
    "Describe a walk through an old forest in autumn, with everything that can be seen, heard and smelled.",
    "Explain to a curious ten-year-old why the sky is blue and sunsets are red.",
    "Write a dialogue between a teacher and a pupil about why mathematics is worth learning.",
    "Tell the story of a village that loses its only well and finds another.",
    "Write a speech for the opening of a public library in a small town.",
    "Describe a day in the life of a baker, hour by hour.",
    "Explain how a sailing boat can move against the wind, for readers without any knowledge of physics.",
    "Write a fairy tale in which a mouse gives advice to a king.",
    "Compare travelling by train with travelling by bicycle, and say when you would choose which.",
]


def request(custom_id: str, content: str, max_tokens: int) -> dict[str, object]:
    body = {
        "model": "smollm2",
        "messages": [{"role": "user", "content": content}],
        "max_tokens": max_tokens,
        "temperature": 0,
    }
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}


def requests() -> list[dict[str, object]]:
    """The forty requests: the three kinds in turn, as long as each has some left."""
    few_shot = _text("front-desk")
    classify = [
        request(f"classify-{number}", f"{few_shot} {message}\nDesk:", 4)
        for number, message in enumerate(MESSAGES, start=1)
    ]
    documents = [
        request(f"{title}-{number}", f"{_text(title)}\n\nAnswer in one sentence. {question}", 32)
        for title, questions in QUESTIONS.items()
        for number, question in enumerate(questions, start=1)
    ]
    writing = [request(f"write-{number}", task, 256) for number, task in enumerate(WRITING, start=1)]
    kinds = [classify, documents, writing]
    return [kind[turn] for turn in range(max(map(len, kinds))) for kind in kinds if turn < len(kind)]


def _text(name: str) -> str:
    """One of the texts in `texts/`, which are wrapped for reading."""
    text = (HERE / "texts" / f"{name}.txt").read_text()
    return text.strip()


if __name__ == "__main__":
    lines = [json.dumps(line) for line in requests()]
    (HERE / "demo.jsonl").write_text("\n".join(lines) + "\n")
