"""What the end-to-end tests send, and the greedy tokens that come back.

Greedy decoding in float32 gives the same tokens under any schedule unless two logits tie to within
rounding: matrix products of different batch sizes sum in different orders, about 1e-6 relative. Every
answer therefore carries its margin, the smallest gap between the two best log probabilities over its
tokens. Answers are compared, exactly, for the prompts whose reference margin is at least CLEAR_MARGIN;
that choice uses the reference alone.
"""

import asyncio
from dataclasses import dataclass
from typing import Any

import numpy as np
import openai

import sglang as sgl
from servers import Server

CLEAR_MARGIN = 1e-3  # nats, hundreds of times the differences that batch sizes make (below 4e-6)

# Arguments of a chat completion whose response `answer_of` reads.
GREEDY: dict[str, Any] = {
    "temperature": 0,
    "logprobs": True,
    "top_logprobs": 2,
    "extra_body": {"return_token_ids": True},
}

_WORDS = """
request prompt answer memory compute batch share prefix token cache tree order density step question user
system model text list value name count hello sentence positive negative french
""".split()


@dataclass(frozen=True)
class Chat:
    """One chat completion to send."""

    system: str
    question: str
    max_tokens: int

    def body(self) -> dict[str, Any]:
        return {
            "model": "tiny",
            "messages": [
                {"role": "system", "content": self.system},
                {"role": "user", "content": self.question},
            ],
            "max_tokens": self.max_tokens,
            **GREEDY,
        }


@dataclass(frozen=True)
class Answer:
    """Greedy continuation: token ids, and the smallest gap between best and second best (nats)."""

    tokens: tuple[int, ...]
    margin: float


@dataclass(frozen=True)
class Reference:
    """What upstream answers under --schedule-policy fcfs, for prompts whose best token is clear."""

    chats: list[Chat]
    chat_tokens: list[tuple[int, ...]]
    texts: list[str]
    text_tokens: list[tuple[int, ...]]


def make_chats(count: int, *, seed: int = 0) -> list[Chat]:
    """A pool with three shared system prompts, long questions with short answers and the reverse."""
    rng = np.random.default_rng(seed)
    systems = [" ".join(rng.choice(_WORDS, size=60)) for _ in range(3)]
    chats = []
    for index in range(count):
        long_question = index % 2 == 0
        words = int(rng.integers(60, 200)) if long_question else int(rng.integers(3, 12))
        answer = int(rng.integers(2, 6)) if long_question else int(rng.integers(24, 48))
        question = f"{index} " + " ".join(rng.choice(_WORDS, size=words))
        chats.append(Chat(systems[index % len(systems)], question, answer))
    return chats


def send_chats(server: Server, chats: list[Chat]) -> list[Answer]:
    """Send all at once through the openai client; answers in the order of `chats`."""

    async def send_all() -> list[Any]:
        async with server.async_client as client:
            return await asyncio.gather(*(client.chat.completions.create(**chat.body()) for chat in chats))

    return [answer_of(completion) for completion in asyncio.run(send_all())]


def answer_of(completion: openai.types.chat.ChatCompletion) -> Answer:
    """Tokens and margin of the answer to a request with the arguments GREEDY."""
    choice = completion.choices[0]
    assert choice.logprobs is not None
    assert choice.logprobs.content is not None
    gaps = [abs(t.top_logprobs[0].logprob - t.top_logprobs[1].logprob) for t in choice.logprobs.content]
    assert choice.model_extra is not None
    return Answer(tuple(choice.model_extra["response_token_ids"]), min(gaps))


@sgl.function
def label_and_reason(s, text):  # type: ignore[no-untyped-def]
    s += "Classify the sentence as positive or negative.\nSentence: " + text + "\nLabel:"
    s += sgl.gen("label", max_tokens=4, temperature=0, return_logprob=True, top_logprobs_num=2)
    s += "\nReason:"
    s += sgl.gen("reason", max_tokens=20, temperature=0, return_logprob=True, top_logprobs_num=2)


def tokens_of(answers: list[Answer]) -> list[tuple[int, ...]]:
    return [answer.tokens for answer in answers]


def make_texts(count: int, *, seed: int = 1) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(_WORDS, size=int(rng.integers(4, 40)))) for _ in range(count)]


def run_program(server: Server, texts: list[str]) -> list[Answer]:
    """Run the frontend program for all texts at once; both generations of a text make one answer."""
    states = label_and_reason.run_batch(
        [{"text": text} for text in texts],
        backend=sgl.RuntimeEndpoint(server.url),
        num_threads=len(texts),
        progress_bar=False,
    )
    answers = []
    for state in states:
        tokens: list[int] = []
        gaps: list[float] = []
        for variable in ("label", "reason"):
            meta = state.get_meta_info(variable)
            tokens += [token for _, token, _ in meta["output_token_logprobs"]]
            gaps += [abs(best[0] - second[0]) for best, second in meta["output_top_logprobs"]]
        answers.append(Answer(tuple(tokens), min(gaps)))
    return answers
