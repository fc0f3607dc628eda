"""A port that others reach: one rank of two, whose other is somebody else."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator

from tests.helpers import free_port
from tests.hostile.case import TRAIN, Case, Place

SECONDS = 20  # train.timeout_seconds of these runs


def cases() -> Iterator[Case]:
    for name, talk in _servers().items():
        yield _case(f"rank 1 meets {name}", "1", lambda port, talk=talk: _serve(port, talk))
    for name, sent in _clients().items():
        yield _case(f"rank 0 is sent {name}", "0", lambda port, sent=sent: _send(port, sent))
    yield _case("rank 1 meets nobody", "1", lambda port: None)
    yield _case("rank 0 meets nobody", "0", lambda port: None)


def _case(name: str, rank: str, stranger: Callable[[int], None]) -> Case:
    """The run cannot take place: it ends by itself, by its own code."""

    def arrange(place: Place) -> list[str]:
        port = free_port()
        os.environ.update(RANK=rank, WORLD_SIZE="2", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        if os.fork() == 0:  # in the session of the case: it is ended with it
            stranger(port)
            os._exit(0)
        return place.train(f"train.timeout_seconds={SECONDS}")

    return Case("the wire", name, TRAIN, arrange, codes=(1, 2, 75))


def _servers() -> dict[str, bytes]:
    return {
        "a server that says nothing": b"",
        "a server of zeros": b"\0" * 4096,
        "a server of ones": b"\xff" * 4096,
        "a web server": b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        "a server of pickles": b"\x80\x04cos\nsystem\n(S'touch outside/hacked'\ntR." * 50,
    }


def _clients() -> dict[str, bytes]:
    return {
        "zeros": b"\0" * 4096,
        "ones": b"\xff" * 4096,
        "a web request": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        "a pickle": b"\x80\x04cos\nsystem\n(S'touch outside/hacked'\ntR." * 50,
        "a length without bound": b"\x00" + b"\xff" * 8 + b"x" * 100,
    }


def _serve(port: int, talk: bytes) -> None:
    with socket.create_server(("127.0.0.1", port)) as server:
        while True:
            connection, _ = server.accept()
            connection.sendall(talk)


def _send(port: int, sent: bytes) -> None:
    for _ in range(100):
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
                connection.sendall(sent)
                time.sleep(1)
        except OSError:
            time.sleep(0.2)
