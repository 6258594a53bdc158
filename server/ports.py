"""Taking a port before anything slow begins, and naming who has it."""

import contextlib
import errno
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

LISTEN_STATE = "0A"


class PortTaken(Exception):
    """Somebody else listens there; the message names them where the system tells."""


def bind(host: str, port: int) -> list[socket.socket]:
    """Bound sockets that nobody shares, on one port: for 127.0.0.1 and localhost on ::1 too, which browsers may try first.

    Raises PortTaken, or OSError for an address that is not this machine's.
    """
    if host.lower() not in ("127.0.0.1", "localhost"):
        return [_bind(host, port)]
    first = _bind("127.0.0.1", port)
    try:
        return [first, _bind("::1", first.getsockname()[1])]
    except PortTaken:
        first.close()
        if port:
            raise
        return bind(host, 0)
    except OSError:
        # This machine has no IPv6.
        return [first]


def _bind(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    sock = socket.socket(family, kind, protocol)
    try:
        # Without this a restart must wait for old connections to time out; it does not let two servers share the port.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(1024)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            raise PortTaken(f"port {port} on {host} is in use{_by(port)}") from None
        raise
    return sock


def _by(port: int) -> str:
    """Who listens on this port, in words; empty when the system does not tell."""
    for pid in _listeners(port):
        with contextlib.suppress(OSError):
            name = Path(f"/proc/{pid}/comm").read_text().strip()
            return f" by {name} (process {pid})"
    if lsof := shutil.which("lsof"):
        told = subprocess.run(
            [lsof, "-nP", f"-iTCP:{port}", "-sTCP:LISTEN", "-Fcp"], capture_output=True, text=True, check=False, timeout=1
        )
        fields = {line[:1]: line[1:] for line in told.stdout.splitlines()}
        if "p" in fields:
            return f" by {fields.get('c', 'a process')} (process {fields['p']})"
    return ""


def _listeners(port: int) -> Iterator[int]:
    """Process ids, from Linux's tables."""
    inodes = set()
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        with contextlib.suppress(OSError):
            for row in table.read_text().splitlines()[1:]:
                fields = row.split()
                if fields[3] == LISTEN_STATE and int(fields[1].rpartition(":")[2], 16) == port:
                    inodes.add(f"socket:[{fields[9]}]")
    for folder in Path("/proc").glob("[0-9]*/fd") if inodes else ():
        with contextlib.suppress(OSError):
            if any(str(link.readlink()) in inodes for link in folder.iterdir()):
                yield int(folder.parent.name)
