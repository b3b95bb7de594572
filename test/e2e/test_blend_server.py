"""A server under --schedule-policy blend answers everything, with the tokens upstream gives."""

import asyncio
import itertools
import json
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from servers import Server
from traffic import Reference, make_chats, run_program, send_chats, tokens_of


def test_sixty_concurrent_chats_get_the_tokens_of_fcfs(server: Server, reference: Reference) -> None:
    assert len(reference.chats) == 60
    assert tokens_of(send_chats(server, reference.chats)) == reference.chat_tokens


def test_a_frontend_program_gets_the_tokens_of_fcfs(server: Server, reference: Reference) -> None:
    assert tokens_of(run_program(server, reference.texts)) == reference.text_tokens


def test_the_scheduler_planned_the_chats(server: Server, reference: Reference) -> None:
    send_chats(server, reference.chats)
    info = server.info()
    assert info["schedule_policy"] == "blend"
    (state,) = info["internal_states"]
    assert state["blend"]["waiting"] == state["blend"]["running"] == 0
    assert state["blend"]["sharing_achieved"] > 0.2


def test_a_json_schema_holds_under_load(server: Server, reference: Reference) -> None:
    schema = {
        "type": "object",
        "properties": {"label": {"enum": ["positive", "negative"]}, "score": {"type": "boolean"}},
        "required": ["label", "score"],
        "additionalProperties": False,
    }
    constrained = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "Classify the sentence as positive or negative."}],
        "max_tokens": 100,
        "temperature": 0,
        "response_format": {"type": "json_schema", "json_schema": {"name": "label", "schema": schema}},
    }

    async def send_mixed() -> list[Any]:
        async with server.async_client as client:
            bodies = [chat.body() for chat in reference.chats[:20]] + [constrained] * 4
            return await asyncio.gather(*(client.chat.completions.create(**body) for body in bodies))

    for completion in asyncio.run(send_mixed())[20:]:
        value = json.loads(completion.choices[0].message.content)
        assert value["label"] in {"positive", "negative"}
        assert isinstance(value["score"], bool)


def test_prompt_logprobs_can_be_asked_for(server: Server) -> None:
    completion = server.client.completions.create(
        model="tiny", prompt="hello, how are you", max_tokens=4, temperature=0, logprobs=2, echo=True
    )
    choice = completion.choices[0]
    assert choice.text.startswith("hello, how are you")
    assert completion.usage is not None
    assert len(choice.logprobs.token_logprobs) == completion.usage.prompt_tokens + 4


def test_a_repeated_prompt_is_served_from_the_radix_cache(server: Server) -> None:
    chat = make_chats(1, seed=77)[0]
    client = server.client
    first = client.chat.completions.create(**chat.body())
    second = client.chat.completions.create(**chat.body())
    assert first.choices[0].message.content == second.choices[0].message.content
    assert second.usage.prompt_tokens_details.cached_tokens >= second.usage.prompt_tokens - 2


def test_abandoned_requests_leave_a_working_server(server: Server, reference: Reference) -> None:
    async def abandon() -> None:
        async with server.async_client as client:
            tasks = [
                asyncio.create_task(client.chat.completions.create(**{**chat.body(), "max_tokens": 400}))
                for chat in make_chats(40, seed=5)
            ]
            await asyncio.wait(tasks, timeout=1.0)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(abandon())
    assert tokens_of(send_chats(server, reference.chats)) == reference.chat_tokens


def test_the_policy_changes_while_requests_wait_and_run(server: Server, reference: Reference) -> None:
    decided = []
    with ThreadPoolExecutor(1) as clients:
        answers = clients.submit(send_chats, server, reference.chats)
        for name in itertools.cycle(("lpm", "blend", "fcfs", "lof")):
            assert server.set_state(**{f"schedule_policy.{name}": 1}) == [True]
            (state,) = server.info()["internal_states"]
            assert (state["schedule_policy"], state["blend"]["policy"]) == (name, name)
            decided.append(name)
            if answers.done():
                break
    assert set(decided) == {"lpm", "blend", "fcfs", "lof"}
    assert server.set_state(**{"schedule_policy.sjf": 1}) == [False]
    assert server.set_state(**{"schedule_policy.blend": 1}) == [True]
    assert tokens_of(answers.result()) == reference.chat_tokens


def test_the_cache_can_be_flushed_once_idle(server: Server, reference: Reference) -> None:
    """Upstream flushes only a scheduler that holds no request, so nothing was forgotten anywhere."""
    with urllib.request.urlopen(f"{server.url}/flush_cache?timeout=60") as answer:
        assert answer.status == 200
    assert tokens_of(send_chats(server, reference.chats[:10])) == reference.chat_tokens[:10]


def test_no_scheduler_error_was_logged(server: Server) -> None:
    """Runs last: upstream's leak checks and our hooks report through the log."""
    log = server.log.read_text(errors="replace")
    assert "Traceback" not in log
    assert "memory leak" not in log
