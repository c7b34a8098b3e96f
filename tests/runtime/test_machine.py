"""Every choice of device is made from a description of the machine, so any machine can be tried here."""

import pytest

from internevo_engine.errors import ConfigError
from internevo_engine.runtime.machine import Gpu, Machine, choose_device, local_topology, probe_machine

LAPTOP = Machine(num_cpus=8, free_memory_bytes=16 * 10**9)
NODE = Machine(num_cpus=96, free_memory_bytes=10**12, gpus=(Gpu("NVIDIA H100 80GB HBM3", 80 * 10**9),) * 8)


@pytest.mark.parametrize(
    ("machine", "asked", "name", "backend", "nproc", "queueing"),
    [
        (LAPTOP, "auto", "cpu", "gloo", 1, "threads"),
        (LAPTOP, "cpu", "cpu", "gloo", 1, "threads"),
        (NODE, "auto", "cuda", "nccl", 8, "streams"),
        (NODE, "cuda", "cuda", "nccl", 8, "streams"),
        (NODE, "cpu", "cpu", "gloo", 1, "threads"),
    ],
)
def test_device_backend_ranks_and_lanes_follow_the_machine(machine, asked, name, backend, nproc, queueing):
    device = choose_device(asked, machine)
    found = (device.name, device.backend, device.default_nproc(machine), device.queueing)
    assert found == (name, backend, nproc, queueing)


def test_cuda_without_a_gpu_names_the_way_out():
    with pytest.raises(ConfigError, match="launch.device=cpu.*doctor"):
        choose_device("cuda", LAPTOP)


def test_ranks_of_a_cpu_share_its_memory_and_ranks_of_gpus_do_not():
    cpu = local_topology(choose_device("auto", LAPTOP), LAPTOP, world=4, local_world=4)
    assert cpu.memory_bytes == 4 * 10**9
    gpu = local_topology(choose_device("auto", NODE), NODE, world=16, local_world=8)
    assert (gpu.memory_bytes, gpu.num_hosts) == (80 * 10**9, 2)


def test_more_ranks_than_gpus_are_refused():
    with pytest.raises(ConfigError, match="9 ranks on this host, but 8 GPUs.*launch.nproc=8"):
        local_topology(choose_device("auto", NODE), NODE, world=9, local_world=9)


def test_this_machine_can_be_read():
    machine = probe_machine()
    assert machine.num_cpus >= 1
    assert machine.free_memory_bytes > 10**8
