"""All layers in one call: bit for bit what the operators give one by one, and only where layers are plain."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from sglang.srt.hardware_backend.portable_cpu import decoder_stack
from sglang.srt.hardware_backend.portable_cpu.kernels import DecoderWeights
from sglang.srt.hardware_backend.portable_cpu.packed_linear import can_pack, multiply, packed_copy

LAYERS, HEADS, KV_HEADS, DIM, SIZE, INNER, SLOTS = 3, 6, 2, 16, 64, 96, 128
EXTENDS, LENGTHS = torch.tensor([1, 9, 1]), torch.tensor([40, 9, 3])
TOKENS = int(EXTENDS.sum())


def make_weights(dtype: torch.dtype, *, bias: bool) -> DecoderWeights:
    torch.manual_seed(0)
    shapes = [
        ((HEADS + 2 * KV_HEADS) * DIM, SIZE),
        (SIZE, HEADS * DIM),
        (2 * INNER, SIZE),
        (SIZE, INNER),
    ] * LAYERS
    caches = [torch.randn(SLOTS, KV_HEADS, DIM).to(dtype) for _ in range(2 * LAYERS)]
    return DecoderWeights(
        norms=[torch.rand(SIZE).to(dtype) + 0.5 for _ in range(2 * LAYERS + 1)],
        products=[packed_copy((torch.randn(*shape) / shape[1] ** 0.5).to(dtype)) for shape in shapes],
        biases=[torch.randn(shape[0]).to(dtype) if bias else None for shape in shapes],
        k_caches=caches[:LAYERS],
        v_caches=caches[LAYERS:],
        cos_sin=torch.rand(64, DIM) * 2 - 1,
        heads=HEADS,
        head_dim=DIM,
        scale=0.25,
        eps=1e-5,
        neox=True,
    )


def one_by_one(kernels, hidden, positions, slots, w, table, plan):
    def linear(x, i):
        return multiply(x, w.products[i], w.biases[i])

    residual = hidden.clone()
    x = kernels.rms_norm(hidden, w.norms[0], w.eps)
    for layer in range(LAYERS):
        q, k, v = linear(x, 4 * layer).split([HEADS * DIM, KV_HEADS * DIM, KV_HEADS * DIM], dim=1)
        kernels.rotary_embedding(positions, q, k, w.cos_sin, head_dim=DIM, neox=w.neox)
        k_cache, v_cache = w.k_caches[layer], w.v_caches[layer]
        kernels.store_kv(k.unflatten(1, (-1, DIM)), v.unflatten(1, (-1, DIM)), k_cache, v_cache, slots)
        out = torch.empty(TOKENS, HEADS, DIM, dtype=hidden.dtype)
        kernels.attention(q.unflatten(1, (-1, DIM)), k_cache, v_cache, out, table, plan, scale=w.scale)
        x = kernels.rms_norm(linear(out.flatten(1), 4 * layer + 1), w.norms[2 * layer + 1], w.eps, residual)
        x = linear(kernels.silu_and_mul(linear(x, 4 * layer + 2)), 4 * layer + 3)
        x = kernels.rms_norm(x, w.norms[2 * layer + 2], w.eps, residual)
    return x


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
@torch.inference_mode()
def test_one_call_is_the_operators_one_by_one(compiled, dtype, bias):
    if not can_pack(dtype):
        pytest.skip(f"oneDNN does not take {dtype} on this CPU")
    weights = make_weights(dtype, bias=bias)
    twin = replace(
        weights,
        k_caches=[cache.clone() for cache in weights.k_caches],
        v_caches=[cache.clone() for cache in weights.v_caches],
    )
    table = torch.randperm(SLOTS)[: 3 * 40].view(3, 40).to(torch.int32)
    positions = torch.cat([torch.arange(n - e, n) for e, n in zip(EXTENDS, LENGTHS, strict=True)])
    slots = torch.cat([table[i, n - e : n] for i, (e, n) in enumerate(zip(EXTENDS, LENGTHS, strict=True))])
    plan = compiled.plan_attention(torch.arange(3), LENGTHS, EXTENDS, queries_per_kv_head=HEADS // KV_HEADS)
    hidden = torch.randn(TOKENS, SIZE).to(dtype)
    before = hidden.clone()
    got = compiled.decoder_layers(hidden, positions, slots.long(), weights, table, plan)
    assert torch.equal(got, one_by_one(compiled, hidden, positions, slots.long(), twin, table, plan))
    assert torch.equal(hidden, before)
    for cache, other in zip(weights.k_caches + weights.v_caches, twin.k_caches + twin.v_caches, strict=True):
        assert torch.equal(cache, other)


@torch.inference_mode()
def test_missing_weights_are_refused(compiled):
    weights = make_weights(torch.float32, bias=False)
    short = replace(weights, products=weights.products[:-1])
    plan = compiled.plan_attention(
        torch.tensor([0]), torch.tensor([1]), torch.tensor([1]), queries_per_kv_head=3
    )
    one = torch.zeros(1, dtype=torch.long)
    with pytest.raises(RuntimeError, match="4 weights and biases each"):
        compiled.decoder_layers(
            torch.zeros(1, SIZE), one, one, short, torch.zeros(1, 1, dtype=torch.int32), plan
        )


class Decoder(torch.nn.Module):
    """Stands for upstream's: what is asked of it before it may run in one call."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = torch.nn.Embedding(10, 4)
        self.layers_to_capture: list[int] = []


class Stack:
    """Answers with a mark instead of layers."""

    backend = SimpleNamespace(has_plain_pool=True)

    def forward(self, hidden: torch.Tensor, positions: torch.Tensor, batch: object) -> str:
        assert hidden.shape == (3, 4)
        return "one call"


def step(**changed: object) -> SimpleNamespace:
    mode = SimpleNamespace(is_decode=lambda: True, is_extend=lambda: False)
    fields: dict[str, object] = {
        "forward_mode": mode,
        "encoder_lens": None,
        "can_run_tbo": False,
        "out_cache_loc": torch.zeros(3),
    }
    return SimpleNamespace(**{**fields, **changed})


def run(model: Decoder, batch: SimpleNamespace, positions: torch.Tensor | None = None) -> object:
    places = torch.arange(3) if positions is None else positions
    return decoder_stack.forward(lambda *_: "upstream", model, torch.arange(3), places, batch)


def test_only_plain_steps_run_in_one_call(monkeypatch):
    monkeypatch.setattr(decoder_stack, "_build", lambda _: Stack())
    model = Decoder()
    assert run(model, step()) == "one call"
    idle = SimpleNamespace(is_decode=lambda: False, is_extend=lambda: False)
    for changed in ({"forward_mode": idle}, {"encoder_lens": 1}, {"can_run_tbo": True}):
        assert run(model, step(**changed)) == "upstream"
    assert run(model, step(out_cache_loc=torch.zeros(2))) == "upstream"
    assert run(model, step(), torch.zeros(3, 3, dtype=torch.long)) == "upstream"  # multimodal rotation
    monkeypatch.setattr(Stack, "backend", SimpleNamespace(has_plain_pool=False))
    assert run(model, step()) == "upstream"
    monkeypatch.undo()
    model.layers_to_capture = [1]
    assert run(model, step()) == "upstream"


def test_the_stack_is_built_once_and_again_after_an_update(monkeypatch):
    built: list[object] = []
    monkeypatch.setattr(decoder_stack, "_build", built.append)  # gives None: upstream's path
    model = Decoder()
    assert [run(model, step()) for _ in range(3)] == ["upstream"] * 3
    assert len(built) == 1
    decoder_stack.forget_stacks(model)
    run(model, step())
    assert len(built) == 2
