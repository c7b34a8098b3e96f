"""runtime: `python -m internevo_engine doctor`: what this machine has, and for each gap the command that mends it."""

import platform
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import torch
from torch.cuda.nccl import version as nccl_version

from internevo_engine import _core
from internevo_engine.errors import EngineError
from internevo_engine.runtime.extension import load_extension
from internevo_engine.runtime.machine import Machine, probe_machine
from internevo_engine.units import format_bytes


@dataclass(frozen=True)
class Finding:
    """One line of the report. A gap is something a user may want and lacks; `mend` is the command for it."""

    name: str
    found: str
    mend: str | None = None


def examine(machine: Machine) -> list[Finding]:
    """All checks, in the order in which they matter."""
    return [check(machine) for check in CHECKS]


def report(machine: Machine | None = None) -> str:
    """The findings as aligned lines, ending with what this machine is ready for."""
    machine = machine or probe_machine()
    findings = examine(machine)
    lines = []
    for finding in findings:
        lines.append(f"{'gap' if finding.mend else 'ok':<4} {finding.name:<11} {finding.found}")
        if finding.mend:
            lines.append(f"{'':16} to mend: {finding.mend}")
    broken = any(finding.name == "extension" and finding.mend for finding in findings)
    device = f"{len(machine.gpus)} x {machine.gpus[0].name}" if machine.gpus else "CPU"
    lines.append("not ready: mend the extension first" if broken else f"ready: trains on {device}")
    return "\n".join(lines)


def check_python(machine: Machine) -> Finding:
    memory = format_bytes(machine.free_memory_bytes)
    return Finding("python", f"{platform.python_version()}, {machine.num_cpus} CPU cores, {memory} free memory")


def check_torch(machine: Machine) -> Finding:
    cuda = torch.version.cuda
    found = f"{torch.__version__}, {f'CUDA {cuda}' if cuda else 'CPU build'}"
    has_driver = shutil.which("nvidia-smi") is not None
    if has_driver and not cuda:
        return Finding("torch", found, "install a CUDA build of torch: see docs/install.md, 'One GPU'")
    return Finding("torch", found)


def check_device(machine: Machine) -> Finding:
    if not machine.gpus:
        return Finding("device", "CPU; no CUDA device visible")
    return Finding("device", ", ".join(f"{gpu.name} {format_bytes(gpu.memory_bytes)}" for gpu in machine.gpus))


def check_communication(machine: Machine) -> Finding:
    if not machine.gpus:
        return Finding("network", "gloo")
    if not torch.distributed.is_nccl_available():
        return Finding(
            "network", "gloo; NCCL is missing", "install a CUDA build of torch: see docs/install.md, 'One GPU'"
        )
    found = "NCCL " + ".".join(map(str, nccl_version()))
    cuda = torch.version.cuda or ""
    if installed("nvidia-nccl-cu12") and not cuda.startswith("12"):
        return Finding("network", f"{found}, and nvidia-nccl-cu12 beside CUDA {cuda}", "pip uninstall nvidia-nccl-cu12")
    return Finding("network", found)


def check_attention(machine: Machine) -> Finding:
    if not machine.gpus:
        return Finding("attention", "scaled_dot_product_attention, a call per run of equal documents")
    if flash := installed("flash-attn"):
        return Finding("attention", f"flash-attn {flash}")
    major = min(torch.cuda.get_device_capability(i)[0] for i in range(len(machine.gpus)))
    if major >= 8:
        return Finding("attention", "torch varlen_attn")
    return Finding("attention", "scaled_dot_product_attention: slow on this GPU", "use an A100 or newer")


def check_compiler(machine: Machine) -> Finding:
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        return Finding("compiler", "none", "apt-get install g++")
    first_line = subprocess.run(
        [compiler, "--version"], capture_output=True, text=True, check=True
    ).stdout.splitlines()[0]
    nvcc = f"; nvcc at {path}" if (path := shutil.which("nvcc")) else "; no nvcc"
    return Finding("compiler", first_line + nvcc)


def check_extension(machine: Machine) -> Finding:
    try:
        load_extension()
    except EngineError as error:
        return Finding("extension", str(error), "pip install .")
    if machine.gpus and not _core.HAS_CUDA_KERNELS:
        return Finding(
            "extension", "CPU kernels; on CUDA a slower composition of torch operations", "install nvcc, pip install ."
        )
    return Finding("extension", "CPU and CUDA kernels" if _core.HAS_CUDA_KERNELS else "CPU kernels")


def check_extras(machine: Machine) -> Finding:
    packages = ("flash-attn", "nvidia-nccl-cu12", "transformers", "tensorboard")
    there = [f"{name} {found}" for name in packages if (found := installed(name))]
    return Finding("extras", ", ".join(there) or "none installed (docs/install.md lists them)")


CHECKS: Sequence[Callable[[Machine], Finding]] = (
    check_python,
    check_torch,
    check_device,
    check_communication,
    check_attention,
    check_compiler,
    check_extension,
    check_extras,
)


def installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
