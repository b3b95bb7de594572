"""Run the Triton kernel in Triton's interpreter; print its largest differences from plain PyTorch."""

import json

import torch
from benchmark.gpu.decode import paged_inputs
from benchmark.gpu.layer import Layer
from benchmark.gpu.machine import find_machine
from benchmark.gpu.paged_decode import paged_decode, plain_decode

CASES = [
    # query heads, KV heads, features, tokens of each request, parts
    (4, 2, 16, [1, 17, 150], 3),
    (1, 1, 32, [65], 1),
    (20, 1, 16, [5, 66], 7),  # more parts than the requests have blocks
    (3, 1, 64, [127, 128, 129], 2),
]

differences = []
for heads, kv_heads, dim, lengths, parts in CASES:
    layer = Layer((), heads * dim, heads, kv_heads, dim, itemsize=4)
    inputs = paged_inputs(find_machine("cpu"), layer, lengths)
    inputs["values"] += inputs["lengths"].max()  # averages far from 0: a token too many or few shows
    computed, plain = paged_decode(**inputs, parts=parts), plain_decode(**inputs)
    differences.append(float((computed - plain).abs().max() / plain.abs().max()))
    # The first request's last token, and nothing behind it, counts.
    changed = {**inputs, "values": inputs["values"].clone()}
    last = lengths[0] - 1
    changed["values"][inputs["table"][0, last // 16].long(), last % 16] += 1e4
    other = paged_decode(**changed, parts=parts)
    assert not torch.equal(other[0], computed[0])
    assert torch.equal(other[1:], computed[1:])
print(json.dumps(differences))
