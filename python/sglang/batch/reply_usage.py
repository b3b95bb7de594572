"""Tokens of a reply, as the servers of OpenAI's API tell them."""

from __future__ import annotations

from typing import Annotated

import msgspec

from sglang.batch.records import Usage

Count = Annotated[int, msgspec.Meta(ge=0)] | None


class _Details(msgspec.Struct):
    cached_tokens: Count = None
    reasoning_tokens: Count = None


class ReplyUsage(msgspec.Struct):
    """`usage` of a reply, by the names of /v1/responses and by those of all others.

    Reasoning tokens stand in the details, as OpenAI has them, or beside the others, as SGLang had them first.
    """

    prompt_tokens: Count = None
    completion_tokens: Count = None
    reasoning_tokens: Count = None
    prompt_tokens_details: _Details | None = None
    completion_tokens_details: _Details | None = None
    input_tokens: Count = None
    output_tokens: Count = None
    input_tokens_details: _Details | None = None
    output_tokens_details: _Details | None = None

    def usage(self) -> Usage:
        """Read it as this package counts tokens."""
        read = self.prompt_tokens_details or self.input_tokens_details or _Details()
        written = self.completion_tokens_details or self.output_tokens_details or _Details()
        return Usage(
            prompt=self.prompt_tokens or self.input_tokens or 0,
            cached=read.cached_tokens or 0,
            completion=self.completion_tokens or self.output_tokens or 0,
            reasoning=written.reasoning_tokens or self.reasoning_tokens or 0,
        )


def reply_usage(told: object) -> Usage:
    """Read what a server of any make says; nothing where it is no usage."""
    try:
        return msgspec.convert(told, ReplyUsage).usage()
    except msgspec.ValidationError:
        return Usage()
