"""A pull ends with every byte right and in place, or with nothing in place and a sentence that says why."""

import errno
import fcntl
import hashlib
import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from backends.catalog import Entry, Source
from backends.download import Link, PullFailed, pull
from backends.store import BrokenManifest, Store
from tests.backends.hub import REVISION, Hub, serving

WEIGHTS = random.Random(1).randbytes(300_000)
FILES = {"tiny.gguf": WEIGHTS, "model.safetensors": WEIGHTS[::-1], "config.json": b'{"a": 1}', "README.md": b"no", "other.gguf": b"no"}
SHA256 = hashlib.sha256(WEIGHTS).hexdigest()
ENTRY = Entry("tiny", 0.001, (1, 1, 8), Source("x/y", ("tiny.gguf",), 8.5), Source("x/z"), "tiny-0.1b")
PINNED = msgspec.structs.replace(ENTRY, gguf=Source("x/y", ("tiny.gguf",), 8.5, REVISION, len(WEIGHTS), SHA256))


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serving(dict(FILES)) as hub:
        yield hub


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "models")


def _link(hub: Hub) -> Link:
    return Link(hub.url, stall_s=0.3, retries=2, pause_s=0.001)


def test_a_pull_puts_the_right_files_in_place_and_says_how_far_it_is(hub: Hub, store: Store) -> None:
    seen: list[tuple[str, int, int]] = []
    manifest = pull(store, ENTRY, "gguf", _link(hub), lambda *progress: seen.append(progress))
    assert store.model_path(ENTRY, "gguf").read_bytes() == WEIGHTS
    assert (list(manifest.files), manifest.revision, manifest.trust) == (["tiny.gguf"], REVISION, "first use")
    assert manifest.files["tiny.gguf"].sha256 == SHA256
    assert seen[-1] == ("checking tiny.gguf", len(WEIGHTS), len(WEIGHTS))
    assert [n for _, n, _ in seen] == sorted(n for _, n, _ in seen)
    assert store.formats(ENTRY) == ["gguf"]
    asked = len(hub.requests)
    assert pull(store, ENTRY, "gguf", _link(hub)) == manifest
    assert len(hub.requests) == asked
    assert all(fault == "" for _, fault in store.faults(ENTRY, "gguf"))


def test_an_mlx_folder_holds_its_small_files_too(hub: Hub, store: Store) -> None:
    pull(store, ENTRY, "mlx", _link(hub))
    assert {path.name for path in store.model_path(ENTRY, "mlx").iterdir()} == {"model.safetensors", "config.json"}


@pytest.mark.parametrize(
    "faults",
    [["cut"], ["cut", "cut", "cut"], ["stall"], ["500", "cut", "503"], ["cut", "no range"], ["cut", "wrong range"], ["cut", "416"]],
)
def test_cuts_stalls_and_wrong_ranges_are_got_over(faults: list[str], hub: Hub, store: Store) -> None:
    hub.faults.extend(faults)
    pull(store, ENTRY, "gguf", _link(hub))
    assert store.model_path(ENTRY, "gguf").read_bytes() == WEIGHTS
    assert not hub.faults


def test_a_pull_that_gave_up_goes_on_where_it_stopped(hub: Hub, store: Store) -> None:
    hub.faults.extend(["cut", "500", "500", "500", "500"])
    with pytest.raises(PullFailed, match=r"stops at 150,000 of 300,000 bytes .*500.*pull again"):
        pull(store, ENTRY, "gguf", _link(hub))
    assert store.formats(ENTRY) == []
    hub.faults.clear()
    pull(store, ENTRY, "gguf", _link(hub))
    assert hub.requests[-1][1] == "bytes=150000-"
    assert store.model_path(ENTRY, "gguf").read_bytes() == WEIGHTS


@pytest.mark.parametrize("kind", ["gguf", "mlx"])
def test_a_flipped_byte_is_refused_and_not_kept(kind: str, hub: Hub, store: Store) -> None:
    hub.faults.extend(["flip"] if kind == "gguf" else ["", "flip"])
    with pytest.raises(PullFailed, match="is not what it should be"):
        pull(store, ENTRY, kind, _link(hub))  # type: ignore[arg-type]
    assert store.formats(ENTRY) == [] and store.manifest(ENTRY, kind) is None  # type: ignore[arg-type]
    pull(store, ENTRY, kind, _link(hub))  # type: ignore[arg-type]
    assert all(fault == "" for _, fault in store.faults(ENTRY, kind))  # type: ignore[arg-type]


def test_a_file_that_may_not_be_had_is_told_at_once(hub: Hub, store: Store) -> None:
    hub.faults.extend(["403"])
    with pytest.raises(PullFailed, match=r"answered 403 to /x/y/resolve/a{40}/tiny\.gguf"):
        pull(store, ENTRY, "gguf", _link(hub))
    assert len(hub.requests) == 2


def test_more_than_was_announced_is_refused(hub: Hub, store: Store) -> None:
    hub.faults.extend(["longer"] * 9)
    with pytest.raises(PullFailed, match="more bytes came"):
        pull(store, ENTRY, "gguf", _link(hub))


def test_a_pinned_model_must_be_the_pinned_one(hub: Hub, store: Store) -> None:
    assert pull(store, PINNED, "gguf", _link(hub)).trust == "pinned"
    store.remove(PINNED, "gguf")
    store.place(PINNED, "gguf", ".json").unlink()
    hub.files["tiny.gguf"] = WEIGHTS[:-1] + b"x"
    with pytest.raises(PullFailed, match=r"offers another tiny.gguf .* nothing was taken"):
        pull(store, PINNED, "gguf", _link(hub))
    hub.told_sha256["tiny.gguf"] = SHA256
    with pytest.raises(PullFailed, match="is not what it should be"):
        pull(store, PINNED, "gguf", _link(hub))
    assert store.formats(PINNED) == []


def test_what_was_trusted_on_first_use_must_come_again(hub: Hub, store: Store) -> None:
    pull(store, ENTRY, "gguf", _link(hub))
    assert store.remove(ENTRY, "gguf") == len(WEIGHTS)
    hub.files["tiny.gguf"] = bytes(len(WEIGHTS))
    with pytest.raises(PullFailed, match="offers another"):
        pull(store, ENTRY, "gguf", _link(hub))
    assert f"/revision/{REVISION}" in hub.requests[-1][0]


def test_no_room_is_known_before_anything_is_taken(hub: Hub, store: Store) -> None:
    hub.listing = json.dumps({"sha": REVISION, "siblings": [{"rfilename": "tiny.gguf", "size": 10**16}]}).encode()
    with pytest.raises(PullFailed, match=r"10000002.1 GB are needed .* make room first"):
        pull(store, ENTRY, "gguf", _link(hub))
    assert len(hub.requests) == 1


def test_a_disk_that_fills_up_on_the_way_is_told(hub: Hub, store: Store) -> None:
    partial = store.place(ENTRY, "gguf", ".partial")
    partial.mkdir(parents=True)
    (partial / "tiny.gguf").symlink_to("/dev/full")
    with pytest.raises(PullFailed, match=r"the disk is full; .* pull again") as caught:
        pull(store, ENTRY, "gguf", _link(hub))
    assert isinstance(caught.value.__cause__, OSError) and caught.value.__cause__.errno == errno.ENOSPC
    assert store.formats(ENTRY) == []


@pytest.mark.parametrize(
    "listing", [b"<html>", b"{}", b'{"sha": "x", "siblings": []}', b'{"sha": "x", "siblings": [{"rfilename": "../tiny.gguf"}]}']
)
def test_a_listing_that_is_none_is_refused(listing: bytes, hub: Hub, store: Store) -> None:
    hub.listing = listing
    with pytest.raises(PullFailed, match=r"did not list|does not hold"):
        pull(store, ENTRY, "gguf", _link(hub))
    assert not list(store.folder.rglob("*.gguf"))


def test_a_hub_that_is_away_is_told(hub: Hub, store: Store) -> None:
    with pytest.raises(PullFailed, match=r"check the network and models\.url"):
        pull(store, ENTRY, "gguf", replace(_link(hub), url="http://127.0.0.1:9"))


def test_two_pulls_of_one_model_do_not_mix(hub: Hub, store: Store) -> None:
    store.folder.mkdir()
    with store.place(ENTRY, "gguf", ".partial").with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(PullFailed, match="another pull"):
            pull(store, ENTRY, "gguf", _link(hub))


def test_verify_finds_a_flipped_byte_a_short_file_and_a_missing_one(hub: Hub, store: Store) -> None:
    pull(store, ENTRY, "mlx", _link(hub))
    weights = store.model_path(ENTRY, "mlx") / "model.safetensors"
    weights.write_bytes(b"?" + weights.read_bytes()[1:])
    (store.model_path(ENTRY, "mlx") / "config.json").write_bytes(b"")
    assert dict(store.faults(ENTRY, "mlx")) == {
        "model.safetensors": "has another SHA-256 than was recorded",
        "config.json": "has 0 bytes instead of 8",
    }
    weights.unlink()
    assert dict(store.faults(ENTRY, "mlx"))["model.safetensors"] == "is missing"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "{}",
        '{"repo":"a","revision":"b","trust":"first use","files":{}}',
        '{"repo":"a","revision":"b","trust":"first use","files":{"../x":{"size":1,"sha256":"' + "a" * 64 + '"}}}',
    ],
)
def test_a_broken_manifest_is_named_with_what_to_do(text: str, hub: Hub, store: Store) -> None:
    pull(store, ENTRY, "gguf", _link(hub))
    store.place(ENTRY, "gguf", ".json").write_text(text)
    with pytest.raises(BrokenManifest, match=r"tiny-0.1b-gguf.json cannot be read .*kefu rm --forget tiny-0.1b"):
        list(store.faults(ENTRY, "gguf"))
    store.place(ENTRY, "gguf", ".json").unlink()
    with pytest.raises(BrokenManifest):
        store.manifest(ENTRY, "gguf")
