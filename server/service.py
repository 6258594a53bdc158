"""kefu as a service of the logged-in user: a launchd agent on macOS, a systemd user unit on Linux."""

import os
import plistlib
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

LABEL, UNIT = "com.kefu.serve", "kefu.service"
# A drain (25 s) and the engine's own grace (30 s) fit in, so that nothing is ended by force: that can leave GPU memory wired.
STOP_S = 60
RESTART_S = 10

Run = Callable[[Sequence[str]], subprocess.CompletedProcess[str]]


class ServiceFailed(Exception):
    """The service manager refused or is missing; the message is what it said."""


def run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run a service manager's command to its end; a missing program is status 127."""
    if shutil.which(command[0]) is None:
        return subprocess.CompletedProcess(command, 127, "", f"{command[0]} is not on this machine")
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def launchd_plist(command: Sequence[str], folder: Path, log: Path) -> bytes:
    """The agent: no fork, not napped, started again after a crash but not after a clean end, given time to drain."""
    agent = {
        "Label": LABEL,
        "ProgramArguments": list(command),
        "WorkingDirectory": str(folder),
        "RunAtLoad": True,
        "KeepAlive": {"SuccessfulExit": False},
        "ThrottleInterval": RESTART_S,
        "ExitTimeOut": STOP_S,
        "ProcessType": "Interactive",
        "StandardOutPath": str(log),
        "StandardErrorPath": str(log),
    }
    return plistlib.dumps(agent)


def systemd_unit(command: Sequence[str], folder: Path) -> bytes:
    """The unit, with the same promises as the agent."""
    lines = (
        "[Unit]\nDescription=kefu, a support chat server\n\n[Service]",
        f"ExecStart={' '.join(map(_quoted, command))}",
        f"WorkingDirectory={str(folder).replace('%', '%%')}",
        f"Restart=on-failure\nRestartSec={RESTART_S}\nKillMode=mixed\nTimeoutStopSec={STOP_S}",
        "\n[Install]\nWantedBy=default.target\n",
    )
    return "\n".join(lines).encode()


def _quoted(word: str) -> str:
    """A word as systemd reads it: quoted, with its specifiers and variables taken literally."""
    for special, written in (("\\", "\\\\"), ('"', '\\"'), ("%", "%%"), ("$", "$$")):
        word = word.replace(special, written)
    return f'"{word}"'


@dataclass(frozen=True, slots=True)
class Service:
    """The service of the user who lives in `home`. `run` speaks to the service manager."""

    home: Path
    is_mac: bool = sys.platform == "darwin"
    run: Run = run

    @property
    def path(self) -> Path:
        """The file that describes it."""
        return self.home / (f"Library/LaunchAgents/{LABEL}.plist" if self.is_mac else f".config/systemd/user/{UNIT}")

    def install(self, command: Sequence[str], folder: Path, log: Path) -> None:
        """Write the file and start the service, in place of an older one. Raises ServiceFailed."""
        self.uninstall()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.path.write_bytes(launchd_plist(command, folder, log) if self.is_mac else systemd_unit(command, folder))
        reload, enable = ("systemctl", "--user", "daemon-reload"), ("systemctl", "--user", "enable", "--now", UNIT)
        for step in [("launchctl", "bootstrap", _domain(), str(self.path))] if self.is_mac else [reload, enable]:
            if (done := self.run(step)).returncode:
                said = (done.stderr or done.stdout).strip()
                raise ServiceFailed(f"`{' '.join(step)}` ended with status {done.returncode} ({said}); {self.path} is written, try again")

    def status(self) -> str:
        """`not installed`, or what the service manager calls its state."""
        if not self.path.exists():
            return "not installed"
        if not self.is_mac:
            return self.run(("systemctl", "--user", "is-active", UNIT)).stdout.strip() or "unknown"
        state = re.search(r"^\s*state = (.+)$", self.run(("launchctl", "print", f"{_domain()}/{LABEL}")).stdout, re.MULTILINE)
        return state[1] if state else "not loaded"

    def uninstall(self) -> bool:
        """Stop it and delete its file; False when there was none."""
        if not self.path.exists():
            return False
        self.run(("launchctl", "bootout", f"{_domain()}/{LABEL}") if self.is_mac else ("systemctl", "--user", "disable", "--now", UNIT))
        self.path.unlink()
        return True


def _domain() -> str:
    return f"gui/{os.getuid()}"
