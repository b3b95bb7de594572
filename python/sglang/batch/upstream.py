"""What `sglang-batch` reads of SGLang, which carries no types: these protocols are the whole of it.

Requests, replies and configs of upstream stay `Any` where they are only handed on.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Protocol


class ServerArgs(Protocol):
    """The server's arguments, as upstream's parser and its resolution leave them.

    Attributes:
        device: None until upstream's platform has chosen it.
        max_queued_requests: requests that the scheduler queues at most; None for no limit.
        enable_priority_scheduling: whether requests have priorities; schedule_low_priority_values_first:
            whether low values go first.
        tp_size, pp_size: ranks that share a layer, and the layers; dp_size: replicas of the model;
            attn_dp_size, enable_dp_attention: see `arguments.attention_groups`.
    """

    model_path: str
    schedule_policy: str
    device: str | None
    max_queued_requests: int | None
    enable_priority_scheduling: bool
    schedule_low_priority_values_first: bool
    tp_size: int
    pp_size: int
    dp_size: int
    attn_dp_size: int
    enable_dp_attention: bool

    def resolve_once(self) -> None:
        """Fill in what depends on the model and the machine."""

    def check_server_args(self) -> None:
        """Refuse arguments that contradict each other.

        Raises:
            ValueError, AssertionError: two arguments contradict each other.
        """


class RequestState(Protocol):
    """What the tokenizer process knows of one request in flight."""

    dispatched: bool


class RequestHandler(Protocol):
    """One endpoint of SGLang's own server; `endpoints` names the method that answers."""

    def create_error_response(self, message: str, *, param: str | None = None) -> Any:
        """Make the reply to a request that cannot be run: a starlette response with status 400.

        Args:
            param: the body's field that is wrong, if it is one.
        """


class ModelConfig(Protocol):
    """The model as upstream has resolved it.

    Attributes:
        vocab_size: rows of the model's embedding; token ids are below it.
        is_generation: whether it writes text; else it embeds or scores.
    """

    dtype: object
    hf_config: object
    is_generation: bool
    hf_eos_token_id: set[int] | None
    vocab_size: int


class TokenizerManager(Protocol):
    """The process that renders and tokenizes requests, and waits for their ends.

    Attributes:
        context_len: tokens that one request may have in all.
        mm_processor: of images, videos and recordings; None for a model that only reads text.
        served_model_name: by which requests call the model.
        rid_to_state: the requests in flight by their id.
    """

    context_len: int
    served_model_name: str
    model_config: ModelConfig
    tokenizer: Any
    mm_processor: object
    rid_to_state: Mapping[str, RequestState]

    @property
    def serving_chat_class(self) -> Callable[[TokenizerManager, TemplateManager], RequestHandler]:
        """The handler of /v1/chat/completions, which depends on the model."""

    def auto_create_handle_loop(self) -> None:
        """Start the loop that receives answers, and install upstream's signal handlers, once."""

    async def get_internal_state(self) -> list[dict[str, Any]]:
        """Ask every data-parallel rank's scheduler for its state; one dict per rank."""

    def abort_request(self, rid: str) -> None:
        """Drop a request of `rid_to_state`, which ends with an error then."""

    def generate_request(self, obj: Any, request: Any = None) -> AsyncIterator[Any]:
        """Run what a handler has made of a request, which may be several prompts."""

    async def _async_dispatch_to_scheduler(self, message: Any) -> None: ...

    async def _handle_batch_output(self, output: Any) -> None:
        """Take the tokens that the detokenizer has sent."""

    def _validate_one_request(self, request: Any, token_ids: Any) -> None:
        """Check a request that is tokenized.

        Raises:
            ValueError: it cannot be run; becomes its reply, with status 400.
        """


class TemplateManager(Protocol):
    """The chat and completion templates, which are only handed on."""


class Engine(Protocol):
    """`sgl.Engine`: an engine's processes, and the tokenizer in this one."""

    loop: asyncio.AbstractEventLoop
    tokenizer_manager: TokenizerManager
    template_manager: TemplateManager

    def shutdown(self) -> None:
        """Stop every process of the engine; what is still running is dropped."""
