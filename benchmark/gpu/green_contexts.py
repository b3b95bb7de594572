"""A GPU's SMs in two parts, each with a stream: CUDA's green contexts, as SGLang's PD multiplexing uses them.

PyTorch's own `GreenContext` makes one part at a time, always out of the whole GPU, so two of them may share
SMs. Here the second part is made of what the first leaves. CUDA 12.4 or newer, and the package cuda-bindings,
which PyTorch for CUDA brings along.
"""

from __future__ import annotations

from typing import Any

import torch


class NotDivided(Exception):
    """The SMs cannot be divided here; the message says why."""


def divide(first: int, second: int, device: int = 0) -> tuple[Any, Any]:
    """Streams on `first` SMs and on all others, which are `second`.

    The parts live as long as the process.

    Raises:
        NotDivided: no cuda-bindings, or the driver refuses or divides otherwise.
    """
    driver = _driver()
    gpu = _checked(driver, driver.cuDeviceGet(device))
    kind = driver.CUdevResourceType.CU_DEV_RESOURCE_TYPE_SM
    whole = _checked(driver, driver.cuDeviceGetDevResource(gpu, kind))
    groups, _, rest = _checked(driver, driver.cuDevSmResourceSplitByCount(1, whole, 0, first))
    got = groups[0].sm.smCount, rest.sm.smCount
    if got != (first, second):
        raise NotDivided(f"the driver divides the SMs into {got[0]} and {got[1]}, not {first} and {second}")
    streams = []
    for part in (groups[0], rest):
        made_of = _checked(driver, driver.cuDevResourceGenerateDesc([part], 1))
        flag = driver.CUgreenCtxCreate_flags.CU_GREEN_CTX_DEFAULT_STREAM
        context = _checked(driver, driver.cuGreenCtxCreate(made_of, gpu, flag))
        non_blocking = driver.CUstream_flags.CU_STREAM_NON_BLOCKING
        stream = _checked(driver, driver.cuGreenCtxStreamCreate(context, non_blocking, 0))
        streams.append(torch.cuda.ExternalStream(int(stream), device=torch.device("cuda", device)))
    return streams[0], streams[1]


def _driver() -> Any:
    try:
        from cuda.bindings import driver
    except ImportError as error:
        raise NotDivided(f"the package cuda-bindings is missing ({error})") from error
    return driver


def _checked(driver: Any, answer: tuple[Any, ...]) -> Any:
    """What a driver call returns beside its error code: nothing, one thing, or several.

    Raises:
        NotDivided: the code is not success.
    """
    code, *values = answer
    if code != driver.CUresult.CUDA_SUCCESS:
        raise NotDivided(f"the CUDA driver says {code}")
    return values[0] if len(values) == 1 else values
