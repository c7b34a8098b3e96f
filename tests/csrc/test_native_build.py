"""The C++ tests of core and kernels under sanitizers, and what the compiled kernels show without running."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from internevo_engine.runtime.extension import library_path

ROOT = Path(__file__).parents[2]
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
@pytest.mark.parametrize("name", ["bucketing", "program", "scheduling", "checking", "exact_sum", "kernels", "lanes", "streams"])
def test_cpp_tests_pass_under_sanitizers(sanitized_build: Path, name: str) -> None:
    run(sanitized_build / f"test_{name}")


@pytest.mark.skipif(shutil.which("cmake") is None, reason="needs cmake")
def test_lanes_are_free_of_races(tmp_path: Path) -> None:
    run("cmake", "-S", ROOT, "-B", tmp_path, "-DIE_TESTS=ON", "-DIE_SANITIZE=thread")
    run("cmake", "--build", tmp_path, "--target", "test_lanes")
    run(tmp_path / "test_lanes")


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


def test_nothing_below_the_ops_includes_torch() -> None:
    sources = [path for folder in ("core", "kernels") for path in (ROOT / "csrc" / folder).iterdir()]
    assert not [path.name for path in sources if re.search(r"#include <(torch|ATen|c10|pybind11)", path.read_text())]
