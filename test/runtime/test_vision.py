"""Images in the real scheduler: their tokens are shared by content, their encoder's work is compute."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from checkpoints import make_qwen2_vl, make_tokenizer
from helpers import lone_scheduler
from sglang.srt.managers.schedule_batch import Modality, MultimodalDataItem, MultimodalProcessorOutput

IMAGE_TOKENS = 16  # of 64 patches, merged two by two
SIZE = 24  # tokens of a prompt
START, PAD, END = make_tokenizer().convert_tokens_to_ids(
    ["<|vision_start|>", "<|image_pad|>", "<|vision_end|>"]
)


def prompt(*, image: bool) -> list[int]:
    head = [20, START, *[PAD] * IMAGE_TOKENS, END] if image else []
    return [*head, *range(30, 30 + SIZE - len(head))]


def picture(seed: int) -> MultimodalProcessorOutput:
    """What upstream's processor makes of a picture of noise."""
    patches = torch.randn(64, 3 * 2 * 14 * 14, generator=torch.Generator().manual_seed(seed))
    item = MultimodalDataItem(
        modality=Modality.IMAGE,
        offsets=[(2, 1 + IMAGE_TOKENS)],
        feature=patches,
        model_specific_data={"image_grid_thw": torch.tensor([[1, 8, 8]])},
    )
    return MultimodalProcessorOutput(
        mm_items=[item],
        im_token_id=PAD,
        im_start_id=START,
        im_end_id=END,
        mrope_positions=torch.arange(SIZE).repeat(3, 1),
        mrope_position_delta=torch.zeros(1, 1, dtype=torch.int64),
    )


def test_equal_images_share_and_the_encoders_work_counts_as_compute(tmp_path: Any) -> None:
    with lone_scheduler(make_qwen2_vl(tmp_path), schedule_policy="blend") as lone:
        for seed in (1, 1, 2):
            lone.submit(prompt(image=True), 4, mm_inputs=picture(seed))
        lone.submit(prompt(image=False), 4)
        blend, queue = lone.scheduler.blend, lone.scheduler.waiting_queue
        pool, planner = blend.pool, blend.planner
        pool.synchronise(queue)
        planner.replan()

        weights = sum(
            weight.numel()
            for name, weight in lone.scheduler.tp_worker.model_runner.model.visual.named_parameters()
            if "blocks" in name and weight.dim() == 2
        )
        assert pool.encoder.params == weights
        encoding = 2 * weights * 64 / planner.cost_model.hardware.flops
        same, twin, other, text = (planner.ledger.index.rank(pool.slot(req)) for req in queue)
        seconds = {
            place: planner.ledger.index.totals(place, place + 1).comp for place in (same, twin, other, text)
        }
        assert [seconds[place] - seconds[text] for place in (same, twin, other)] == pytest.approx(
            [encoding] * 3
        )
        # The twin shares all but what is always computed; the other picture what stands before it.
        assert planner.sharing_ratio == pytest.approx((SIZE + 2) / (4 * SIZE))
        lone.run()
        assert all(len(tokens) == 4 for tokens in lone.outputs.values())
