"""The C++ tests of core and kernels under sanitizers, and what the compiled kernels show without running."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import cmake
import pybind11
import pytest
import torch

from internevo_engine.runtime.extension import library_path

ROOT = Path(__file__).parents[2]
TORCH = Path(torch.__file__).parent
KERNELS = sorted((ROOT / "csrc/kernels").glob("*.cu"))
ARCHITECTURES = ("80", "90", "100")


def run(*command: str | Path) -> str:
    """stdout and stderr of a command that must succeed."""
    done = subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}"
    return done.stdout


@pytest.fixture(scope="module")
def sanitized_build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Core, kernels and their tests, built by CMake alone: neither Python nor torch takes part."""
    build = tmp_path_factory.mktemp("build")
    run("cmake", "-S", ROOT, "-B", build, "-DIE_TESTS=ON", "-DIE_SANITIZE=address,undefined")
    run("cmake", "--build", build, "--parallel", "2")
    return build


@pytest.mark.skipif(shutil.which("cmake") is None, reason="needs cmake")
@pytest.mark.parametrize(
    "name",
    [
        "bucketing",
        "program",
        "scheduling",
        "checking",
        "simulation",
        "exact_sum",
        "faults",
        "kernels",
        "lanes",
        "streams",
        "watchdog",
    ],
)
def test_cpp_tests_pass_under_sanitizers(sanitized_build: Path, name: str) -> None:
    run(sanitized_build / f"test_{name}")


@pytest.mark.skipif(shutil.which("cmake") is None, reason="needs cmake")
def test_threads_are_free_of_races(tmp_path: Path) -> None:
    run("cmake", "-S", ROOT, "-B", tmp_path, "-DIE_TESTS=ON", "-DIE_SANITIZE=thread")
    for name in ("test_lanes", "test_watchdog"):
        run("cmake", "--build", tmp_path, "--target", name)
        run(tmp_path / name)


@pytest.mark.skipif(shutil.which("objdump") is None, reason="needs objdump")
@pytest.mark.parametrize(("version", "registers"), [("run_avx2", "ymm"), ("run_avx512", "zmm")])
@pytest.mark.parametrize("kernel", ["update<", "fold_blocks"])
def test_every_version_of_a_host_kernel_uses_its_registers(kernel: str, version: str, registers: str) -> None:
    functions = run("objdump", "-dC", "--no-show-raw-insn", library_path("_ops")).split("\n\n")
    bodies = [body for body in functions if version in body.split("\n")[0] and kernel in body.split("\n")[0]]
    if not bodies:
        pytest.skip("not an x86-64 build")
    arithmetic = rf"\b(vsqrtps|vaddpd)\b.*{registers}"
    assert all(re.search(arithmetic, body) for body in bodies), f"{version} of {kernel} is not vectorized"


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
@pytest.mark.parametrize("source", KERNELS, ids=lambda path: path.name)
def test_device_kernels_neither_spill_nor_use_a_stack(source: Path, tmp_path: Path) -> None:
    targets = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in ARCHITECTURES]
    flags = ["-std=c++20", "-O3", "-fmad=false", f"-I{ROOT / 'csrc'}", "-Xptxas", "-v", "--threads", "2"]
    report = run("nvcc", *flags, *targets, "-c", source, "-o", tmp_path / "kernel.o")
    used = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", report)
    assert len(used) >= len(ARCHITECTURES)
    assert set(used) == {("0", "0", "0")}, report


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
def test_a_cuda_build_of_torch_gets_the_cuda_ops(tmp_path: Path) -> None:
    """This machine's torch, with an empty library where a CUDA build has its own: all that the ops need to link."""
    torch_dir, build = tmp_path / "torch", tmp_path / "build"
    (torch_dir / "lib").mkdir(parents=True)
    for part in (*(TORCH / name for name in ("include", "share", "version.py")), *(TORCH / "lib").glob("*.so")):
        (torch_dir / part.relative_to(TORCH)).symlink_to(part)
    empty = tmp_path / "empty.cpp"
    empty.touch()
    run("g++", "-shared", empty, "-o", torch_dir / "lib/libtorch_cuda.so")
    cmake_command = Path(cmake.CMAKE_BIN_DIR) / "cmake"
    places = [f"-DIE_TORCH_DIR={torch_dir}", f"-DPython_EXECUTABLE={sys.executable}"]
    run(cmake_command, "-S", ROOT, "-B", build, *places, f"-Dpybind11_DIR={pybind11.get_cmake_dir()}")
    run(cmake_command, "--build", build, "--target", "_ops", "--parallel", "2")
    symbols = run("nm", "-C", next(build.glob("_ops*.so")))
    for kernel in ("adamw", "square_sum", "exact_add", "exact_add_squares", "exact_values"):
        assert f"ie::kernels::{kernel}_cuda(" in symbols


def test_nothing_below_the_ops_includes_torch() -> None:
    sources = [path for folder in ("core", "kernels") for path in (ROOT / "csrc" / folder).iterdir()]
    assert not [path.name for path in sources if re.search(r"#include <(torch|ATen|c10|pybind11)", path.read_text())]
