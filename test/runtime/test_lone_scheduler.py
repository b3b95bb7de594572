"""Schedulers of several processes, each in its own, do not meet at one port."""

import random

from sglang.srt.hardware_backend.simulated_gpu.lone_scheduler import choose_ports


def _port_after_seeding(args):
    random.seed(0)
    return choose_ports(args).nccl_port


def test_schedulers_of_one_seed_choose_ports_of_their_own(tiny_llama):
    """A scheduler seeds ``random``, and the next one in that process chooses its port after that."""
    from sglang.srt.server_args import ServerArgs

    args = ServerArgs(model_path=str(tiny_llama), device="cpu")
    assert len({_port_after_seeding(args) for _ in range(4)}) > 1


def test_choosing_ports_leaves_the_seeded_generator_alone(tiny_llama):
    from sglang.srt.server_args import ServerArgs

    random.seed(0)
    expected = random.random()
    _port_after_seeding(ServerArgs(model_path=str(tiny_llama), device="cpu"))
    assert random.random() == expected
