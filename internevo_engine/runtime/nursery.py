"""runtime: where ranks are born: a process that has imported everything, and forks the ranks of every attempt.

Importing takes most of a start; this way it is done once, not by every rank and not again after a failure. The nursery
uses no device and no thread. It hears its parent on a socket, with one message for each attempt: the ranks' places, and
their open files. It answers with the ranks' pids, and then says of each how it ended.
"""

import ctypes
import gc
import json
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from types import TracebackType
from typing import NoReturn

from internevo_engine.errors import DONE
from internevo_engine.runtime.launch import Place

MESSAGE_BYTES = 1 << 17
LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
"""Ranks of one host need no other interface; who sets these wants another."""
PR_SET_PDEATHSIG = 1
PR_SET_NAME = 15


class Nursery:
    """The parent's end, within a `with` block."""

    def __init__(self, command: Sequence[str]) -> None:
        """Start `command --nursery FD`, which calls `nurse(FD, ...)` when it has imported what ranks need."""
        self._command = command
        self._start()

    def _start(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [*self._command, "--nursery", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # the terminal's Ctrl-C reaches the parent alone, who passes it on once
                env=LOOPBACK | os.environ,
                pass_fds=(theirs.fileno(),),
                preexec_fn=_die_with_parent,  # noqa: PLW1509 - no threads here
            )

    def __enter__(self) -> "Nursery":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.kill()
        self.wait()

    def ask_for(self, places: Sequence[Place], files: Sequence[int]) -> None:
        """Let it fork a rank for every place, whose numbers of files are indices in `files`; a new one, if it ended."""
        if self._process.returncode is not None:
            self._start()
        with suppress(BrokenPipeError):  # it is gone already, which `hear` tells
            socket.send_fds(self._socket, [json.dumps([place.as_join() for place in places]).encode()], files)

    def hear(self, seconds: float) -> bytes | None:
        """The next message; None: there is none in this time; empty: the nursery has ended, and its ranks with it."""
        self._socket.settimeout(seconds)
        try:
            return self._socket.recv(MESSAGE_BYTES)
        except TimeoutError:
            return None
        except ConnectionResetError:  # it ended before it read our message
            return b""

    def send(self, number: int) -> None:
        """A signal."""
        self._process.send_signal(number)

    def wait(self) -> int:
        """Its exit code, when it has ended."""
        self._socket.close()
        return self._process.wait()


def nurse(fd: int, live: Callable[[Place], NoReturn]) -> int:
    """Fork the ranks that the parent asks for, until it is gone; `live` is the life of a rank."""
    gc.freeze()  # what is there now stays shared
    with socket.socket(fileno=fd) as parent:
        while True:
            message, files, _, _ = socket.recv_fds(parent, MESSAGE_BYTES, MESSAGE_BYTES // 8)
            if not message:
                return DONE
            places = [_at_home(Place.from_join(text), files) for text in json.loads(message)]
            pids = [_born(place, live) for place in places]
            parent.send(json.dumps(pids).encode())
            for file in files:
                os.close(file)
            for _ in pids:
                pid, status = os.wait()
                parent.send(json.dumps([pids.index(pid), os.waitstatus_to_exitcode(status)]).encode())


def _at_home(place: Place, files: Sequence[int]) -> Place:
    """The place with this process's numbers of the files."""
    rendezvous = f"file:///proc/self/fd/{files[int(place.rendezvous)]}"
    return replace(place, rendezvous=rendezvous, board=files[place.board], words=files[place.words])


def _born(place: Place, live: Callable[[Place], NoReturn]) -> int:
    pid = os.fork()
    if pid == 0:
        os.setsid()
        _die_with_parent()
        ctypes.CDLL(None).prctl(PR_SET_NAME, f"rank {place.rank}".encode())  # for ps and top
        live(place)
    return pid


def _die_with_parent() -> None:
    """The kernel ends this process when its parent dies, however that happens."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
