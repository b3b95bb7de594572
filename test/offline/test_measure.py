"""The order of runs, which variants go on, and what happens in the scheduler of a measured engine."""

import io
import json
from types import SimpleNamespace

import pytest
from benchmark import offline_throughput
from benchmark.offline import machine
from benchmark.offline import measure as module
from benchmark.offline.configurations import Configuration, Setting, sglang_options, variants
from benchmark.offline.measure import fastest_variants, measure
from benchmark.offline.scheduler_hooks import OUTPUT_TOKENS, StepLog, end_answer, summarise_steps
from benchmark.offline.workloads import prepare

from cpu_machines import AMX

SETTING = Setting("model", "bfloat16", 8192, threads=2, hardware="this.toml")
FCFS, LPM = Configuration("fcfs"), Configuration("lpm")
BLEND, MIXED = Configuration("blend"), Configuration("blend", mixed_chunk=True)
SPEED = {"fcfs": 4.0, "lpm": 3.0, "blend": 2.0, "blend, mixed chunk": 1.0}


@pytest.fixture
def events(monkeypatch):
    """Starts, runs and stops of fake workers, in order."""
    happened = []

    def start_worker(configuration, setting, log):
        happened.append(("start", configuration.name))

        def call(message):
            happened.append(("run", configuration.name, message["pool"].rsplit("/", 1)[1]))
            return {"seconds": SPEED[configuration.name]}

        return SimpleNamespace(
            ready=lambda: {"kv_capacity": setting.kv_tokens},
            call=call,
            stop=lambda: happened.append(("stop", configuration.name)),
        )

    monkeypatch.setattr(module, "start_worker", start_worker)
    monkeypatch.setattr(module, "wait_until_idle", lambda: 3.14)
    return happened


def runs(configurations, folder, *, rounds=1, names=("arxiv", "azure-code"), engines_at_once=9):
    workloads = [prepare(name, AMX, scale=0.1) for name in names]
    return list(
        measure(
            configurations,
            workloads,
            SETTING,
            rounds=rounds,
            folder=folder,
            engines_at_once=engines_at_once,
            say=lambda text: None,
        )
    )


def test_configurations_alternate_on_each_workload(events, tmp_path):
    measured = runs([FCFS, LPM], tmp_path)
    assert [(r["workload"], r["configuration"]) for r in measured] == [
        ("arxiv", "lpm"),
        ("arxiv", "fcfs"),
        ("azure-code", "lpm"),
        ("azure-code", "fcfs"),
    ]


def test_each_run_waits_for_idle_cores_and_notes_how_busy_they_were(events, tmp_path):
    assert [run["busy_before"] for run in runs([FCFS, LPM], tmp_path)] == [3.1] * 4


def test_cores_that_become_idle_are_waited_for_others_not_for_ever(monkeypatch):
    busy = iter([80.0, 30.0, 2.0, 70.0])
    monkeypatch.setattr(machine.psutil, "cpu_percent", lambda interval: next(busy))
    assert machine.wait_until_idle() == 2.0
    assert machine.wait_until_idle(seconds=0.0) == 70.0


def test_the_record_names_files_without_their_folders():
    record = Setting(
        "/home/me/model", "float32", 4096, 2, "/tmp/cpu.toml", vllm_python="/opt/bin/python"
    ).record()
    assert (record["model_path"], record["hardware"], record["vllm_python"]) == (
        "model",
        "cpu.toml",
        "python",
    )
    assert Setting("smollm2", "float32", 4096, 2).record()["vllm_python"] is None


def test_each_round_starts_with_another_configuration(events, tmp_path):
    measured = runs([FCFS, LPM], tmp_path, rounds=2, names=("arxiv",))
    assert [r["configuration"] for r in measured] == ["lpm", "fcfs", "fcfs", "lpm"]


def test_engines_stay_up_where_they_fit_and_all_are_stopped(events, tmp_path):
    runs([FCFS, LPM], tmp_path, rounds=3)
    assert sum(event[0] == "start" for event in events) == 2
    assert sorted(event[1] for event in events if event[0] == "stop") == ["fcfs", "lpm"]


def test_no_more_engines_are_up_than_allowed(events, tmp_path):
    runs([FCFS, LPM, BLEND], tmp_path, rounds=2, engines_at_once=2)
    up = most = 0
    for event in events:
        up += {"start": 1, "stop": -1, "run": 0}[event[0]]
        most = max(most, up)
    assert (most, up) == (2, 0)


def test_only_the_fastest_variant_goes_beyond_the_first_round(events, tmp_path):
    measured = runs([FCFS, BLEND, MIXED], tmp_path, rounds=2, names=("arxiv",))
    assert sorted(r["configuration"] for r in measured if r["round"] == 1) == sorted(
        ["fcfs", "blend", "blend, mixed chunk"]
    )
    assert sorted(r["configuration"] for r in measured if r["round"] == 2) == ["blend, mixed chunk", "fcfs"]


def test_the_fastest_variant_is_chosen_over_all_workloads():
    found = fastest_variants(
        [BLEND, MIXED],
        [
            {"configuration": "blend", "seconds": 10.0},
            {"configuration": "blend", "seconds": 1.0},
            {"configuration": "blend, mixed chunk", "seconds": 8.0},
            {"configuration": "blend, mixed chunk", "seconds": 2.0},
        ],
    )
    assert found == [BLEND]


def test_vllms_two_orders_are_not_variants_of_each_other(events, tmp_path):
    first, second = Configuration("vllm"), Configuration("vllm", depth_first=True)
    seen = [{"configuration": c.name, "seconds": 1.0} for c in (first, second)]
    assert fastest_variants([first, second], seen) == [first, second]


def test_depth_first_order_is_given_in_the_file(events, tmp_path, monkeypatch):
    monkeypatch.setitem(SPEED, "vllm, DFS order", 1.0)
    runs([Configuration("vllm", depth_first=True)], tmp_path, names=("classification",))
    assert events[1] == ("run", "vllm, DFS order", "classification-dfs.npz")


def test_blend_gets_the_measured_profile_and_others_no_flags_of_it():
    assert sglang_options(BLEND, SETTING)["blend_hardware"] == "this.toml"
    assert not [key for key in sglang_options(FCFS, SETTING) if key.startswith("blend")]


def test_float32_weights_keep_a_16_bit_cache():
    assert sglang_options(FCFS, SETTING)["kv_cache_dtype"] == "auto"
    float32 = Setting("model", "float32", 8192, threads=2)
    assert sglang_options(FCFS, float32)["kv_cache_dtype"] == "bf16"


def test_shorter_requests_need_no_longer_context():
    assert sglang_options(FCFS, SETTING)["context_length"] == 4096
    short = Setting("model", "bfloat16", 2048, threads=2, context=2048)
    assert sglang_options(FCFS, short)["context_length"] == 2048


def test_every_variant_has_a_name_of_its_own():
    names = [
        c.name for policy in ("fcfs", "blend") for chunk in (False, True) for c in variants(policy, chunk)
    ]
    assert len(set(names)) == len(names) == 5


def request(length, cap):
    params = SimpleNamespace(
        max_new_tokens=cap, ignore_eos=False, custom_params={OUTPUT_TOKENS: length} if length else None
    )
    return SimpleNamespace(sampling_params=params)


def test_an_answer_ends_at_its_length_which_only_the_end_sees():
    seen = []

    def original(req, new_tokens):
        seen.append((req.sampling_params.max_new_tokens, req.sampling_params.ignore_eos, new_tokens))

    req = request(7, 64)
    end_answer(original, req, 1)
    assert seen == [(7, True, 1)]
    assert (req.sampling_params.max_new_tokens, req.sampling_params.ignore_eos) == (64, False)
    end_answer(original, request(None, 64), 1)
    assert seen[1] == (64, False, 1)


def batch(*, extend, tokens=0, decoding=0, rows=0):
    return SimpleNamespace(
        forward_mode=SimpleNamespace(is_extend=lambda: extend),
        extend_num_tokens=tokens,
        decoding_reqs=[None] * decoding,
        reqs=[None] * rows,
    )


def test_steps_are_counted_by_kind():
    file = io.StringIO()
    log = StepLog(file)
    log.note(None, batch(extend=True, tokens=100, rows=2))
    log.note(None, batch(extend=True, tokens=53, decoding=3, rows=4))
    log.note(None, batch(extend=False, rows=4))
    steps = summarise_steps(file.getvalue().splitlines())
    assert (steps["steps"], steps["prefill_steps"], steps["mixed_steps"]) == (3, 1, 1)
    assert steps["prefill_tokens"] == 150
    assert steps["rows_per_decode"] == 3.5


def test_step_times_last_until_the_next_step():
    rows = [[0.0, 100, 0], [2.0, 0, 4], [2.5, 0, 4], [3.5, 0, 4], [4.0, 0, 4]]
    steps = summarise_steps([json.dumps(row) for row in rows])
    assert steps["prefill_tokens_per_second"] == 50.0
    assert steps["decode_step_ms"] == 500.0


def test_no_steps_are_no_error():
    assert summarise_steps([])["steps"] == 0


def test_only_named_configurations_are_measured():
    arguments = offline_throughput.parse(["--only", "fcfs", "--only", "blend, mixed chunk"])
    assert offline_throughput.configurations(arguments) == [FCFS, MIXED]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--rounds", "0"], "--rounds must be at least 1"),
        (["--kv-tokens", "100"], "the longest requests need 4096"),
        (["--kv-tokens", "1000", "--length-scale", "0.5"], "the longest requests need 2048"),
        (["--length-scale", "2"], "at most 1"),
        (["--vllm-python", "/nowhere/python"], "--setup-vllm DIR makes one"),
        (["--workload", "trace9"], "invalid choice"),
        (["--only", "fcfs, mixed"], "choose among: fcfs; fcfs, mixed chunk; lpm"),
    ],
)
def test_bad_usage_is_explained(argv, message, capsys):
    with pytest.raises(SystemExit) as stop:
        offline_throughput.parse(argv)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
