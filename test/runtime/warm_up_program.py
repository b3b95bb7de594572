"""Starts a scheduler and gives it requests; prints the kernels that are compiled only then."""

import gc
import json
import random
import sys

from numba.core.dispatcher import Dispatcher

from helpers import lone_scheduler


def signatures() -> set[str]:
    """Of all our kernels that have been compiled, with what they were compiled for."""
    return {
        f"{x.py_func.__module__}.{x.py_func.__name__}{signature}"
        for x in gc.get_objects()
        if isinstance(x, Dispatcher) and x.py_func.__module__.startswith("sglang.srt.blend.")
        for signature in x.signatures
    }


def main() -> None:
    checkpoint, arguments = sys.argv[1], json.loads(sys.argv[2])
    with lone_scheduler(checkpoint, schedule_policy="blend", max_total_tokens=3000, **arguments) as lone:
        before = signatures()
        rng = random.Random(0)
        for i in range(120):
            prompt = [5] * 40 * (i % 2) + [rng.randint(10, 500) for _ in range(rng.randint(5, 300))]
            lone.submit(prompt, rng.randint(1, 60), max_new_tokens=200)
        lone.run()
        print(json.dumps({"before": len(before), "under requests": sorted(signatures() - before)}))


if __name__ == "__main__":
    main()
