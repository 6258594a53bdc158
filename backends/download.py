"""Pulling a model over HTTP: resumed, checked byte for byte, and in place only when all of it is right."""

import errno
import fcntl
import hashlib
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import httpx
import msgspec

from backends.catalog import Entry, Format, Source
from backends.store import PLAIN_NAME, FileRecord, Manifest, Store, sha256_of

SPARE_BYTES = 2 << 30

# What is being done, and how many of the model's bytes are here, of how many.
OnProgress = Callable[[str, int, int], None]


class PullFailed(Exception):
    """The pull stopped; the message says why and what to do. What has come is kept, unless it was wrong."""


@dataclass(frozen=True, slots=True)
class Link:
    """Where models come from. A server silent for `stall_s` is asked again, `retries` times without any progress."""

    url: str = "https://huggingface.co"
    stall_s: float = 30.0
    retries: int = 5
    pause_s: float = 1.0


class _Lfs(msgspec.Struct):
    sha256: str


class _File(msgspec.Struct, rename="camel"):
    """A file as the hub lists it: large ones with their SHA-256, small ones with git's name for the content."""

    rfilename: str
    size: int = 0
    blob_id: str = ""
    lfs: _Lfs | None = None


class _Listing(msgspec.Struct):
    sha: str
    siblings: list[_File]


class _TryAgain(Exception):
    """This answer was of no use; another may be."""


def pull(store: Store, entry: Entry, kind: Format, link: Link, on_progress: OnProgress = lambda *_: None) -> Manifest:
    """Bring a build here and return its manifest; at once when it is here already. Raises PullFailed or BrokenManifest.

    Hashes must be those of an earlier pull, else the catalogue's; a model with neither is trusted on first use: checked against what
    the server itself says, and recorded.
    """
    record = store.manifest(entry, kind)
    if record is not None and kind in store.formats(entry):
        return record
    folder = store.place(entry, kind, ".partial")
    # Compressed on the way, a file would have another length than announced.
    headers = {"accept-encoding": "identity", "user-agent": "kefu"}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (
            folder.with_suffix(".lock").open("w") as lock,
            httpx.Client(base_url=link.url, timeout=link.stall_s, follow_redirects=True, headers=headers) as client,
        ):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            manifest = _Pull(client, link, entry.source(kind), record, on_progress).fetch(folder)
            store.keep(entry, kind, manifest)
    except BlockingIOError as error:
        raise PullFailed("another pull of this model is running; wait for it or end it") from error
    except OSError as error:
        what = "the disk is full" if error.errno == errno.ENOSPC else f"{error.filename or folder}: {error.strerror}"
        raise PullFailed(f"{what}; what has come is kept: make room and pull again") from error
    return manifest


class _Pull:
    """One build on its way. Nothing is taken before the listing agrees with what is known."""

    def __init__(self, client: httpx.Client, link: Link, source: Source, record: Manifest | None, on_progress: OnProgress) -> None:
        self._client, self._link, self._source, self._record, self._report = client, link, source, record, on_progress
        listing = self._list(record.revision if record else source.revision)
        self._revision = listing.sha
        self._files = [
            f for f in listing.siblings if re.match(PLAIN_NAME, f.rfilename) and any(fnmatch(f.rfilename, p) for p in source.files)
        ]
        if not self._files or (record and {file.rfilename for file in self._files} != set(record.files)):
            raise PullFailed(f"{source.repo} at {listing.sha} does not hold {', '.join(record.files if record else source.files)}")
        for file in self._files:
            if file.lfs and self._known(file) not in ("", file.lfs.sha256):
                raise PullFailed(f"{link.url} offers another {file.rfilename} than was pinned or trusted before; nothing was taken")
        self._total, self._done = sum(file.size for file in self._files), 0

    def _list(self, revision: str) -> _Listing:
        try:
            path = f"/api/models/{self._source.repo}/revision/{revision}"
            reply = self._client.get(path, params={"blobs": "true"}).raise_for_status()
            return msgspec.json.decode(reply.content, type=_Listing)
        except (httpx.HTTPError, msgspec.MsgspecError) as error:
            raise PullFailed(
                f"{self._link.url} did not list {self._source.repo} ({_why(error)}): check the network and models.url"
            ) from error

    def _known(self, file: _File) -> str:
        """The SHA-256 that this file must have; empty when it is yet to be trusted."""
        return self._record.files[file.rfilename].sha256 if self._record else self._source.sha256

    def fetch(self, folder: Path) -> Manifest:
        """Every file, complete and checked."""
        for stray in {path.name for path in folder.iterdir()} - {file.rfilename for file in self._files}:
            (folder / stray).unlink()
        needed = self._total - sum(path.stat().st_size for path in folder.iterdir()) + SPARE_BYTES
        if needed > (free := shutil.disk_usage(folder).free):
            raise PullFailed(f"{needed / 1e9:.1f} GB are needed in {folder.parent} and {free / 1e9:.1f} GB are free; make room first")
        records = {}
        for file in self._files:
            self._complete(file, folder / file.rfilename)
            records[file.rfilename] = FileRecord(file.size, self._checked(file, folder / file.rfilename))
            self._done += file.size
        return Manifest(self._source.repo, self._revision, "pinned" if self._source.sha256 else "first use", records)

    def _complete(self, file: _File, path: Path) -> None:
        """Ask until all of it is here."""
        path.touch()
        failures, reason = 0, ""
        while (have := path.stat().st_size) != file.size:
            if failures > self._link.retries:
                raise PullFailed(f"{file.rfilename} stops at {have:,} of {file.size:,} bytes ({reason}); pull again to go on from there")
            try:
                self._stream(file, path, have if have < file.size else 0)
            except (httpx.HTTPError, _TryAgain) as error:
                reason = _why(error)
            failures = 0 if path.stat().st_size > have else failures + 1
            time.sleep(self._link.pause_s * 2**failures if failures else 0)

    def _stream(self, file: _File, path: Path, have: int) -> None:
        """One request: appends when the server goes on from `have`, begins again when it does not."""
        url = f"/{self._source.repo}/resolve/{self._revision}/{file.rfilename}"
        with self._client.stream("GET", url, headers={"range": f"bytes={have}-"} if have else {}) as reply:
            goes_on = reply.status_code == 206 and reply.headers.get("content-range", "").startswith(f"bytes {have}-")
            if reply.status_code in (401, 403, 404):
                raise PullFailed(f"{self._link.url} answered {reply.status_code} to {url}")
            if not goes_on and reply.status_code != 200:
                if reply.status_code in (206, 416):
                    path.write_bytes(b"")
                raise _TryAgain(f"the server answered {reply.status_code}")
            with path.open("ab" if goes_on else "wb") as out:
                for chunk in reply.iter_raw():
                    out.write(chunk)
                    self._report(f"pulling {file.rfilename}", self._done + out.tell(), self._total)
                    if out.tell() > file.size:
                        raise _TryAgain("more bytes came than were announced")

    def _checked(self, file: _File, path: Path) -> str:
        """The file's SHA-256. A wrong file is deleted: PullFailed."""
        self._report(f"checking {file.rfilename}", self._done + file.size, self._total)
        found = sha256_of(path)
        told = found if file.lfs is None else file.lfs.sha256
        if found != (self._known(file) or told) or (file.blob_id and not file.lfs and _git_name(path) != file.blob_id):
            path.unlink()
            raise PullFailed(f"{file.rfilename} is not what it should be (SHA-256 {found}) and was deleted; pull again to fetch it anew")
        return found


def _git_name(path: Path) -> str:
    """Git's name for a content: SHA-1 over a header and the bytes. Only files of a few megabytes have no SHA-256."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _why(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__
