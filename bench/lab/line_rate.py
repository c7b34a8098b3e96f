"""How fast the lab's links are: plain sockets, every host sending and receiving at once.

Hosts form a ring: each sends to the next and counts what arrives from the one before. This file also runs as a script
on a host, and imports nothing of ours, so that it starts at once:

    python bench/lab/line_rate.py OWN_ADDRESS NEXT_ADDRESS      prints payload bytes received per second
"""

import socket
import sys
import threading
import time
from contextlib import suppress

PORT = 29400
CHUNK_BYTES = 2**20
WARM_UP_S, WINDOW_S = 0.3, 1.0
CONNECT_S = 20.0


def main(own: str, following: str) -> None:
    with socket.create_server((own, PORT)) as server:
        sender = threading.Thread(target=_send, args=(following,), daemon=True)
        sender.start()
        receiving, _ = server.accept()
        with receiving:
            _received(receiving, WARM_UP_S)
            rate = _received(receiving, WINDOW_S)
        sender.join()
    print(rate)


def _send(address: str) -> None:
    """Until the receiver hangs up."""
    with suppress(ConnectionError), _connected(address) as sending:
        chunk = bytes(CHUNK_BYTES)
        while True:
            sending.sendall(chunk)


def _connected(address: str) -> socket.socket:
    deadline = time.monotonic() + CONNECT_S
    while True:
        try:
            return socket.create_connection((address, PORT), timeout=CONNECT_S)
        except ConnectionRefusedError:  # it has not started yet
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def _received(receiving: socket.socket, seconds: float) -> float:
    """Bytes per second over at least so many seconds."""
    buffer, count, begin = bytearray(CHUNK_BYTES), 0, time.monotonic()
    while (elapsed := time.monotonic() - begin) < seconds:
        count += receiving.recv_into(buffer)
    return count / elapsed


if __name__ == "__main__":
    main(*sys.argv[1:])
