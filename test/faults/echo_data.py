"""Ray Data with echo engines: `python echo_data.py ADDRESS LOG ROWS OUT`; rows out are written as Parquet.

The second module of that name in an actor imports what is light before all of SGLang, as `echo_run` does.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import light_sglang  # noqa: F401  before all of SGLang

from sglang.batch.ray_data import BlendEngine


class EchoData(BlendEngine):
    def __init__(self, log: str, **more: Any) -> None:
        worker = [str(Path(__file__).with_name("echo_worker.py"))]
        super().__init__("echo", server=[log, "0"], worker=worker, **more)


def main() -> None:
    import ray

    address, log, rows, out = sys.argv[1:]
    ray.init(address=address)
    ray.data.range(int(rows)).map_batches(
        EchoData,
        fn_constructor_kwargs={"log": log, "prompt_template": "row {id}", "url": "/v1/completions"},
        batch_format="pyarrow",
        batch_size=10,
        concurrency=1,
    ).write_parquet(out)


if __name__ == "__main__":
    from echo_data import main as main_by_name

    main_by_name()
