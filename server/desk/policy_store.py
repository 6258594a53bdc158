"""Policies saved in the console: every version stays, and the newest is in force until the file in the settings changes."""

import hashlib
from contextlib import suppress
from pathlib import Path

from backends.mini.shop import Language
from server.desk.policy_file import DEMO, Terms, parse_policy
from server.settings import Settings


class PolicyStore:
    """A folder of `VERSION.toml`. `in_force` there names the newest, and the version of the set file that it took the place of."""

    def __init__(self, settings: Settings) -> None:
        self._folder = settings.data_dir / "policies"
        self._set = settings.desk.policy or DEMO

    @property
    def path(self) -> Path:
        """The file in force: whichever was changed last, the saved one or the one in the settings."""
        with suppress(OSError, ValueError):
            version, instead_of = (self._folder / "in_force").read_text("ascii").split()
            if instead_of == _version(self._set) and self.file(version).is_file():
                return self.file(version)
        return self._set

    def file(self, version: str) -> Path:
        """Where a version lies, if it was ever saved."""
        return self._folder / f"{version}.toml"

    def save(self, text: str) -> dict[Language, Terms]:
        """Put a policy in force from the next start on. Raises BadPolicy, and OSError where the folder cannot be written."""
        content = text.replace("\r\n", "\n").encode()
        terms = parse_policy(content)
        self._folder.mkdir(parents=True, exist_ok=True)
        files = {
            self.file(terms["en"].version): content,
            self._folder / "in_force": f"{terms['en'].version} {_version(self._set)}".encode(),
        }
        for file, wanted in files.items():
            new = file.with_suffix(".new")
            new.write_bytes(wanted)
            new.replace(file)
        return terms

    def saved(self) -> list[tuple[str, int]]:
        """Versions, and when each was saved last in milliseconds since 1970; the newest first."""
        found = [(file.stem, int(file.stat().st_mtime * 1000)) for file in self._folder.glob("*.toml")]
        return sorted(found, key=lambda one: one[1], reverse=True)


def _version(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
