"""The emulated cluster: on paper everywhere, for real where this machine allows it (Linux, root, ip, tc)."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.lab.layout import building, environment, link_change, make_lab, parse_rate, shaping
from bench.lab.network import missing, namespaces
from internevo_engine.errors import ConfigError
from internevo_engine.runtime.launch import Place, find_place

ROOT = Path(__file__).parents[2]
LACK = missing()
for_real = pytest.mark.skipif(LACK is not None, reason=f"no lab here: {LACK}")


def lab_command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "bench.lab", *arguments]


def run_lab(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(lab_command(*arguments), cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def say(text: str, *, then: str = "") -> tuple[str, ...]:
    return sys.executable, "-c", f"import os, sys, time; print({text}); {then}"


def test_every_host_has_an_address_and_a_namespace_of_its_own():
    lab = make_lab("x", 250, 2, "none")
    assert len({lab.address(host) for host in range(250)}) == 250
    assert len({lab.namespace(host) for host in range(250)} | {lab.switch}) == 251


@pytest.mark.parametrize(("text", "bits"), [("400mbit", 4e8), ("1gbit", 1e9), ("1.5gbit", 1.5e9), ("800kbit", 8e5)])
def test_a_rate_is_bits_per_second(text, bits):
    assert parse_rate(text) == bits


@pytest.mark.parametrize("text", ["400", "400 mbit", "mbit", "0mbit", "-1mbit", "400mbps", "fast"])
def test_an_unreadable_rate_is_refused_with_an_example(text):
    with pytest.raises(ConfigError, match="400mbit"):
        parse_rate(text)


@pytest.mark.parametrize(
    ("name", "hosts", "ranks"), [("a-b", 2, 1), ("", 2, 1), ("a", 0, 1), ("a", 251, 1), ("a", 2, 0)]
)
def test_an_impossible_lab_is_refused(name, hosts, ranks):
    with pytest.raises(ConfigError):
        make_lab(name, hosts, ranks, "none")


def test_both_ends_of_every_link_are_shaped():
    commands = building(make_lab("x", 3, 2, "400mbit"))
    shaped = {(c[2], c[6]) for c in commands if c[0] == "tc"}
    assert shaped == {(f"ie-x-host{h}", "eth0") for h in range(3)} | {("ie-x-switch", f"port{h}") for h in range(3)}
    assert not any(c[0] == "tc" for c in building(make_lab("x", 3, 2, "none")))


def test_nothing_is_made_outside_the_labs_namespaces():
    for command in building(make_lab("x", 2, 1, "1gbit")):
        inside_one = command[1] == "-n" and command[2].startswith("ie-x-")
        assert inside_one or command[:3] == ("ip", "netns", "add")


def test_a_burst_holds_a_packet_and_grows_with_the_rate():
    bursts = [int(shaping("x", 0, rate)[0][12]) for rate in (1e6, 4e8, 1e10)]
    assert bursts == [69632, 100000, 2500000]


def test_a_cut_and_its_healing_touch_one_port_only():
    assert link_change("x", 1, "cut") == [("ip", "-n", "ie-x-switch", "link", "set", "port1", "down")]
    assert link_change("x", 1, "heal") == [("ip", "-n", "ie-x-switch", "link", "set", "port1", "up")]
    assert link_change("x", 1, "100mbit") == shaping("x", 1, 1e8)


def test_the_engine_finds_its_place_in_the_environment_of_a_rank():
    lab = make_lab("x", 2, 3, "none")
    places = [find_place(None, environment(lab, rank)) for rank in range(lab.world)]
    assert places == [Place(rank, 6, rank % 3, 3, "env://") for rank in range(6)]
    assert {environment(lab, rank)["MASTER_ADDR"] for rank in range(6)} == {lab.address(0)}


def test_without_the_tools_the_lab_says_so_and_stops(tmp_path):
    done = subprocess.run(
        lab_command("run", "--", "true"),
        cwd=ROOT,
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "iproute2" in done.stderr
    assert "Traceback" not in done.stderr


@for_real
def test_ranks_start_on_their_hosts_and_bytes_are_counted(tmp_path):
    report = tmp_path / "report.json"
    where = say("os.environ['RANK'], os.environ['LOCAL_RANK'], os.environ['GROUP_RANK']")
    done = run_lab("run", "--lab", "t1", "--ranks-per-host", "2", "--json", str(report), "--", *where)
    assert done.returncode == 0, done.stderr
    expected = [f"[host{rank // 2} rank{rank}] {rank} {rank % 2} {rank // 2}" for rank in range(4)]
    assert sorted(done.stdout.splitlines()) == expected
    written = json.loads(report.read_text())
    assert written["line_rate_bytes_per_s"] > 0
    assert [set(host) for host in written["hosts"]] == [{"sent_bytes", "received_bytes"}] * 2


@for_real
def test_a_shaped_link_is_no_faster_than_asked():
    done = run_lab("run", "--lab", "t2", "--rate", "80mbit", "--json", "/dev/stdout", "--", "true")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["line_rate_bytes_per_s"] <= 1.02 * 80e6 / 8


@for_real
@pytest.mark.parametrize(("ending", "code"), [("sys.exit(7)", 7), ("os.kill(os.getpid(), 9)", 137)])
def test_the_first_failing_rank_ends_the_others_and_gives_the_exit_code(ending, code):
    waits = say("''", then=f"{ending} if os.environ['RANK'] == '1' else time.sleep(1000)")
    assert run_lab("run", "--lab", "t3", "--", *waits).returncode == code
    assert namespaces("t3") == []


@for_real
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_ranks_and_removes_the_lab(number):
    lab, rank = start_lab("t4")
    lab.send_signal(number)
    assert lab.wait(30) == 128 + number
    assert namespaces("t4") == []
    assert has_ended(rank)


@for_real
def test_what_a_killed_lab_left_behind_is_removed_by_the_next():
    lab, rank = start_lab("t5")
    lab.kill()
    lab.wait(30)
    assert namespaces("t5")
    assert has_ended(rank)
    assert run_lab("run", "--lab", "t5", "--", "true").returncode == 0
    assert namespaces("t5") == []


@for_real
def test_a_name_in_use_is_refused_and_the_running_lab_goes_on():
    lab, rank = start_lab("t6")
    try:
        second = run_lab("run", "--lab", "t6", "--", "true")
        assert second.returncode == 2
        assert "--lab" in second.stderr
        assert not has_ended(rank, seconds=0.2)
    finally:
        lab.terminate()
        lab.wait(30)


@for_real
def test_a_cut_link_carries_nothing_until_it_is_healed():
    lab, _ = start_lab("t7")
    ping = ["ip", "netns", "exec", "ie-t7-host0", sys.executable, "-c"]
    connect = "import socket; socket.create_connection(('10.77.0.2', 9), timeout=1)"  # refused at once, if it arrives

    def answer() -> str:
        return subprocess.run([*ping, connect], capture_output=True, text=True, check=False).stderr.splitlines()[-1]

    try:
        assert "ConnectionRefusedError" in answer()
        assert run_lab("link", "1", "cut", "--lab", "t7").returncode == 0
        assert "ConnectionRefusedError" not in answer()
        assert run_lab("link", "1", "heal", "--lab", "t7").returncode == 0
        assert run_lab("link", "1", "1mbit", "--lab", "t7").returncode == 0
        assert "ConnectionRefusedError" in answer()
        assert run_lab("link", "2", "cut", "--lab", "t7").returncode == 2
    finally:
        lab.terminate()
        lab.wait(30)


def start_lab(name: str) -> tuple[subprocess.Popen[str], int]:
    """A lab whose only rank per host sleeps; the process id of one of them."""
    sleeping = say("os.getpid()", then="sys.stdout.flush(); time.sleep(1000)")
    lab = subprocess.Popen(
        lab_command("run", "--lab", name, "--", *sleeping), cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert lab.stdout is not None
    return lab, int(lab.stdout.readline().split()[-1])


def has_ended(pid: int, seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not Path(f"/proc/{pid}").exists():
            return True
        time.sleep(0.05)
    return False
