"""`sglang-batch plan`: what a batch will take on a GPU, before one is rented.

Needs the model's config and tokenizer. The pool is analysed with the planner's own cost model and prefix
tree; times come from SGLang's scheduler on a simulated GPU. The practical optimum is a bound.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import numpy as np
from tqdm import tqdm

from sglang.batch.input.source import Source
from sglang.batch.media import MediaPolicy
from sglang.batch.plan.advice import Machine, advise
from sglang.batch.plan.answers import assume_answers
from sglang.batch.plan.arguments import PlanArguments
from sglang.batch.plan.excerpt import choose_excerpt
from sglang.batch.plan.gpus import enough_gpus, kv_capacity, step_times
from sglang.batch.plan.groups import find_groups
from sglang.batch.plan.prompt_reader import read_prompts
from sglang.batch.plan.prompts import PlannedModel, Prompts
from sglang.batch.plan.report import Excerpt, PlanReport
from sglang.batch.plan.schedules import NotSimulated, Schedule, Simulated, simulate_all, simulator_processes
from sglang.batch.usage import BadUsage
from sglang.srt.blend.core.cost.cost_model import CostModel
from sglang.srt.blend.core.cost.engines import PoolWork, engines_on, practical_optimum
from sglang.srt.blend.core.cost.pdmux import PdmuxTimes
from sglang.srt.blend.core.cost.pdmux_choice import PdmuxChoice, choose_config
from sglang.srt.blend.core.cost.step_time import StepTimeModel
from sglang.srt.blend.core.pool.workload import Workload

PLANNED, SOME_BAD, NOT_SIMULATED = 0, 1, 3
"""Exit codes: all well; some lines cannot be run; a simulation failed."""


def plan(arguments: PlanArguments) -> int:
    """Print the plan and write its files.

    Returns:
        The exit code, as `cli` explains it.

    Raises:
        BadUsage: the model cannot be read or does not fit, or a file cannot be written.
    """
    with simulator_processes(arguments.jobs) as processes:
        prompts = _read(arguments, processes)
        report = _report(arguments, prompts, processes)
    if report is None:
        return SOME_BAD
    print(report.text())
    try:
        _write(arguments, report)
    except OSError as error:
        raise BadUsage(f"{error.filename}: cannot be written ({error.strerror})") from error
    if report.failed:
        return NOT_SIMULATED
    return SOME_BAD if report.bad_lines else PLANNED


def _write(arguments: PlanArguments, report: PlanReport) -> None:
    if arguments.json is not None:
        report.write_json(arguments.json)
    if arguments.pdmux_config is not None and report.pdmux is not None:
        from sglang.srt.blend.runtime.pdmux_config import write_pdmux_config

        write_pdmux_config(arguments.pdmux_config, report.pdmux.config, "\n".join(report.pdmux_lines()))
    if arguments.chart is not None and report.simulated:
        from sglang.batch.plan.chart import draw_plan

        draw_plan(report, arguments.chart)


def _read(arguments: PlanArguments, processes: ProcessPoolExecutor) -> Prompts:
    return read_in_a_process(
        processes, arguments.inputs, arguments.server, arguments.media, quiet=arguments.quiet
    )


def read_in_a_process(
    processes: ProcessPoolExecutor,
    sources: Sequence[Source],
    server: list[str],
    media: MediaPolicy,
    *,
    quiet: bool,
    limit: int | None = None,
) -> Prompts:
    """Tokenize a batch where SGLang finds the simulated GPU's platform.

    Args: as of `read_prompts`.

    Raises:
        BadUsage: an input, or the model's config or tokenizer, cannot be read.
    """
    try:
        return processes.submit(read_prompts, sources, server, media, quiet=quiet, limit=limit).result()
    except (OSError, ValueError, KeyError, BrokenProcessPool) as error:
        problem = str(error) or type(error).__name__
        raise BadUsage(f"the model's config or tokenizer cannot be read: {problem}") from error


def _report(arguments: PlanArguments, prompts: Prompts, processes: ProcessPoolExecutor) -> PlanReport | None:
    """Make the plan; None, with a word about why, where not one line can be run."""
    model, hardware = prompts.model, arguments.hardware
    longest_prompt = int(np.diff(prompts.offsets).max(initial=0))
    degree = arguments.tensor_parallel or enough_gpus(model, hardware, longest_prompt)
    times = step_times(model, hardware, degree)
    cost = _cost(times)
    capacity = kv_capacity(model, hardware, degree)
    # SGLang keeps two tokens of the context, and of the KV cache, to itself.
    workload, answers, refused, kept = assume_answers(
        prompts, output_tokens=arguments.output_tokens, longest=min(model.context, capacity) - 2
    )
    bad = tuple(sorted((*prompts.bad, *refused), key=lambda line: line.line))
    if not len(workload):
        print(f"sglang-batch plan: none of {prompts.lines:,} lines can be run", file=sys.stderr)
        for line in bad[:1]:
            print(f"  {line.message} ({line.code})", file=sys.stderr)
        return None
    statistics, tree = workload.statistics(cost), workload.tree(cost)
    optimum = {engine: _optimum(workload, times, engine) for engine in arguments.engines}
    pdmux = _pdmux(workload, times, capacity) if "pdmux" in engines_on(hardware) else None
    done, failed, excerpt = _simulate(arguments, workload, model, times, optimum, pdmux, processes)
    seconds = {run.schedule: run.seconds for run in done}
    needed = int(tree.node_kv_tokens[0])
    return PlanReport(
        model=model.name,
        hardware=hardware.name,
        tensor_parallel=degree,
        lines=prompts.lines,
        bad_lines=bad,
        requests=len(workload),
        media=prompts.media,
        prompt_tokens=statistics.prompt_tokens,
        output_tokens=statistics.output_tokens,
        answers=answers,
        sharing_possible=statistics.sharing,
        density=statistics.density,
        kv_capacity=capacity,
        kv_tokens=needed,
        weight_bytes=times.shape.weight_bytes,
        mem_fraction_static=model.server["mem_fraction_static"],
        chunked_prefill_size=model.server["chunked_prefill_size"],
        groups=tuple(find_groups(workload, prompts, kept, cost)),
        optimum=optimum,
        pdmux=pdmux,
        longest_answer=int(workload.output.max()),
        excerpt=excerpt,
        simulated=tuple(done),
        failed=tuple(failed),
        advice=advise(seconds, _machine(arguments, model, times), everything_fits=needed <= capacity)
        if seconds
        else None,
    )


def _optimum(workload: Workload, times: StepTimeModel, engine: str) -> float:
    """Seconds of the practical optimum, in which the longest answer takes a pass for each token."""
    return practical_optimum(times, engine, _work(workload, times), min_steps=int(workload.output.max()))


def _pdmux(workload: Workload, times: StepTimeModel, capacity: int) -> PdmuxChoice:
    return choose_config(
        PdmuxTimes(times),
        _work(workload, times),
        kv_capacity=capacity,
        longest=int(workload.output.max()),
    )


def _work(workload: Workload, times: StepTimeModel) -> PoolWork:
    """What the pool does if every shared prefix is computed once."""
    order, tree = workload.depth_first_order(), workload.tree(_cost(times))
    return PoolWork.of(workload.prompt[order], workload.output[order], tree.lcp)


def _cost(times: StepTimeModel) -> CostModel:
    return CostModel(times.shape, times.hardware)


def _simulate(
    arguments: PlanArguments,
    workload: Workload,
    model: PlannedModel,
    times: StepTimeModel,
    optimum: dict[str, float],
    pdmux: PdmuxChoice | None,
    processes: ProcessPoolExecutor,
) -> tuple[list[Simulated], list[NotSimulated], Excerpt | None]:
    """Simulate the schedules asked for, in their order, with an excerpt of the pool where it is too large."""
    if arguments.simulate_requests == 0:
        return [], [], None
    chosen = choose_excerpt(workload, arguments.simulate_requests, _cost(times))
    part = workload if len(chosen) == len(workload) else workload.take(chosen)
    schedules = [Schedule(policy, engine) for policy in arguments.policies for engine in arguments.engines]
    results = simulate_all(
        processes,
        schedules,
        part,
        model,
        hardware=arguments.hardware_name,
        tensor_parallel=times.shape.tensor_parallel,
        pdmux=None if pdmux is None else pdmux.config,
    )
    silent = arguments.quiet or not sys.stderr.isatty()
    bar = tqdm(results, total=len(schedules), desc="simulations", unit="run", disable=silent)
    runs = {run.schedule: run for run in bar}
    done = [runs[schedule] for schedule in schedules]
    scale = {engine: optimum[engine] / _optimum(part, times, engine) for engine in arguments.engines}
    return (
        [run for run in done if isinstance(run, Simulated)],
        [run for run in done if isinstance(run, NotSimulated)],
        Excerpt(len(part), int(part.tree(_cost(times)).node_kv_tokens[0]), scale),
    )


def _machine(arguments: PlanArguments, model: PlannedModel, times: StepTimeModel) -> Machine:
    chunk, static = model.server["chunked_prefill_size"], model.server["mem_fraction_static"]
    rows = np.arange(128, 16385, 128)
    rate = rows / times.gemm(rows, 0)
    return Machine(
        chunk=chunk,
        chunk_efficiency=float(np.interp(chunk, rows, rate) / rate.max()),
        static=static,
        spare_bytes=(1.0 - static) * times.hardware.memory,
        weight_bytes=times.shape.weight_bytes,
        tensor_parallel=times.shape.tensor_parallel,
        tensor_parallel_chosen=not arguments.tensor_parallel,
    )
