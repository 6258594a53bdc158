"""One port, on every address that `localhost` may mean."""

import socket
from contextlib import ExitStack

import pytest

from server.ports import PortTaken, bind
from tests.conftest import has_ipv6_loopback

needs_ipv6 = pytest.mark.skipif(not has_ipv6_loopback(), reason="no ::1 here")


@needs_ipv6
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LOCALHOST"])
def test_loopback_is_one_port_on_both_addresses(host: str) -> None:
    with ExitStack() as opened:
        sockets = [opened.enter_context(sock) for sock in bind(host, 0)]
        names = [sock.getsockname()[:2] for sock in sockets]
        port = names[0][1]
        assert names == [("127.0.0.1", port), ("::1", port)]
        for address in ("127.0.0.1", "::1", "localhost"):
            socket.create_connection((address, port), timeout=1).close()
        with pytest.raises(PortTaken):
            bind(host, port)
    for sock in (again := bind(host, port)):
        sock.close()
    assert len(again) == 2


@needs_ipv6
def test_half_a_port_is_not_taken() -> None:
    """With somebody else on ::1, half of those who open `localhost` would meet them."""
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as other:
        port = other.getsockname()[1]
        with pytest.raises(PortTaken, match=f"port {port} on ::1 is in use by"):
            bind("127.0.0.1", port)
        socket.create_server(("127.0.0.1", port)).close()


@pytest.mark.parametrize("host", ["0.0.0.0", "::1"])
def test_any_other_address_is_taken_as_it_is(host: str) -> None:
    if host == "::1" and not has_ipv6_loopback():
        pytest.skip("no ::1 here")
    (sock,) = bind(host, 0)
    with sock:
        assert sock.getsockname()[0] == host
