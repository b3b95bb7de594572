"""A batch file's requests turned into token ids by the request handlers that also answer them.

Lines are read by the code that also reads them for a run, so templates, tool definitions and refusals are
those of a real one. Only the engine behind the handlers is missing: no weights are loaded. Runs in a
process of its own, on the simulated GPU's platform, because reading SGLang's arguments needs a platform.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any

import numpy as np

from sglang.batch.input.source import Source, read_sources
from sglang.batch.media import MediaGate, MediaPolicy
from sglang.batch.plan.arguments import USAGE
from sglang.batch.plan.prompts import BadLine, PlannedModel, Prompts
from sglang.batch.progress import progress_bar
from sglang.batch.records import BatchFailure, BatchRequest, parse_lines
from sglang.batch.request_handlers import RequestHandlers
from sglang.batch.server_flags import parse_server_args
from sglang.batch.upstream import ServerArgs, TokenizerManager

SCHEDULER_FLAGS = (
    "chunked_prefill_size",
    "disable_radix_cache",
    "dtype",
    "kv_cache_dtype",
    "max_prefill_tokens",
    "max_running_requests",
    "max_total_tokens",
    "mem_fraction_static",
    "page_size",
    "schedule_conservativeness",
)
"""Server arguments that change a schedule, beside the `--blend-*` flags; simulations run with them."""

SIMULATION_SETS = ("hardware", "engine", "admission_log")
"""Options of the blend policy that each simulation chooses for itself."""


def read_prompts(
    sources: Sequence[Source],
    server: list[str],
    media: MediaPolicy,
    *,
    quiet: bool,
    limit: int | None = None,
) -> Prompts:
    """Tokenize a batch.

    Args:
        server: SGLang's flags, `--model-path` among them.
        media: what requests may name beside data URLs.
        limit: lines that are read at most, from the first on; None for all.

    Raises:
        SystemExit, BadUsage, ModelUnavailable: see `parse_server_args` and `open_source`.
        OSError, ValueError: upstream cannot read the model's config or tokenizer.
    """
    reader = PromptReader(parse_server_args(server, usage=USAGE), media)
    progress = _Progress()

    async def read() -> list[BadLine]:
        # One at a time keeps file order; there is nothing to wait for anyway.
        bad: list[BadLine] = []
        with progress_bar(total=None, quiet=quiet) as show:
            for item in islice(parse_lines(read_sources(sources)), limit):
                failure = item if isinstance(item, BatchFailure) else await reader.read(item, progress.done)
                if failure is not None:
                    bad.append(BadLine(failure.line, failure.custom_id, failure.code, failure.message))
                progress.done += 1
                show(progress)
        return bad

    bad = asyncio.run(read())
    return reader.prompts(lines=progress.done, bad=tuple(bad))


@dataclass
class _Progress:
    """Lines read so far; nothing is computed."""

    done: int = 0

    def text(self) -> str:
        return ""


class PromptReader:
    """Collects the prompts of requests where a run would answer them.

    Args:
        server_args: as parsed from the command line; resolved here.
        media: what requests may name beside data URLs.
    """

    def __init__(self, server_args: ServerArgs, media: MediaPolicy) -> None:
        from sglang.srt.entrypoints.engine import init_tokenizer_manager
        from sglang.srt.runtime_context import publish
        from sglang.srt.server_args import PortArgs

        server_args.resolve_once()
        server_args.check_server_args()
        publish(server_args, role="tokenizer")
        self._manager, templates = init_tokenizer_manager(
            server_args, PortArgs.init_new(server_args), _tokenizer_class()
        )
        self._handlers = MediaGate(RequestHandlers(self._manager, templates), media)
        self._model = _planned_model(server_args, self._manager)
        self._found: list[tuple[int, BatchRequest, Any]] = []

    async def read(self, request: BatchRequest, position: int) -> BatchFailure | None:
        """Collect the prompts of the request in line `position`, or say as a run would why it is refused."""
        found = self._manager.tokenized = []
        try:
            refusal = await self._handlers.answer(request, uuid.uuid4().hex)
        except Exception as error:
            failure = BatchFailure.internal(request, error)
        else:
            self._manager.rid_to_state.clear()
            if found:
                self._found.extend((position, request, prompt) for prompt in found)
                return None
            failure = BatchFailure(request.line, request.custom_id, str(refusal.code), str(refusal.message))
        return replace(failure, message=f"line {request.line}: {failure.message}")

    def prompts(self, *, lines: int, bad: tuple[BadLine, ...]) -> Prompts:
        """Put what was collected into arrays.

        Args:
            lines: lines of the file that are not blank; bad: those that cannot be run.
        """
        from sglang.srt.blend.runtime.pool import known_output
        from sglang.srt.blend.runtime.token_ids import fold

        prompts = [prompt for _, _, prompt in self._found]
        # What is embedded or scored writes nothing, which takes as long as one token.
        limits = [prompt.sampling_params.max_new_tokens for prompt in prompts]
        caps = [0 if limit is None else max(limit, 1) for limit in limits]
        for prompt, cap in zip(prompts, caps, strict=True):
            prompt.sampling_params.max_new_tokens = cap or self._model.context
        lengths = np.array([len(prompt.input_ids) for prompt in prompts], np.int64)
        return Prompts(
            tokens=np.concatenate([np.zeros(0, np.int32), *(fold(prompt.input_ids) for prompt in prompts)]),
            offsets=np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]),
            cap=np.array(caps, np.int64),
            known=np.array([known_output(prompt) for prompt in prompts], np.int64),
            line=np.array([request.line for _, request, _ in self._found], np.int64),
            position=np.array([position for position, _, _ in self._found], np.int64),
            custom_ids=tuple(request.custom_id for _, request, _ in self._found),
            media=sum(prompt.mm_inputs is not None for prompt in prompts),
            lines=lines,
            bad=bad,
            model=self._model,
        )


def _planned_model(server_args: ServerArgs, manager: TokenizerManager) -> PlannedModel:
    from transformers import PretrainedConfig

    config, _ = PretrainedConfig.get_config_dict(server_args.model_path)
    resolved = manager.model_config
    # The end of a sequence may stand in generation_config.json or with the tokenizer only.
    end = sorted(resolved.hf_eos_token_id or ()) or getattr(manager.tokenizer, "eos_token_id", None)
    return PlannedModel(
        path=server_args.model_path,
        config=config | {"dtype": str(resolved.dtype).removeprefix("torch."), "eos_token_id": end},
        context=manager.context_len,
        server=_scheduler_arguments(server_args),
    )


def _scheduler_arguments(server_args: ServerArgs) -> dict[str, Any]:
    """Pick the arguments that change a schedule, as `simulate` takes them."""
    from sglang.srt.blend.runtime.arguments import get_options
    from sglang.srt.runtime_context import get_schedule

    blend = asdict(get_options(server_args))
    return {
        **{name: getattr(server_args, name) for name in SCHEDULER_FLAGS},
        # Resolved: the report names them.
        "chunked_prefill_size": get_schedule().chunked_prefill_size,
        "mem_fraction_static": get_schedule().mem_fraction_static,
        **{f"blend_{name}": value for name, value in blend.items() if name not in SIMULATION_SETS},
    }


class _Tokenized(ValueError):
    """Ends a request where the scheduler would take over; handlers turn any ValueError into a reply."""


def _tokenizer_class() -> Any:
    """Derive a tokenizer that needs no engine from upstream's."""
    from sglang.srt.managers import tokenizer_manager

    class TokenizerWithoutEngine(tokenizer_manager.TokenizerManager):
        """Keeps tokenized requests instead of sending them to a scheduler."""

        tokenized: list[Any]

        async def generate_request(self, obj: Any, request: Any = None) -> AsyncIterator[Any]:
            obj.normalize_batch_and_arguments()
            self._init_req_state(obj, request)
            for part in [obj] if obj.is_single else [obj[i] for i in range(obj.batch_size)]:
                tokenized = await self._tokenize_one_request(part)
                self.tokenized += [tokenized] * (obj.parallel_sample_num or 1)
            raise _Tokenized
            yield  # handlers expect an async generator

    return TokenizerWithoutEngine
