"""--enable-pdmux: what SGLang would refuse is refused with the remedy; configs that we write are its own."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sglang.srt.blend.core.cost.hardware import load_hardware
from sglang.srt.blend.core.cost.pdmux import Division, PdmuxConfig
from sglang.srt.blend.runtime.pdmux_config import (
    pdmux_problems,
    read_pdmux_config,
    refuse_pdmux_problems,
    write_pdmux_config,
)
from sglang.srt.multiplex.pdmux_context import load_pdmux_config


def server_args(**changes: Any) -> SimpleNamespace:
    """What SGLang accepts, with `changes`."""
    fields = {
        "enable_pdmux": True,
        "chunked_prefill_size": -1,
        "disable_overlap_schedule": True,
        "pp_size": 1,
        "disaggregation_mode": "null",
        "pdmux_config_path": None,
    }
    return SimpleNamespace(**(fields | changes))


def test_what_upstream_accepts_is_accepted():
    refuse_pdmux_problems(server_args())
    refuse_pdmux_problems(server_args(enable_pdmux=False, chunked_prefill_size=8192, pp_size=2))


@pytest.mark.parametrize(
    ("changes", "remedy"),
    [
        ({"chunked_prefill_size": None}, "--chunked-prefill-size -1"),
        ({"disable_overlap_schedule": False}, "--disable-overlap-schedule"),
        ({"pp_size": 2}, "--tp-size"),
        ({"disaggregation_mode": "prefill"}, "drop --disaggregation-mode"),
        ({"pdmux_config_path": "nowhere.yaml"}, "nowhere.yaml: cannot be read"),
    ],
)
def test_what_upstream_refuses_is_refused_with_the_remedy(changes, remedy):
    with pytest.raises(ValueError, match=f"--enable-pdmux: .*{remedy}"):
        refuse_pdmux_problems(server_args(**changes))


def test_every_remedy_is_given_at_once():
    assert len(pdmux_problems(server_args(chunked_prefill_size=None, disable_overlap_schedule=False))) == 2


def test_a_config_under_which_upstreams_loop_fails_is_refused(tmp_path: Path):
    path = tmp_path / "pdmux.yaml"
    write_pdmux_config(path, PdmuxConfig((Division(68, 40, 8),)))
    assert "threshold" in pdmux_problems(server_args(pdmux_config_path=str(path)))[0]


def test_a_written_config_is_read_by_upstream_and_by_us(tmp_path: Path):
    path, config = tmp_path / "pdmux.yaml", PdmuxConfig((Division(68, 40, 1), Division(54, 54, 64)), 4096)
    write_pdmux_config(path, config, "for a pool\nof two lines")
    theirs = load_pdmux_config(str(path))
    assert theirs.manual_divisions == [[68, 40, 1], [54, 54, 64]]
    assert (theirs.sm_group_num, theirs.split_forward_token_budget) == (4, 4096)
    assert PdmuxConfig.of(load_hardware("a100-80gb"), read_pdmux_config(str(path))) == config
