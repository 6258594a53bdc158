"""The whole of kefu as its users meet it: the real command, a real model, a port of its own."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.conftest import CERTAIN

START_S = 60


@dataclass(frozen=True, slots=True)
class Kefu:
    """A running server."""

    url: str
    pid: int

    @property
    def engine_pid(self) -> int:
        (child,) = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return int(child)

    def kill_engine(self) -> None:
        """As a driver's crash would."""
        os.kill(self.engine_pid, signal.SIGKILL)


@contextmanager
def kefu(data_dir: Path, model_path: str, settings: Mapping[str, str] | None = None, prelude: str = "") -> Iterator[Kefu]:
    """Run `kefu serve`; yields it once it is ready. `settings` are KEFU_* variables; `prelude` is code that its process runs first."""
    command = [sys.executable, "-c", f"{prelude}\nfrom server.cli import main; main()", "serve", "--port", "0", "--data-dir", str(data_dir)]
    process = subprocess.Popen(
        [*command, "--model", model_path],
        env={**os.environ, **CERTAIN, **(settings or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    said: list[str] = []
    listener = threading.Thread(target=lambda: said.extend(process.stdout or ()), daemon=True)
    listener.start()
    try:
        yield Kefu(_wait_until_ready(process, said), process.pid)
    finally:
        process.terminate()
        process.wait(30)
        listener.join()
        if process.stdout:
            process.stdout.close()


def _wait_until_ready(process: "subprocess.Popen[str]", said: list[str]) -> str:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        url = next((found[0] for line in list(said) if (found := re.search(r"http://127\.0\.0\.1:\d+", line))), None)
        if url and _is_ready(url):
            return url
        time.sleep(0.1)
    raise RuntimeError("kefu did not start:\n" + "".join(said)[-3000:])


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health/ready", verify=False).status_code == 200
    except httpx.TransportError:
        return False
