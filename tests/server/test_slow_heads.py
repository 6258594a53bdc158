"""A head that never ends does not hold a connection: real sockets, the real server."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from backends.supervisor import Supervisor
from server.app import create_app, engine_options
from server.serving import make_server
from server.settings import Settings
from tests.server.fakes import ByteTokenizer

TIMEOUT_S = 0.4
HEAD = b"GET /health/live HTTP/1.1\r\nhost: localhost\r\n"


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    settings = Settings(data_dir=tmp_path_factory.mktemp("data"), server={"head_timeout_s": TIMEOUT_S, "drain_s": 0})  # type: ignore[arg-type]
    server = make_server(create_app(settings, Supervisor(engine_options(settings.engine)), ByteTokenizer), settings.server)
    with socket.create_server(("127.0.0.1", 0)) as sock:
        thread = threading.Thread(target=server.run, args=([sock],))
        thread.start()
        yield sock.getsockname()[1]
        server.should_exit = True
        thread.join()


@pytest.fixture
def sock(port: int) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), timeout=5) as sock:
        yield sock


def _rest(sock: socket.socket, drip: bytes = b"") -> tuple[bytes, float]:
    """What comes until the server hangs up, and the seconds until then, while a byte is sent now and then."""
    began, received, is_open = time.monotonic(), b"", True
    sock.settimeout(0.05)
    while is_open and time.monotonic() < began + 5:
        with suppress(TimeoutError, ConnectionResetError):
            chunk = sock.recv(4096)
            received, is_open = received + chunk, bool(chunk)
            continue
        with suppress(BrokenPipeError, ConnectionResetError):
            sock.send(drip)
    assert not is_open, "the connection was held"
    return received, time.monotonic() - began


def _answered(sock: socket.socket) -> None:
    sock.sendall(HEAD + b"\r\n")
    received = b""
    while not received.endswith(b'{"status":"ok"}'):
        received += sock.recv(4096)
    assert received.startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("drip", [b"", b"x"])
@pytest.mark.parametrize("is_kept", [False, True])
@pytest.mark.parametrize("part", [b"G", HEAD, HEAD + b"x-half: a"])
def test_half_a_head_is_not_waited_for(sock: socket.socket, part: bytes, is_kept: bool, drip: bytes) -> None:
    if is_kept:
        _answered(sock)
    sock.sendall(part)
    received, seconds = _rest(sock, drip)
    assert received.startswith((b"HTTP/1.1 408 ", b"HTTP/1.1 400 ") if drip else b"HTTP/1.1 408 ")
    assert seconds < TIMEOUT_S + 0.5


def test_a_connection_on_which_nothing_is_said_is_closed_without_a_word(sock: socket.socket) -> None:
    received, seconds = _rest(sock)
    assert received == b""
    assert TIMEOUT_S * 0.8 < seconds < TIMEOUT_S + 0.5


def test_a_body_that_drips_after_its_refusal_does_not_hold_the_connection(sock: socket.socket) -> None:
    sock.sendall(b"POST /nothing HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9999\r\n\r\n")
    received, seconds = _rest(sock, b"x")
    assert received.startswith(b"HTTP/1.1 404 ")
    assert seconds < TIMEOUT_S + 0.5


def test_a_head_that_comes_in_time_is_answered_and_the_connection_is_kept(sock: socket.socket) -> None:
    for _ in range(2):
        for part in (HEAD[:5], HEAD[5:], b"\r\n"):
            sock.sendall(part)
            time.sleep(TIMEOUT_S / 4)
        assert sock.recv(4096).startswith(b"HTTP/1.1 200 ")
        time.sleep(TIMEOUT_S * 1.5)
    _answered(sock)
