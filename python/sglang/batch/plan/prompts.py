"""The requests of a batch file as token ids, and the model they are for: all that a plan starts from.

Lines are read by the job that also runs them, and turned into tokens by the request handlers that also
answer them, so templates, tool definitions and refusals are those of a real run. Only the engine behind
the handlers is missing: no weights are loaded. Runs in a process of its own, on the simulated GPU's
platform, because reading SGLang's arguments needs a platform.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from sglang.batch.arguments import parse_server_args
from sglang.batch.plan.arguments import USAGE
from sglang.batch.progress import progress_bar
from sglang.batch.records import Answer, BatchRequest, Usage
from sglang.batch.request_handlers import RequestHandlers
from sglang.batch.run.job import BatchJob
from sglang.srt.blend.core.cost.model_shape import ModelShape

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


@dataclass(frozen=True)
class PlannedModel:
    """A model as its config describes it.

    Attributes:
        config: for `simulate`, with the dtype that SGLang settles on and an end-of-sequence token.
        context: tokens that a request may have in all.
        server: arguments that change a schedule, as `simulate` takes them; None is SGLang's default.
    """

    path: str
    config: dict[str, Any]
    context: int
    server: dict[str, Any]

    @property
    def name(self) -> str:
        return Path(self.path).name

    def shape(self, tensor_parallel: int) -> ModelShape:
        """One rank's share."""
        return ModelShape.from_config(
            self.config, tensor_parallel=tensor_parallel, kv_dtype=self.server["kv_cache_dtype"]
        )


@dataclass(frozen=True)
class BadLine:
    """A line that cannot be run; `line` counts from 1."""

    line: int
    custom_id: str | None
    code: str
    message: str


@dataclass(frozen=True)
class Prompts:
    """n requests, in file order; a line with several prompts or answers is several requests.

    Attributes:
        tokens, offsets: int32, int64 (n + 1,); prompt i is tokens[offsets[i]:offsets[i + 1]].
        cap: int64 (n,) the request's own limit of output tokens, 0 without one.
        known: int64 (n,) output tokens that the request fixes itself (ignore_eos), 0 otherwise.
        line: int64 (n,) line in the file; `custom_ids` has the same length.
        media: requests with pictures, audio or video.
        lines: lines that are not blank, `bad` ones included.
    """

    tokens: NDArray[np.int32]
    offsets: NDArray[np.int64]
    cap: NDArray[np.int64]
    known: NDArray[np.int64]
    line: NDArray[np.int64]
    custom_ids: tuple[str, ...]
    media: int
    lines: int
    bad: tuple[BadLine, ...]
    model: PlannedModel


def read_prompts(path: Path, server: list[str], *, quiet: bool) -> Prompts:
    """Tokenise a batch file.

    Args:
        server: SGLang's flags, `--model-path` among them.

    Raises:
        SystemExit, BadUsage, ModelUnavailable: see `parse_server_args`.
        OSError, ValueError: upstream cannot read the model's config or tokenizer.
    """
    reader = PromptReader(parse_server_args(server, usage=USAGE))
    bad: list[BadLine] = []

    def keep_errors(record: bytes) -> None:
        fields = msgspec.json.decode(record)
        if fields["error"] is not None:
            bad.append(BadLine(custom_id=fields["custom_id"], **fields["error"]))

    async def read() -> int:
        with path.open("rb") as lines, progress_bar(path, quiet=quiet) as show:
            # One at a time keeps file order; there is nothing to wait for anyway.
            job = BatchJob(reader, keep_errors, pool=1, on_record=show)
            await job.run(lines)
            return job.tally.lines

    return reader.result(lines=asyncio.run(read()), bad=tuple(bad))


class PromptReader:
    """SGLang's request handlers over a tokenizer without an engine; collects instead of answering."""

    def __init__(self, server_args: Any) -> None:
        from transformers import PretrainedConfig

        from sglang.srt.entrypoints.engine import init_tokenizer_manager
        from sglang.srt.runtime_context import publish
        from sglang.srt.server_args import PortArgs

        server_args.resolve_once()
        server_args.check_server_args()
        publish(server_args, role="tokenizer")
        manager, templates = init_tokenizer_manager(
            server_args, PortArgs.init_new(server_args), _tokenizer_class()
        )
        self._manager = manager
        self._handlers = RequestHandlers(manager, templates)
        self._limit = manager.context_len
        self._found: list[tuple[BatchRequest, Any]] = []
        config, _ = PretrainedConfig.get_config_dict(server_args.model_path)
        self._model = PlannedModel(
            path=server_args.model_path,
            config=config
            | {
                "dtype": str(manager.model_config.dtype).removeprefix("torch."),
                # It may stand in generation_config.json or with the tokenizer only.
                "eos_token_id": sorted(manager.model_config.hf_eos_token_id or ())
                or getattr(manager.tokenizer, "eos_token_id", None),
            },
            context=manager.context_len,
            server=_scheduler_arguments(server_args),
        )

    async def answer(self, request: BatchRequest, request_id: str) -> Answer:
        """Collect the request's prompts, or say as a real run would why it is refused."""
        found = self._manager.tokenised = []
        refusal = await self._handlers.answer(request, request_id)
        self._manager.rid_to_state.clear()
        if not found:
            return refusal
        self._found.extend((request, prompt) for prompt in found)
        return Answer(200, b"null", Usage(prompt=sum(len(prompt.input_ids) for prompt in found)))

    def result(self, *, lines: int, bad: tuple[BadLine, ...]) -> Prompts:
        from sglang.srt.blend.runtime.pool import known_output
        from sglang.srt.blend.runtime.token_ids import fold

        prompts = [prompt for _, prompt in self._found]
        caps = [prompt.sampling_params.max_new_tokens or 0 for prompt in prompts]
        for prompt in prompts:
            prompt.sampling_params.max_new_tokens = prompt.sampling_params.max_new_tokens or self._limit
        lengths = np.array([len(prompt.input_ids) for prompt in prompts], np.int64)
        return Prompts(
            tokens=np.concatenate([np.zeros(0, np.int32), *(fold(prompt.input_ids) for prompt in prompts)]),
            offsets=np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]),
            cap=np.array(caps, np.int64),
            known=np.array([known_output(prompt) for prompt in prompts], np.int64),
            line=np.array([request.line for request, _ in self._found], np.int64),
            custom_ids=tuple(request.custom_id for request, _ in self._found),
            media=sum(prompt.mm_inputs is not None for prompt in prompts),
            lines=lines,
            bad=bad,
            model=self._model,
        )


def _scheduler_arguments(server_args: Any) -> dict[str, Any]:
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


class _Tokenised(ValueError):
    """Ends a request where the scheduler would take over; handlers turn any ValueError into a reply."""


def _tokenizer_class() -> Any:
    from sglang.srt.managers.tokenizer_manager import TokenizerManager

    class TokenizerWithoutEngine(TokenizerManager):
        """Upstream's tokenizer, which keeps tokenised requests instead of sending them to a scheduler."""

        tokenised: list[Any]

        async def generate_request(self, obj: Any, request: Any = None) -> AsyncIterator[Any]:
            obj.normalize_batch_and_arguments()
            self._init_req_state(obj, request)
            for part in [obj] if obj.is_single else [obj[i] for i in range(obj.batch_size)]:
                tokenised = await self._tokenize_one_request(part)
                self.tokenised += [tokenised] * (obj.parallel_sample_num or 1)
            raise _Tokenised
            yield  # handlers expect an async generator

    return TokenizerWithoutEngine
