"""Server-argument defaults of the CPU platform: only where the user said nothing."""

import os
from dataclasses import replace

import pytest

from checkpoints import make_llama
from sglang.srt.arg_groups.overrides import resolved_view
from sglang.srt.blend.core.cost.hardware import load_hardware
from sglang.srt.blend.runtime import replicas
from sglang.srt.hardware_backend.portable_cpu import srt_platform
from sglang.srt.hardware_backend.portable_cpu.srt_platform import PortableCpuPlatform
from sglang.srt.platforms import current_platform
from sglang.srt.server_args import ServerArgs


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_llama(tmp_path_factory.mktemp("llama")))


def _resolve(model: str, **arguments: object):  # type: ignore[no-untyped-def]
    server_args = ServerArgs(model_path=model, **arguments)
    server_args.resolve_once()
    return resolved_view(server_args)


@pytest.fixture(autouse=True)
def _on_this_platform() -> None:
    if not isinstance(current_platform, PortableCpuPlatform):
        pytest.skip("this machine has an accelerator; its own platform is active")


def test_no_device_argument_means_cpu(model: str) -> None:
    assert _resolve(model).device == "cpu"


def test_defaults_need_no_compiled_kernels(model: str) -> None:
    view = _resolve(model, device="cpu")
    assert view.attention_backend == "portable_cpu"
    assert view.sampling_backend == "pytorch"


def test_a_pool_is_divided_by_the_profile_of_the_platform_that_was_found(model: str) -> None:
    server_args = ServerArgs(model_path=model, dp_size=2)
    server_args.resolve_once()
    assert replicas._cost_model(server_args).hardware == load_hardware("cpu")


@pytest.mark.parametrize("flags", [{"attn_dp_size": 2}, {"dp_size": 2, "enable_dp_attention": True}])
def test_groups_of_attention_ranks_are_refused_with_the_remedy(model: str, flags: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="--enable-dp-attention.* use --dp-size 2 without it"):
        _resolve(model, tp_size=2, **flags)


def test_default_kv_cache_is_bounded_by_tokens_and_memory(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(srt_platform.os, "cpu_count", lambda: 3)
    view = _resolve(model)
    assert view.max_total_tokens == 3 * srt_platform.KV_TOKENS_PER_CORE
    assert view.mem_fraction_static == srt_platform.STATIC_MEMORY_FRACTION


@pytest.mark.parametrize(
    ("ranks", "expected"), [(1, None), (2, None), (3, "0|1|2,3"), (4, "0|1|2|3"), (5, "0,1,2,3|0|1|2|3")]
)
def test_more_ranks_than_numa_nodes_get_cores_of_their_own(
    ranks: int, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two nodes of two cores; with more ranks than cores some ranks run anywhere."""
    monkeypatch.setattr("sglang.srt.utils.common.get_cpu_ids_by_node", lambda: ["0,1", "2,3"])
    monkeypatch.setenv(srt_platform.THREADS_BIND, "")
    srt_platform._give_ranks_their_cores(ranks)
    assert (os.environ[srt_platform.THREADS_BIND] or None) == expected


def test_a_binding_of_the_users_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(srt_platform.THREADS_BIND, "0-3|4-7")
    srt_platform._give_ranks_their_cores(2)
    assert os.environ[srt_platform.THREADS_BIND] == "0-3|4-7"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, str(srt_platform.SPINS)),
        ({srt_platform.SPIN_COUNT: "7"}, "7"),
        ({srt_platform.WAIT_POLICY: "active"}, None),
    ],
)
def test_threads_of_schedulers_wait_briefly_unless_the_user_said_how(
    given: dict[str, str], expected: str | None, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (srt_platform.SPIN_COUNT, srt_platform.WAIT_POLICY):
        monkeypatch.setenv(name, "")  # so that it is as before afterwards
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    _resolve(model)
    assert os.environ.get(srt_platform.SPIN_COUNT) == expected


def test_ranks_share_the_memory(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(srt_platform.THREADS_BIND, "0|0|0|0")
    view = _resolve(model, tp_size=2, dp_size=2)
    assert view.mem_fraction_static == pytest.approx(srt_platform.STATIC_MEMORY_FRACTION / 4)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("max_total_tokens", 5000),
        ("mem_fraction_static", 0.3),
        ("chunked_prefill_size", 96),
        ("attention_backend", "triton"),
    ],
)
def test_an_explicit_argument_stands(model: str, argument: str, value: object) -> None:
    assert getattr(_resolve(model, **{argument: value}), argument) == value


def test_an_explicit_memory_fraction_sizes_the_cache_alone(model: str) -> None:
    assert _resolve(model, mem_fraction_static=0.3).max_total_tokens is None


def test_a_container_limit_bounds_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    platform = PortableCpuPlatform()
    assert 0 < platform.get_current_memory_usage() < platform.get_device_total_memory()
    monkeypatch.setattr("sglang.srt.blend.runtime.versions.memory_limit", lambda: 12345)
    assert platform.get_device_total_memory() == 12345


def test_a_changed_upstream_is_named_instead_of_crashing_in_a_step() -> None:
    from sglang.srt.hardware_backend.portable_cpu import hooks, kernel_registration

    lost = [replace(hook, target=f"{hook.target}_of_old") for hook in hooks.STEP_HOOKS]
    with pytest.raises(RuntimeError, match=r"SGLang has no sglang\.srt\..*\.get_last_loc_of_old"):
        kernel_registration.install(tuple(lost))
