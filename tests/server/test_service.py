"""The service files are what launchd and systemd read, and installing speaks to them in the right order."""

import plistlib
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from server.service import Service, ServiceFailed, launchd_plist, run, systemd_unit

KNOWN_TO_LAUNCHD = {
    *("Label", "ProgramArguments", "WorkingDirectory", "RunAtLoad", "KeepAlive", "ThrottleInterval", "ExitTimeOut", "ProcessType"),
    *("StandardOutPath", "StandardErrorPath"),
}
COMMAND = ("/opt/py 3/bin/python", "-P", "-m", "server.cli", "serve")


class Manager:
    """Records what it is asked, and answers."""

    def __init__(self, stdout: str = "", status: int = 0) -> None:
        self.asked: list[tuple[str, ...]] = []
        self._stdout, self._status = stdout, status

    def __call__(self, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        self.asked.append(tuple(command))
        return subprocess.CompletedProcess(command, self._status, self._stdout, "no such bus" if self._status else "")


def test_the_agent_drains_restarts_after_crashes_only_and_does_not_nap(tmp_path: Path) -> None:
    agent = plistlib.loads(launchd_plist(COMMAND, tmp_path, tmp_path / "log"))
    assert agent["ProgramArguments"] == list(COMMAND), "no shell and no wrapper: launchd must hold the process itself"
    assert (agent["WorkingDirectory"], agent["StandardOutPath"], agent["StandardErrorPath"]) == (
        str(tmp_path),
        *[str(tmp_path / "log")] * 2,
    )
    assert set(agent) <= KNOWN_TO_LAUNCHD, "launchd ignores a misspelt key without a word"
    assert (agent["KeepAlive"], agent["RunAtLoad"], agent["ProcessType"]) == ({"SuccessfulExit": False}, True, "Interactive")
    assert (agent["ThrottleInterval"], agent["ExitTimeOut"]) == (10, 60)
    if plutil := shutil.which("plutil"):
        (tmp_path / "a.plist").write_bytes(launchd_plist(COMMAND, tmp_path, tmp_path / "log"))
        assert subprocess.run([plutil, "-lint", tmp_path / "a.plist"], check=False).returncode == 0


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd")
def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    python = tmp_path / "a %b $c" / "python"
    python.parent.mkdir()
    python.symlink_to("/bin/true")
    unit = tmp_path / "kefu.service"
    unit.write_bytes(systemd_unit((str(python), "serve"), python.parent))
    checked = subprocess.run(["systemd-analyze", "--user", "verify", str(unit)], capture_output=True, text=True, check=False, timeout=30)
    assert "kefu.service" not in checked.stderr, checked.stderr
    assert b"TimeoutStopSec=60" in unit.read_bytes()


@pytest.mark.parametrize("is_mac", [True, False])
def test_install_status_uninstall(is_mac: bool, tmp_path: Path) -> None:
    manager = Manager("\tstate = running\n" if is_mac else "active\n")
    service = Service(tmp_path, is_mac, manager)
    assert (service.status(), service.uninstall(), manager.asked) == ("not installed", False, [])
    service.install(COMMAND, tmp_path, tmp_path / "data" / "log")
    assert service.path.is_file()
    assert [words[0] for words in manager.asked] == (["launchctl"] if is_mac else ["systemctl"] * 2)
    assert service.status() == ("running" if is_mac else "active")
    service.install(COMMAND, tmp_path, tmp_path / "data" / "log")
    assert any("bootout" in words or "disable" in words for words in manager.asked)
    assert service.uninstall() and not service.path.exists()


def test_a_refusal_is_told_with_the_command(tmp_path: Path) -> None:
    with pytest.raises(ServiceFailed, match=r"`systemctl --user daemon-reload` ended with status 1 \(no such bus\)"):
        Service(tmp_path, False, Manager(status=1)).install(COMMAND, tmp_path, tmp_path / "log")
    assert run(("no-such-program-here",)).returncode == 127
