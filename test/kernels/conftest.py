"""The kernel implementations under test: compiled for each instruction set tried, and PyTorch."""

import os
import shutil

import pytest

from sglang.srt.hardware_backend.portable_cpu import kernel_build
from sglang.srt.hardware_backend.portable_cpu.kernels import CompiledKernels, Kernels
from sglang.srt.hardware_backend.portable_cpu.torch_kernels import TorchKernels

HAS_COMPILER = shutil.which(os.environ.get("CXX", "c++")) is not None

# The widest set is what users get, AVX2 what most of them have. The rest on request: a minute each.
_SUPPORTED = [isa.name for isa in kernel_build.supported_instruction_sets()]
_TRIED = (
    _SUPPORTED
    if os.environ.get("SGLANG_TEST_ALL_ISAS")
    else list(dict.fromkeys([_SUPPORTED[0], *(name for name in _SUPPORTED if name == "avx2")]))
)


@pytest.fixture(scope="session", params=[*_TRIED, "torch"])
def kernels(request: pytest.FixtureRequest) -> Kernels:
    if request.param == "torch":
        return TorchKernels()
    if not HAS_COMPILER:
        pytest.skip("no C++ compiler")
    return CompiledKernels(kernel_build.load_namespace(request.param))


@pytest.fixture(scope="session")
def compiled() -> Kernels:
    if not HAS_COMPILER:
        pytest.skip("no C++ compiler")
    return CompiledKernels(kernel_build.load_namespace(_SUPPORTED[0]))
