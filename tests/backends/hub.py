"""A model hub on a real socket that cuts, corrupts, stalls and answers Range wrongly, as it is told."""

import hashlib
import json
import re
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

REVISION = "a" * 40


class Hub:
    """`files` of any repository. Each of `faults` spoils one answer to a file; when none is left the hub behaves."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.faults: deque[str] = deque()
        self.listing: bytes | None = None
        self.told_sha256: dict[str, str] = {}
        self.requests: list[tuple[str, str]] = []
        self.url = ""

    def list(self) -> bytes:
        if self.listing is not None:
            return self.listing
        return json.dumps({"id": "x/y", "sha": REVISION, "siblings": [self._row(name, data) for name, data in self.files.items()]}).encode()

    def _row(self, name: str, data: bytes) -> dict[str, object]:
        row: dict[str, object] = {"rfilename": name, "size": len(data)}
        if name.endswith(".json"):
            return {**row, "blobId": hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()}
        return {
            **row,
            "blobId": "b" * 40,
            "lfs": {"sha256": self.told_sha256.get(name, hashlib.sha256(data).hexdigest()), "size": len(data)},
        }


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_GET(self) -> None:
        range_header = self.headers.get("Range", "")
        self.hub.requests.append((self.path, range_header))
        if self.path.startswith("/api/models/"):
            self._send(200, self.hub.list())
            return
        data = self.hub.files[self.path.rpartition("/")[2]]
        fault = self.hub.faults.popleft() if self.hub.faults else ""
        start = int(found[1]) if (found := re.match(r"bytes=(\d+)-", range_header)) and fault != "no range" else 0
        body = data[start:]
        headers = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"} if start else {}
        if fault == "wrong range":
            headers, body, start = {"Content-Range": f"bytes {start + 7}-{len(data) - 1}/{len(data)}"}, data[start + 7 :], 1
        if fault == "flip":
            body = bytes([body[0] ^ 1]) + body[1:]
        if fault == "longer":
            body += b"more"
        if fault.isdigit():
            self._send(int(fault), b"", {})
        else:
            self._send(206 if start else 200, body, headers, fault)

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None, fault: str = "") -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if fault in ("cut", "stall"):
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            if fault == "stall":
                time.sleep(1.0)
            self.close_connection = True
            return
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None: ...


@contextmanager
def serving(files: dict[str, bytes]) -> Iterator[Hub]:
    """The hub on a free port, in a thread."""
    hub = Hub(files)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
