"""The URLs that a line may name, and what of SGLang's own server answers each: one entry per endpoint.

Upstream's modules are imported when an engine asks for a handler; the command line does not wait for them.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sglang.batch.upstream import ModelConfig, RequestHandler, TemplateManager, TokenizerManager

NO_LISTENER = {"stream": "nobody could listen"}


@dataclass(frozen=True)
class Endpoint:
    """One endpoint.

    Attributes:
        request: name of the request body's pydantic model in upstream's `protocol` module.
        handler: makes the request handler.
        method: of the handler, which answers a request.
        generates: whether the model must write text; False where it must not, None where both will do.
        scores: whether a model that writes no text needs a head that scores (a classifier, a reward model).
        needs_model: whether upstream refuses a body that names no model, which here means the one there is.
        refused: fields that a line may not set, and what a batch cannot do about them.
        sets: fields that have one value in a batch, whatever the line says.
    """

    request: str
    handler: Callable[[TokenizerManager, TemplateManager], RequestHandler]
    method: str = "handle_request"
    generates: bool | None = True
    scores: bool = False
    needs_model: bool = False
    refused: Mapping[str, str] = field(default_factory=lambda: NO_LISTENER)
    sets: Mapping[str, Any] = field(default_factory=dict)

    def problem(self, model: ModelConfig) -> str | None:
        """Say why a model cannot serve this endpoint; None if it can, as far as its config tells.

        Upstream would compute something from wrong models: text from an embedding model's head, a label from
        a vector that is none of labels.
        """
        if self.generates is not None and self.generates != model.is_generation:
            if self.generates:
                return "the model was loaded for embeddings and writes no text; run without --is-embedding"
            return "the model writes text; run an embedding model, or any model with --is-embedding"
        if self.scores and not model.is_generation:
            names = getattr(model.hf_config, "architectures", None) or []
            if not any(head in name for head in ("Classification", "Reward") for name in names):
                return f"{', '.join(names)} has no head that scores; run a classifier or a reward model"
        return None


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
    "/v1/responses": Endpoint(
        "ResponsesRequest",
        lambda manager, templates: openai("serving_responses").OpenAIServingResponses(
            manager, templates, enable_prompt_tokens_details=True
        ),
        method="create_responses",
        needs_model=True,
        refused={
            **NO_LISTENER,
            "background": "nobody could ask for the result later",
            "previous_response_id": "no response is kept from one line for another",
        },
        sets={"store": False},
    ),
    "/v1/embeddings": Endpoint(
        "EmbeddingRequest",
        lambda manager, templates: openai("serving_embedding").OpenAIServingEmbedding(manager, templates),
        generates=False,
    ),
    "/v1/classify": Endpoint(
        "ClassifyRequest",
        lambda manager, templates: openai("serving_classify").OpenAIServingClassify(manager, templates),
        generates=False,
        scores=True,
    ),
    "/v1/score": Endpoint(
        "ScoringRequest",
        lambda manager, templates: openai("serving_score").OpenAIServingScore(manager),
        generates=None,
        scores=True,
    ),
    "/v1/rerank": Endpoint(
        "V1RerankReqInput",
        lambda manager, templates: openai("serving_rerank").OpenAIServingRerank(manager, templates),
        generates=None,
        scores=True,
    ),
}
