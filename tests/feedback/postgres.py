"""A PostgreSQL server of our own, in a temporary folder, for the length of a test session."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_FOUND = [Path(found).parent] if (found := shutil.which("initdb")) else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
PROGRAMS = _FOUND[-1] if _FOUND else None


@contextmanager
def postgres_server() -> Iterator[str]:
    """Yield a URL whose user may create databases; the server listens on a socket file only."""
    folder = Path(tempfile.mkdtemp(prefix="kefu-pg-"))
    # PostgreSQL refuses to run as root.
    as_user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    if as_user:
        shutil.chown(folder, "postgres")

    def run(program: str, *arguments: str) -> None:
        subprocess.run([*as_user, f"{PROGRAMS}/{program}", *arguments], check=True, cwd=folder, stdout=subprocess.DEVNULL)

    data = str(folder / "data")
    try:
        run("initdb", "-D", data, "-U", "kefu", "-A", "trust", "--no-sync")
        run("pg_ctl", "-D", data, "-w", "-l", str(folder / "log"), "-o", f"-k {folder} -c listen_addresses='' -c fsync=off", "start")
        try:
            yield f"postgresql://kefu@/postgres?host={folder}"
        finally:
            run("pg_ctl", "-D", data, "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
