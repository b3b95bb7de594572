"""The URLs that a line may name, and what of SGLang's own server answers each: one entry per endpoint.

Upstream's modules are imported when an engine asks for a handler; the command line does not wait for them.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sglang.batch.upstream import RequestHandler, TemplateManager, TokenizerManager


@dataclass(frozen=True)
class Endpoint:
    """One endpoint.

    Attributes:
        request: name of the request body's pydantic model in upstream's `protocol` module.
        handler: makes the request handler.
    """

    request: str
    handler: Callable[[TokenizerManager, TemplateManager], RequestHandler]


def openai(module: str) -> Any:
    """Import one of upstream's modules for the OpenAI API."""
    return importlib.import_module(f"sglang.srt.entrypoints.openai.{module}")


ENDPOINTS: dict[str, Endpoint] = {
    "/v1/chat/completions": Endpoint(
        "ChatCompletionRequest",
        lambda manager, templates: manager.serving_chat_class(manager, templates),
    ),
    "/v1/completions": Endpoint(
        "CompletionRequest",
        lambda manager, templates: openai("serving_completions").OpenAIServingCompletion(manager, templates),
    ),
}
