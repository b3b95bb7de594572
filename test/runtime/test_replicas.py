"""The data-parallel controller's router: pools are kept until complete, every request gets one replica."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sglang.srt.blend.core.cost.cost_model import CostModel
from sglang.srt.blend.core.cost.hardware import load_hardware
from sglang.srt.blend.core.cost.model_shape import ModelShape
from sglang.srt.blend.core.order.replicas import Replicas
from sglang.srt.blend.runtime import plugin
from sglang.srt.blend.runtime.arguments import rank_count, why_not
from sglang.srt.blend.runtime.compatibility import problems
from sglang.srt.blend.runtime.replicas import ARRIVAL, LOOK, Router, attach
from sglang.srt.managers.io_struct import AbortReq, ContinueGenerationReqInput, PauseGenerationReqInput
from sglang.srt.sampling.sampling_params import SamplingParams

LLAMA_8B = ModelShape(gemm_params=7.5e9, weight_bytes=15e9, layers=32, attention_width=4096, kv_bytes=4096)
COST = CostModel(LLAMA_8B, load_hardware("a100-80gb"))
PAUSE, CONTINUE = PauseGenerationReqInput(mode="in_place"), ContinueGenerationReqInput()


class Setup:
    """A router on a controller that is none, and what it sends, in order."""

    def __init__(self, count: int = 2) -> None:
        self.now = 100.0
        self.reports: list[Any] = []
        self.sent: list[Any] = []
        self.controller = SimpleNamespace(
            _active_workers=list(range(count)),
            status=[True] * count,
            load_snapshot_reader=SimpleNamespace(read_all=lambda: self.reports),
        )
        self.router = Router(self.controller, Replicas(COST, count), clock=lambda: self.now)

    def dispatch(self, *requests: Any) -> None:
        for request in requests:
            self.router.dispatch(self.sent.append, request)

    def report(self, replica: int, running: int, waiting: int = 0) -> None:
        report = SimpleNamespace(
            dp_rank=replica, timestamp=self.now, num_running_reqs=running, num_waiting_reqs=waiting
        )
        self.reports = [other for other in self.reports if other.dp_rank != replica] + [report]
        self.now += LOOK

    def ranks(self) -> dict[str, int]:
        return {request.rid: request.routed_dp_rank for request in self.sent}


def prompt(document: int, question: int) -> list[int]:
    return [*np.random.default_rng(document).integers(0, 9999, 2000).tolist(), *[20_000 + question] * 40]


def request(rid: str, tokens: list[int] | None, **fields: Any) -> Any:
    defaults = {
        "routed_dp_rank": None,
        "mm_inputs": None,
        "lora_id": None,
        "extra_key": None,
        "sampling_params": SamplingParams(max_new_tokens=50),
    }
    return SimpleNamespace(rid=rid, input_ids=tokens, **(defaults | fields))


def pool(documents: int = 4, questions: int = 6) -> list[Any]:
    """Questions in the order that parts every document in turns."""
    return [request(f"{d}-{q}", prompt(d, q)) for q in range(questions) for d in range(documents)]


def documents(ranks: dict[str, int]) -> dict[str, set[int]]:
    found: dict[str, set[int]] = {}
    for rid, rank in ranks.items():
        found.setdefault(rid.partition("-")[0], set()).add(rank)
    return found


def test_a_pool_is_kept_until_it_is_complete_and_then_sent_by_whole_subtrees() -> None:
    setup = Setup()
    setup.router.control(PAUSE)
    setup.dispatch(*pool())
    assert setup.sent == []
    setup.router.control(CONTINUE)
    assert len(setup.sent) == 24
    assert all(len(ranks) == 1 for ranks in documents(setup.ranks()).values())
    assert sorted(setup.ranks().values()) == [0] * 12 + [1] * 12


def test_later_arrivals_join_the_replica_that_holds_their_prefix() -> None:
    setup = Setup()
    setup.router.control(PAUSE)
    setup.dispatch(*pool())
    setup.router.control(CONTINUE)
    setup.dispatch(*(request(f"{d}-late", prompt(d, 99)) for d in range(4)))
    assert len(setup.sent) == 28
    assert all(len(ranks) == 1 for ranks in documents(setup.ranks()).values())


def test_several_answers_to_one_prompt_follow_the_run_of_the_prompt_alone() -> None:
    setup = Setup()
    setup.router.control(PAUSE)
    alone = request("0-prefix", prompt(0, 0), sampling_params=SamplingParams(max_new_tokens=0))
    setup.dispatch(alone, *pool()[1:])
    setup.router.control(CONTINUE)
    setup.dispatch(*(request(f"0-{n}", prompt(0, 0)) for n in ("a", "b", "c")))
    assert documents(setup.ranks())["0"] == {alone.routed_dp_rank}


def test_a_replica_that_says_it_has_much_less_gets_what_another_holds() -> None:
    setup = Setup()
    setup.dispatch(request("0-first", prompt(0, 0)))
    home = setup.sent[0].routed_dp_rank
    setup.now += 2 * ARRIVAL
    setup.report(home, running=20, waiting=80)
    setup.report(1 - home, running=0)
    setup.dispatch(request("0-late", prompt(0, 1)))
    assert setup.sent[1].routed_dp_rank == 1 - home


def test_a_request_counts_before_its_replica_has_seen_it() -> None:
    setup = Setup()
    setup.report(0, running=0)
    setup.report(1, running=0)
    for number in range(6):
        setup.dispatch(request(str(number), prompt(number, 0)))
        setup.now += LOOK
    assert sorted(setup.ranks().values()) == [0, 0, 0, 1, 1, 1]


def test_an_abort_lets_go_what_is_kept_so_that_it_finds_its_request() -> None:
    setup = Setup()
    setup.router.control(PAUSE)
    setup.dispatch(*pool(2, 1))
    setup.router.control(AbortReq(rid="0-0"))
    assert len(setup.sent) == 2
    setup.dispatch(request("0-late", prompt(0, 9)))
    assert len(setup.sent) == 2, "the pool is not complete yet"
    setup.router.control(CONTINUE)
    assert len(setup.sent) == 3


def test_a_request_that_names_its_replica_goes_there_at_once_and_its_prefix_is_remembered() -> None:
    setup = Setup()
    setup.router.control(PAUSE)
    setup.dispatch(request("0-named", prompt(0, 0), routed_dp_rank=1))
    assert [sent.routed_dp_rank for sent in setup.sent] == [1]
    setup.router.control(CONTINUE)
    setup.now += 2 * ARRIVAL
    setup.report(1, running=0)
    setup.dispatch(request("0-late", prompt(0, 1)))
    assert setup.sent[1].routed_dp_rank == 1


def test_a_replica_that_is_down_gets_nothing() -> None:
    setup = Setup(3)
    setup.controller.status[1] = False
    setup.router.control(PAUSE)
    setup.dispatch(*pool())
    setup.router.control(CONTINUE)
    setup.dispatch(*(request(f"late-{d}", prompt(10 + d, 0)) for d in range(6)))
    assert set(setup.ranks().values()) == {0, 2}


@pytest.mark.parametrize(
    "fields",
    [
        {"input_ids": None},
        {"sampling_params": SamplingParams(max_new_tokens=None)},
        {"sampling_params": SamplingParams(max_new_tokens=9, ignore_eos=True)},
        {"sampling_params": SamplingParams(max_new_tokens=9, custom_params={"blend_expected_output": 3})},
        {"lora_id": "adapter"},
        {"mm_inputs": SimpleNamespace(mm_items=[SimpleNamespace(hash=None), SimpleNamespace(hash=5)])},
    ],
)
def test_whatever_a_request_is_made_of_it_gets_a_replica(fields: dict[str, Any]) -> None:
    setup = Setup()
    odd = [request("a", [1, 2, 3]), request("b", [1, 2, 3])]
    for one in odd:
        vars(one).update(fields)
    setup.router.control(PAUSE)
    setup.dispatch(odd[0])
    setup.router.control(CONTINUE)
    setup.dispatch(odd[1])
    assert set(setup.ranks()) == {"a", "b"}
    assert all(rank in (0, 1) for rank in setup.ranks().values())


def test_pictures_without_a_hash_share_nothing_and_equal_ones_do() -> None:
    def about(rid: str, picture: int | None) -> Any:
        return request(rid, prompt(0, 0), mm_inputs=SimpleNamespace(mm_items=[SimpleNamespace(hash=picture)]))

    setup = Setup()
    setup.router.control(PAUSE)
    setup.dispatch(*(about(f"{picture}-{i}", picture) for i in range(3) for picture in (7, 8)))
    setup.router.control(CONTINUE)
    assert sorted(map(sorted, documents(setup.ranks()).values())) == [[0], [1]]
    alone = Setup()
    alone.router.control(PAUSE)
    alone.dispatch(about("a", None), about("b", None))
    alone.router.control(CONTINUE)
    assert sorted(alone.ranks().values()) == [0, 1]


ATTENTION_GROUPS = ({"dp_size": 1, "attn_dp_size": 2}, {"dp_size": 2, "enable_dp_attention": True})
"""As upstream resolves them, and the old spelling before that."""


def server(**fields: Any) -> Any:
    defaults = {
        "schedule_policy": "blend",
        "dp_size": 2,
        "tp_size": 2,
        "pp_size": 1,
        "attn_dp_size": 1,
        "enable_dp_attention": False,
        "load_balance_method": "round_robin",
    }
    return SimpleNamespace(**(defaults | fields))


def test_what_is_not_supported_is_named_with_its_flag() -> None:
    assert why_not(server()) is None
    assert why_not(server(dp_size=1, enable_dp_attention=True)) is None
    assert why_not(server(dp_size=1, load_balance_method="total_tokens")) is None
    for groups in ATTENTION_GROUPS:
        assert why_not(server(schedule_policy="fcfs", **groups)) is None
        assert "--enable-dp-attention" in str(why_not(server(**groups)))
    assert "--load-balance-method total_tokens" in str(why_not(server(load_balance_method="total_tokens")))


@pytest.mark.parametrize("groups", ATTENTION_GROUPS)
def test_a_controller_of_attention_groups_gets_no_router_and_says_why(
    groups: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    controller = SimpleNamespace(server_args=server(**groups))
    attach(controller)
    assert controller.blend_router is None
    assert "requests are not kept with their prefixes: --attn-dp-size" in caplog.text


def test_ranks_are_those_of_all_replicas_and_attention_groups_add_none() -> None:
    assert rank_count(server()) == 4
    assert [rank_count(server(**groups)) for groups in ATTENTION_GROUPS] == [2, 2]


def test_upstream_has_the_controller_that_the_hooks_go_into() -> None:
    assert problems(plugin.installer.targets(plugin.CONTROLLER_HOOKS)) == []


class Controller:
    """The methods of upstream's controller that the hooks stand around."""

    blend_router: Any = None

    def __init__(self) -> None:
        self.sent: list[Any] = []

    def dispatching_with_trace(self, req: Any, refresh_load_budget: bool = True) -> None:
        self.sent.append((req.rid, req.routed_dp_rank, refresh_load_budget))


def test_the_hooks_send_through_upstream_with_its_own_arguments() -> None:
    controller, original = Controller(), Controller.dispatching_with_trace
    plugin._route(original, controller, request("without", [1]))
    controller.blend_router = Setup().router
    plugin._hear_control(controller, PAUSE)
    plugin._route(original, controller, request("kept", [1]), refresh_load_budget=False)
    plugin._route(original, controller, request("HEALTH_CHECK_1", [1]))
    assert [rid for rid, *_ in controller.sent] == ["without", "HEALTH_CHECK_1"]
    plugin._hear_control(controller, CONTINUE)
    assert controller.sent[2] == ("kept", 0, False)
    assert controller.sent[0] == ("without", None, True)
