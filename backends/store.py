"""What is here: pulled models, each a folder with a manifest beside it that says what every file must be."""

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal, get_args

import msgspec

from backends.catalog import Entry, Format

# A name that stays in its folder: no separators, nothing hidden.
PLAIN_NAME = r"^\w[\w.+-]*$"


class BrokenManifest(Exception):
    """A manifest cannot be read; the message names the file and what to do."""


class FileRecord(msgspec.Struct, frozen=True):
    """What a file must be: its bytes and its SHA-256."""

    size: Annotated[int, msgspec.Meta(ge=0)]
    sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One pulled build. `trust` says where its hashes come from: kefu's catalogue, or the first download."""

    repo: str
    revision: str
    trust: Literal["pinned", "first use"]
    files: Annotated[dict[Annotated[str, msgspec.Meta(pattern=PLAIN_NAME)], FileRecord], msgspec.Meta(min_length=1)]


class Store:
    """The folder of pulled models. A model's folder appears in one rename, when every byte of it has been checked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def place(self, entry: Entry, kind: Format, suffix: Literal["", ".partial", ".json"] = "") -> Path:
        """The folder of a complete build, the one where an unfinished pull keeps what has come, or the manifest."""
        return self.folder / f"{entry.name}-{kind}{suffix}"

    def formats(self, entry: Entry) -> list[Format]:
        """The builds that are here, complete."""
        return [kind for kind in get_args(Format) if self.place(entry, kind).is_dir()]

    def model_path(self, entry: Entry, kind: Format) -> Path:
        """What an engine loads: the GGUF file, or the MLX folder."""
        return self.place(entry, kind) / ("" if kind == "mlx" else entry.gguf.files[0])

    def manifest(self, entry: Entry, kind: Format) -> Manifest | None:
        """What is recorded of this build, also after `remove`; None for one never pulled. Raises BrokenManifest."""
        path = self.place(entry, kind, ".json")
        try:
            return msgspec.json.decode(path.read_bytes(), type=Manifest) if path.exists() or self.place(entry, kind).is_dir() else None
        except (OSError, msgspec.MsgspecError) as error:
            advice = f"what was trusted is lost; `kefu rm --forget {entry.name}` and pull it again"
            raise BrokenManifest(f"{path} cannot be read ({error}): {advice}") from error

    def keep(self, entry: Entry, kind: Format, manifest: Manifest) -> None:
        """Record the manifest and move the finished partial folder into place."""
        path = self.place(entry, kind, ".json")
        draft = path.with_suffix(".new")
        draft.write_bytes(msgspec.json.format(msgspec.json.encode(manifest)))
        draft.replace(path)
        self.place(entry, kind, ".partial").replace(self.place(entry, kind))

    def faults(self, entry: Entry, kind: Format) -> Iterator[tuple[str, str]]:
        """Every file of a build that is here, with what is wrong with it: empty when nothing is. Raises BrokenManifest."""
        manifest = self.manifest(entry, kind)
        for name, record in manifest.files.items() if manifest else ():
            path = self.place(entry, kind) / name
            if not path.is_file():
                yield name, "is missing"
            elif path.stat().st_size != record.size:
                yield name, f"has {path.stat().st_size:,} bytes instead of {record.size:,}"
            else:
                yield name, "" if sha256_of(path) == record.sha256 else "has another SHA-256 than was recorded"

    def remove(self, entry: Entry, kind: Format) -> int:
        """Delete a build and its unfinished pull; returns the bytes freed. The record stays: another pull must equal it."""
        freed = 0
        for folder in (self.place(entry, kind), self.place(entry, kind, ".partial")):
            if folder.is_dir():
                freed += sum(path.stat().st_size for path in folder.iterdir())
                shutil.rmtree(folder)
        return freed


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
