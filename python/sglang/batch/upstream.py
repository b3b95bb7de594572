"""What `sglang-batch` reads of SGLang, which carries no types: these protocols are the whole of it.

Requests, replies and configs of upstream stay `Any` where they are only handed on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Protocol


class ServerArgs(Protocol):
    """The server's arguments, as upstream's parser and its resolution leave them.

    Attributes:
        device: None until upstream's platform has chosen it.
        max_queued_requests: requests that the scheduler queues at most; None for no limit.
        tp_size: ranks that share the model; dp_size: replicas of it.
    """

    model_path: str
    schedule_policy: str
    device: str | None
    max_queued_requests: int | None
    tp_size: int
    dp_size: int

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
    """One endpoint of SGLang's own server."""

    async def handle_request(self, request: Any, raw_request: None) -> Any:
        """Run a parsed request to its end.

        Returns:
            The endpoint's response object, an `ErrorResponse`, or a starlette response around either.
        """

    def create_error_response(self, message: str) -> Any:
        """Make the reply to a request that cannot be parsed: a starlette response with status 400."""


class ModelConfig(Protocol):
    """The model as upstream has resolved it."""

    dtype: object
    hf_eos_token_id: set[int] | None


class TokenizerManager(Protocol):
    """The process that renders and tokenizes requests, and waits for their ends.

    Attributes:
        context_len: tokens that one request may have in all.
        rid_to_state: the requests in flight by their id.
    """

    context_len: int
    model_config: ModelConfig
    tokenizer: object
    rid_to_state: Mapping[str, RequestState]

    @property
    def serving_chat_class(self) -> Callable[[TokenizerManager, TemplateManager], RequestHandler]:
        """The handler of /v1/chat/completions, which depends on the model."""

    def auto_create_handle_loop(self) -> None:
        """Start the loop that receives answers, and install upstream's signal handlers, once."""

    async def get_internal_state(self) -> list[dict[str, Any]]:
        """Ask every data-parallel rank's scheduler for its state; one dict per rank."""

    async def _async_dispatch_to_scheduler(self, message: Any) -> None: ...


class TemplateManager(Protocol):
    """The chat and completion templates, which are only handed on."""


class Engine(Protocol):
    """`sgl.Engine`: an engine's processes, and the tokenizer in this one."""

    loop: asyncio.AbstractEventLoop
    tokenizer_manager: TokenizerManager
    template_manager: TemplateManager

    def shutdown(self) -> None:
        """Stop every process of the engine; what is still running is dropped."""
