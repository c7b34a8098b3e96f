"""A rank learns its place from whichever launcher started it."""

import pytest

from internevo_engine.errors import ConfigError
from internevo_engine.runtime.launch import Place, expand_hosts, find_place

SLURM = {
    "SLURM_PROCID": "5",
    "SLURM_NTASKS": "8",
    "SLURM_LOCALID": "1",
    "SLURM_JOB_NODELIST": "gpu[08-09]",
    "SLURM_JOB_ID": "123",
}
TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}


def test_nobody_started_ranks():
    assert find_place(None, {"PATH": "/bin"}) is None


def test_slurm_variables_give_rank_host_and_a_port_of_the_job():
    assert find_place(None, SLURM) == Place(5, 8, 1, 4, "tcp://gpu08:20123")
    assert find_place(None, SLURM | {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "5"}).rendezvous == "tcp://10.0.0.1:5"


def test_a_step_on_fewer_hosts_than_its_job_meets_on_its_own():
    step = SLURM | {"SLURM_STEP_NODELIST": "gpu09", "SLURM_NTASKS": "8"}
    assert find_place(None, step) == Place(5, 8, 1, 8, "tcp://gpu09:20123")


def test_a_batch_script_of_one_task_is_not_a_rank_and_a_step_of_one_task_is():
    script = {"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_JOB_NODELIST": "gpu08"}
    assert find_place(None, script) is None
    place = find_place(None, script | {"SLURM_STEP_ID": "0"})
    assert place is not None
    assert place.world == 1


def test_torchrun_wins_over_slurm_inside_a_job():
    assert find_place(None, SLURM | TORCHRUN) == Place(3, 4, 1, 2, "env://")


def test_an_explicit_join_wins_over_everything():
    place = Place(1, 2, 1, 2, "file:///tmp/x", attempt=3, board=7)
    assert find_place(place.as_join(), SLURM | TORCHRUN) == place


@pytest.mark.parametrize("env", [TORCHRUN | {"TORCHELASTIC_RESTART_COUNT": "2"}, SLURM | {"SLURM_RESTART_COUNT": "2"}])
def test_every_attempt_of_a_launcher_has_a_number(env: dict[str, str]):
    place = find_place(None, env)
    assert place is not None
    assert place.attempt == 2


def test_uneven_hosts_are_refused():
    with pytest.raises(ConfigError, match="SLURM_NTASKS=7 ranks on 2 hosts.*--ntasks-per-node"):
        find_place(None, SLURM | {"SLURM_NTASKS": "7"})


def test_incomplete_variables_are_named():
    with pytest.raises(ConfigError, match="WORLD_SIZE=None"):
        find_place(None, {"RANK": "0"})


@pytest.mark.parametrize(
    ("short", "hosts"),
    [
        ("n1", ["n1"]),
        ("n[1-3]", ["n1", "n2", "n3"]),
        ("n[08-10,12],login", ["n08", "n09", "n10", "n12", "login"]),
        ("a1,b[2-3]-ib", ["a1", "b2-ib", "b3-ib"]),
    ],
)
def test_host_lists_are_expanded(short, hosts):
    assert expand_hosts(short) == hosts
