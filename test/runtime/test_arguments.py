"""The --blend-* flags: accepted everywhere, checked once, carried into every process."""

from __future__ import annotations

import argparse
import pickle

import pytest

from sglang.srt.blend.runtime import arguments
from sglang.srt.blend.runtime.arguments import BlendOptions
from sglang.srt.blend.runtime.plugin import ensure_registered
from sglang.srt.entrypoints.engine import Engine
from sglang.srt.server_args import ServerArgs, prepare_server_args

ensure_registered()

MODEL = ["--model-path", "none"]


@pytest.fixture
def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    ServerArgs.add_cli_args(parser)
    return parser


def test_help_lists_every_flag_with_its_default(parser):
    text = " ".join(parser.format_help().split())
    for flag, default in {
        "--blend-hardware": "auto",
        "--blend-sample-fraction": "0.01",
        "--blend-sharing-budget": "0.99",
        "--blend-replan-interval": "256",
        "--blend-window": "0",
        "--blend-patience": "4.0",
        "--blend-admission-log": "off",
    }.items():
        assert flag in text
        assert f"Default: {default}." in text.split(flag, 2)[2].split("--blend-")[0]


def test_the_command_line_sets_policy_and_options():
    record = prepare_server_args([*MODEL, "--schedule-policy", "blend", "--blend-sample-fraction", "0.05"])
    assert record.schedule_policy == "blend"
    assert arguments.get_options(record) == BlendOptions(sample_fraction=0.05)


def test_a_config_file_sets_options(tmp_path):
    config = tmp_path / "server.yaml"
    config.write_text("schedule-policy: blend\nblend-window: 512\n")
    record = prepare_server_args([*MODEL, "--config", str(config)])
    assert arguments.get_options(record).window == 512


def test_engine_keyword_arguments_set_options():
    record = Engine.server_args_class(
        model_path="none", schedule_policy="blend", blend_window=7, blend_hardware="h100"
    )
    assert isinstance(record, ServerArgs)
    assert arguments.get_options(record) == BlendOptions(window=7, hardware="h100")


def test_an_engine_keyword_that_is_no_option_is_refused_by_name():
    with pytest.raises(TypeError, match="blend_sharing: no such option; choose among .*blend_sharing_budget"):
        Engine.server_args_class(model_path="none", blend_sharing=1)


def test_options_travel_with_the_pickled_record():
    record = Engine.server_args_class(model_path="none", blend_replan_interval=3)
    assert arguments.get_options(pickle.loads(pickle.dumps(record))).replan_interval == 3


def test_a_record_without_options_has_the_defaults():
    assert arguments.get_options(ServerArgs(model_path="none")) == BlendOptions()


BAD = [
    ("sample_fraction", 1.5, "from 0 to 1"),
    ("sharing_budget", -0.1, "from 0 to 1"),
    ("replan_interval", 0, "at least 1"),
    ("window", -1, "at least 0"),
    ("patience", -0.5, "at least 0"),
    ("hardware", "a1000", "choose one of a100-40gb"),
]


@pytest.mark.parametrize(("name", "value", "remedy"), BAD)
def test_a_bad_keyword_value_names_flag_value_and_remedy(name, value, remedy):
    with pytest.raises(ValueError, match=f"{arguments.flag(name)} {value!r}: .*{remedy}"):
        Engine.server_args_class(model_path="none", **{f"blend_{name}": value})


@pytest.mark.parametrize(("name", "value", "remedy"), [*BAD, ("window", "many", "at least 0")])
def test_a_bad_flag_value_is_one_line_with_flag_value_and_remedy(name, value, remedy, capsys):
    with pytest.raises(SystemExit):
        prepare_server_args([*MODEL, f"{arguments.flag(name)}={value}"])
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"argument {arguments.flag(name)}: {str(value)!r}: " in last
    assert remedy in last


def test_a_hardware_profile_can_be_a_file(tmp_path):
    profile = tmp_path / "mine.toml"
    profile.write_text("flops = 1e12\nbandwidth = 1e11\nmemory = 1e10\n")
    assert BlendOptions(hardware=str(profile)).hardware == str(profile)
