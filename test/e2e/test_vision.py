"""Requests with images under blend: each is answered about its own image, equal images share their KV."""

import asyncio
import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from servers import Server, running_server
from traffic import CLEAR_MARGIN, GREEDY, answer_of

IMAGES = 3
QUESTIONS = 6


@pytest.fixture(scope="module")
def server(qwen2_vl: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("vision") / "server.log"
    flags = ("--schedule-policy", "blend", "--max-total-tokens", "2048", "--enable-cache-report")
    with running_server(qwen2_vl, log, *flags) as running:
        yield running


def _png(seed: int) -> str:
    """A data URL of a 112 x 112 picture of noise: 16 image tokens."""
    pixels = np.random.default_rng(seed).integers(0, 256, size=(112, 112, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _body(image: int, question: str) -> dict[str, Any]:
    return {
        "model": "tiny",
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": _png(image)}},
                    {"type": "text", "text": question},
                ],
            }
        ],
        "max_tokens": 8,
        **GREEDY,
    }


def test_images_are_answered_and_equal_images_share(server: Server) -> None:
    bodies = [_body(i % IMAGES, f"question {i // IMAGES}: hello") for i in range(IMAGES * QUESTIONS)]

    async def send_all() -> list[Any]:
        async with server.async_client as client:
            return await asyncio.gather(*(client.chat.completions.create(**body) for body in bodies))

    together = asyncio.run(send_all())
    assert sum(answer_of(completion).margin > CLEAR_MARGIN for completion in together) > len(bodies) // 2
    # Alone afterwards, each gets the answer it got among the others.
    for body, completion in zip(bodies, together, strict=True):
        answer = answer_of(completion)
        if answer.margin > CLEAR_MARGIN:
            alone = server.client.chat.completions.create(**body)
            assert answer_of(alone).tokens == answer.tokens
    # A question that nobody has asked finds the tokens of its image computed.
    for image in range(IMAGES):
        fresh = server.client.chat.completions.create(**_body(image, "something else entirely"))
        assert fresh.usage.prompt_tokens_details.cached_tokens >= 16


def test_a_different_image_does_not_share(server: Server) -> None:
    client = server.client
    client.chat.completions.create(**_body(100, "hello"))
    same = client.chat.completions.create(**_body(100, "hello"))
    other = client.chat.completions.create(**_body(101, "hello"))
    assert same.usage.prompt_tokens_details.cached_tokens > 16
    assert (other.usage.prompt_tokens_details.cached_tokens or 0) < 16
