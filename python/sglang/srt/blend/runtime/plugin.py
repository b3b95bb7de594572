"""Every place where the scheduler touches upstream, and why. ``register`` is the entry point upstream calls.

With any schedule policy but blend each hook returns what upstream returns, except that a wish to switch the
policy is refused in words of ours. A hook whose target is missing stops a blend server at start-up with the
symbol's name (see ``compatibility``).

Hooks are applied when their module is there: ``register`` runs in every process, long before some of
them import a scheduler, and importing one only to patch it would cost seconds and memory. Upstream calls
``load_plugins`` again at the points that matter (in ``Engine``, before processes are launched, in each
scheduler process), and a hook on it applies what has become possible meanwhile.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from sglang.srt.blend.runtime import arguments, installer
from sglang.srt.blend.runtime.arguments import POLICY
from sglang.srt.blend.runtime.compatibility import problems, require
from sglang.srt.blend.runtime.installer import Hook, HookType
from sglang.srt.blend.runtime.pdmux_config import refuse_pdmux_problems
from sglang.srt.blend.runtime.request import Request


def _is_blend(scheduler: Any) -> bool:
    return bool(scheduler.schedule_policy == POLICY)


# ---------------------------------------------------------------- arguments


def _offer_choice(parser: Any, cls: Any, **_: Any) -> None:
    if cls.__name__ == "ServerArgs":
        ensure_registered()  # ServerArgs is complete now, see `_early`
        arguments.offer_policy(cls)


def _add_flags(_result: Any, parser: Any, cls: Any, **_: Any) -> None:
    if cls.__name__ == "ServerArgs":
        arguments.add_flags(parser)


def _keep_options(server_args: Any, _cls: Any, namespace: Any) -> None:
    arguments.set_options(server_args, arguments.options_from(vars(namespace)))


def _refuse_early(server_args: Any) -> None:
    if server_args.schedule_policy == POLICY:
        replicas = installer.targets(CONTROLLER_HOOKS) if server_args.dp_size > 1 else ()
        require(problems((*TARGETS, *replicas)))
        refuse_pdmux_problems(server_args)


def _allow_priorities(original: Callable[..., Any], server_args: Any) -> Any:
    if server_args.schedule_policy != POLICY:
        return original(server_args)
    # Upstream allows priorities with fcfs and lof only; blend orders inside each class. The record is
    # sealed here, hence the setter of its base class.
    msgspec.Struct.__setattr__(server_args, "schedule_policy", "fcfs")
    try:
        return original(server_args)
    finally:
        msgspec.Struct.__setattr__(server_args, "schedule_policy", POLICY)


# ---------------------------------------------------------------- scheduler


def _prepare(_result: Any, scheduler: Any) -> None:
    if _is_blend(scheduler):
        require([*problems(TARGETS), *unapplied()])
        from sglang.srt.blend.runtime import startup

        startup.prepare(scheduler)


def _install_policy(original: Callable[..., Any], scheduler: Any) -> Any:
    if not _is_blend(scheduler):
        return original(scheduler)
    require([*problems(TARGETS), *unapplied()])
    from sglang.srt.blend.runtime import startup

    return startup.install_policy(original, scheduler)


def _choose_adder(upstream_class: Any, scheduler: Any) -> Any:
    if not _is_blend(scheduler):
        return upstream_class
    blend = scheduler.blend
    return blend.adder_class if blend.watches is None else blend.watched_adder_class


def _drop(scheduler: Any, req: Request) -> None:
    if _is_blend(scheduler):
        scheduler.blend.pool.drop(req)


def _time_step(original: Callable[..., Any], scheduler: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
    stopwatch = scheduler.blend.stopwatch if _is_blend(scheduler) else None
    if stopwatch is None:
        return original(scheduler, batch, *args, **kwargs)
    scheduler.blend.measured.correct()
    stopwatch.launching(batch)
    result = original(scheduler, batch, *args, **kwargs)
    stopwatch.launched()
    return result


def _note_result(_result: Any, scheduler: Any, *_: Any, **__: Any) -> None:
    blend = scheduler.blend if _is_blend(scheduler) else None
    if blend is not None and blend.stopwatch is not None:
        # Answers are on their way, and a client may ask for the next thing: nothing here may take time.
        blend.stopwatch.result()
        if blend.pool.is_empty:
            blend.measured.pool_ended()


def _release(_result: Any, req: Request, tree_cache: Any, **_: Any) -> None:
    pool = getattr(tree_cache, "blend_pool", None)
    if pool is not None:
        pool.release(req)


def _preemptible_last(order: list[int], reqs: list[Request]) -> list[int]:
    """Preemptible requests leave first: upstream retracts from the end of this order."""
    pool = getattr(reqs[0], "blend_pool", None) if reqs else None
    return order if pool is None else sorted(order, key=lambda i: pool.is_preemptible(reqs[i]))


def _report_state(output: Any, scheduler: Any, _request: Any) -> None:
    if _is_blend(scheduler):
        from sglang.srt.blend.runtime.metrics import internal_state

        output.internal_state["blend"] = internal_state(scheduler.blend)


def _offer_switching(handlers: dict[str, Any], controller: Any) -> None:
    from sglang.srt.blend.runtime import switching
    from sglang.srt.managers.scheduler_components.internal_state import UpdateRejected, _UpdateHandler

    scheduler = controller.scheduler

    def validate(key: str, value: float) -> None:
        refusal = switching.problem(scheduler, key.removeprefix(_SWITCH), value)
        if refusal is not None:
            raise UpdateRejected(f"{key}: {refusal}")

    def apply(key: str, _value: float) -> dict[str, str]:
        return switching.switch(scheduler, key.removeprefix(_SWITCH))

    for name in switching.POLICIES:
        handlers[_SWITCH + name] = _UpdateHandler(validate, apply)


def _set_gauges(_result: Any, reporter: Any, *_: Any, **__: Any) -> None:
    blend = reporter.scheduler.blend if _is_blend(reporter.scheduler) else None
    if blend is not None and blend.gauges is not None:
        from sglang.srt.blend.runtime.metrics import snapshot

        blend.gauges.set(snapshot(blend), blend.planner.state.reasons)


# ---------------------------------------------------------------- data-parallel controller


def _attach_router(_result: Any, controller: Any) -> None:
    if controller.server_args.schedule_policy == POLICY:
        require(unapplied(CONTROLLER_HOOKS))
        from sglang.srt.blend.runtime import replicas

        replicas.attach(controller)


def _route(original: Callable[..., Any], controller: Any, req: Any, *args: Any, **kwargs: Any) -> Any:
    router = getattr(controller, "blend_router", None)
    if router is None or _is_health_check(req):
        return original(controller, req, *args, **kwargs)
    return router.dispatch(lambda chosen: original(controller, chosen, *args, **kwargs), req)


def _is_health_check(req: Any) -> bool:
    from sglang.srt.managers.utils import is_health_check_generate_req

    return bool(is_health_check_generate_req(req))


def _hear_control(controller: Any, message: Any) -> None:
    router = getattr(controller, "blend_router", None)
    if router is not None:
        router.control(message)


# ---------------------------------------------------------------- table


_ARGS = "sglang.srt.server_args"
_SWITCH = "schedule_policy."
"""Upstream's request takes numbers only, so the policy's name is a part of the key."""
_SCHEDULER = "sglang.srt.managers.scheduler"
_REPORTER = "sglang.srt.managers.scheduler_components.metrics_reporter.SchedulerMetricsReporter"

HOOKS: tuple[Hook, ...] = (
    Hook(
        "sglang.srt.plugins.load_plugins",
        lambda _result: ensure_registered(),
        HookType.AFTER,
        "apply the hooks whose modules have been imported since the last call",
    ),
    Hook(
        "sglang.srt.arg_groups.arg_utils.add_cli_args_from_dataclass",
        _offer_choice,
        HookType.BEFORE,
        "--schedule-policy accepts blend",
    ),
    Hook(
        "sglang.srt.arg_groups.arg_utils.add_cli_args_from_dataclass",
        _add_flags,
        HookType.AFTER,
        "--blend-* flags in --help, on the command line and in --config files",
    ),
    Hook(
        f"{_ARGS}.ServerArgs.from_cli_args",
        _keep_options,
        HookType.AFTER,
        "the --blend-* values travel with the record into every process",
        _ARGS,
    ),
    Hook(
        f"{_ARGS}.ServerArgs.resolve_once",
        _refuse_early,
        HookType.BEFORE,
        "a blend server does not start on an SGLang that lacks what it needs, nor on flags that it refuses",
        _ARGS,
    ),
    Hook(
        "sglang.srt.arg_groups.validation_hook.check_server_args",
        _allow_priorities,
        HookType.AROUND,
        "--enable-priority-scheduling works with blend",
        _ARGS,
    ),
    Hook(
        f"{_SCHEDULER}.Scheduler.init_model_config",
        _prepare,
        HookType.AFTER,
        "the first step with a configuration: choose the annotated radix cache before one is built",
        _SCHEDULER,
    ),
    Hook(
        f"{_SCHEDULER}.Scheduler.init_schedule_policy",
        _install_policy,
        HookType.AROUND,
        "planner, accounts and our SchedulePolicy",
        _SCHEDULER,
    ),
    Hook(
        f"{_SCHEDULER}.Scheduler.get_prefill_adder_class",
        _choose_adder,
        HookType.AFTER,
        "our PrefillAdder decides admission",
        _SCHEDULER,
    ),
    Hook(
        f"{_SCHEDULER}.Scheduler._release_aborted_request",
        _drop,
        HookType.BEFORE,
        "a waiting request is aborted: it leaves the plan and the annotations at once",
        _SCHEDULER,
    ),
    Hook(
        "sglang.srt.mem_cache.common.release_kv_cache",
        _release,
        HookType.AFTER,
        "once per request that ends or is retracted: frees its share, reports its output length",
        _SCHEDULER,
    ),
    Hook(
        "sglang.srt.managers.schedule_batch.ScheduleBatch._get_decode_retraction_order",
        _preemptible_last,
        HookType.AFTER,
        "requests that run in KV promised to others are the first to leave",
        _SCHEDULER,
    ),
    Hook(
        f"{_SCHEDULER}.Scheduler.run_batch",
        _time_step,
        HookType.AROUND,
        "step times correct the hardware profile: a step begins",
        _SCHEDULER,
    ),
    Hook(
        f"{_SCHEDULER}.Scheduler.process_batch_result",
        _note_result,
        HookType.AFTER,
        "its result is there, which is when it has ended",
        _SCHEDULER,
    ),
    Hook(
        f"{_SCHEDULER}.Scheduler.get_internal_state",
        _report_state,
        HookType.AFTER,
        "the policy's numbers in get_server_info under 'blend'",
        _SCHEDULER,
    ),
    Hook(
        "sglang.srt.managers.scheduler_components.internal_state.SchedulerInternalStateController._update_handlers",
        _offer_switching,
        HookType.AFTER,
        "POST /set_internal_state: another policy decides for a while",
        _SCHEDULER,
    ),
    Hook(
        f"{_REPORTER}.report_prefill_stats",
        _set_gauges,
        HookType.AFTER,
        "Prometheus gauges beside upstream's, at upstream's pace",
        _SCHEDULER,
    ),
    Hook(
        f"{_REPORTER}.report_decode_stats",
        _set_gauges,
        HookType.AFTER,
        "the same while nothing is admitted",
        _SCHEDULER,
    ),
)

TARGETS: tuple[str, ...] = installer.targets(HOOKS)

_CONTROLLER = "sglang.srt.managers.data_parallel_controller"

CONTROLLER_HOOKS: tuple[Hook, ...] = (
    Hook(
        f"{_CONTROLLER}.DataParallelController.init_dispatcher",
        _attach_router,
        HookType.AFTER,
        "--dp-size: the replicas are there, and no request has come yet",
        _CONTROLLER,
    ),
    Hook(
        f"{_CONTROLLER}.DataParallelController.dispatching_with_trace",
        _route,
        HookType.AROUND,
        "each request goes where its prefix is; a pool is kept until it is complete",
        _CONTROLLER,
    ),
    Hook(
        f"{_CONTROLLER}.DataParallelController.send_control_message",
        _hear_control,
        HookType.BEFORE,
        "the pool barrier passes here: a pool begins, or it is complete",
        _CONTROLLER,
    ),
)
"""Of the process that deals requests to replicas; schedulers do without."""

_ENGINE = "sglang.srt.entrypoints.engine"


def register() -> bool:
    """Entry point of the group ``sglang.srt.plugins``; upstream applies the hooks afterwards.

    Returns:
        Whether hooks have become possible since the last call.
    """
    new = installer.register((*HOOKS, *CONTROLLER_HOOKS))
    _accept_keyword_arguments()
    return new


def ensure_registered() -> None:
    """Register and apply; harmless when repeated, in any order with upstream's ``load_plugins``.

    For platforms: with ``SGLANG_PLATFORM`` naming one of our platforms, upstream skips our entry point
    because the same distribution ships another platform. Safe to call while upstream's modules are
    still being imported.
    """
    if register():
        installer.apply()


def unapplied(hooks: Iterable[Hook] = HOOKS) -> list[str]:
    """Problems with hooks in this process, one line each; the modules that they go into are imported."""
    return installer.unapplied(hooks)


def _accept_keyword_arguments() -> None:
    """``sgl.Engine(blend_...=...)``: upstream's own seam for private forks, a class attribute."""
    if not installer.imported(_ENGINE):
        return
    engine = sys.modules[_ENGINE].Engine
    if not getattr(engine.server_args_class, "accepts_blend_options", False):
        engine.server_args_class = staticmethod(arguments.server_args_factory(engine.server_args_class))
