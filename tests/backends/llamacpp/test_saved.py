"""Public prefixes over a restart: restored where they belong, never trusted when broken, never a private token on disk."""

import hashlib
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from backends.adapter import AdapterRegistry
from backends.llamacpp import saved
from backends.llamacpp.backend import LlamaBackend
from backends.protocol import EngineOptions
from backends.scheduler import Scheduler
from backends.sequence import CacheScope, SamplingParams, Sequence
from tests.backends.lora import random_matrices, write_peft

PUBLIC = list(range(40, 140))
SECRET = [333, 334, 335, 336]
Open = Callable[..., LlamaBackend]


@pytest.fixture
def engine(model_path: str, tmp_path: Path) -> Iterator[Open]:
    """Starts an engine over one data folder; the one before is closed."""
    open_ones: list[LlamaBackend] = []

    def start(**fields: object) -> LlamaBackend:
        while open_ones:
            open_ones.pop().close()
        options = {"max_sequences": 4, "num_kv_tokens": 2048, "threads": 1, "data_dir": str(tmp_path), **fields}
        open_ones.append(LlamaBackend(EngineOptions(model_path, "m", **options)))  # type: ignore[arg-type]
        return open_ones[-1]

    yield start
    while open_ones:
        open_ones.pop().close()


def _ask(backend: LlamaBackend, public: str = "desk", adapter: str = "", tokens: list[int] = PUBLIC) -> Sequence:
    seq = Sequence(1, [*tokens, *SECRET], len(tokens) + len(SECRET), SamplingParams(temperature=0.0, max_tokens=12))
    seq.scope = CacheScope(len(tokens), public, "conversation", adapter)
    scheduler = Scheduler(backend)
    scheduler.submit(seq)
    while scheduler.has_work:
        scheduler.step()
    return seq


def _files(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache").glob("*"))


def test_the_next_engine_starts_with_the_public_part_and_says_the_same(engine: Open, tmp_path: Path) -> None:
    before = _ask(engine())
    after = _ask(engine())
    assert (before.num_cached, after.num_cached) == (0, len(PUBLIC))
    assert after.token_ids == before.token_ids
    again = engine()
    assert _ask(again, public="somebody else").num_cached == 0
    assert _ask(again, tokens=[*PUBLIC[:-1], 7]).num_cached == 0
    assert _ask(again).num_cached == len(PUBLIC)


def test_no_private_token_reaches_the_disk(engine: Open, tmp_path: Path) -> None:
    _ask(engine())
    engine()
    (file,) = _files(tmp_path)
    assert (tmp_path / "cache").stat().st_mode & 0o077 == 0
    count = struct.unpack_from("<I", file.read_bytes(), 8)[0]
    assert list(struct.unpack_from(f"<{count}i", file.read_bytes(), 12)) == PUBLIC
    secret = _files(tmp_path)[0].read_bytes()
    _ask(engine(), tokens=PUBLIC[:-1])
    engine()
    sizes = sorted(len(path.read_bytes()) for path in _files(tmp_path))
    assert 0 < sizes[1] - sizes[0] < len(secret) / (len(PUBLIC) - 10), "one row of cells per public token, no more"


@pytest.mark.parametrize("damage", ["cut", "flipped", "swapped"])
def test_a_broken_file_is_removed_and_the_answer_is_computed(damage: str, engine: Open, tmp_path: Path) -> None:
    wanted = _ask(engine())
    first = engine()
    (file,) = _files(tmp_path)
    data = bytearray(file.read_bytes())
    if damage == "swapped":
        data = bytearray(b"\0" * 400)
        path = file.with_stem(f"{file.stem.rpartition('-')[0]}-{hashlib.sha256(data).hexdigest()[:12]}")
        file.unlink()
        file = path
    elif damage == "cut":
        del data[-1000:]
    else:
        data[len(data) // 2] ^= 0xFF
    file.write_bytes(data)
    seq = _ask(first)
    assert seq.num_cached == 0
    assert not file.exists()
    assert seq.token_ids == wanted.token_ids


def test_what_another_engine_left_is_removed_and_an_adapters_kv_stays_its_own(engine: Open, tmp_path: Path, model_path: str) -> None:
    key = AdapterRegistry(tmp_path / "adapters").add("tone", write_peft(tmp_path / "p", random_matrices(1)), Path(model_path))
    first = engine()
    wanted = _ask(first, adapter=key)
    second = engine()
    assert _ask(second).num_cached == 0
    tuned = _ask(second, adapter=key)
    assert (tuned.num_cached, tuned.token_ids) == (len(PUBLIC), wanted.token_ids)
    engine(kv_type="f32")
    assert _files(tmp_path) == []


def test_the_folder_stays_within_its_bound(engine: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = engine()
    for i in range(3):
        _ask(backend, tokens=[i + 5, *PUBLIC])
    engine()
    sizes = [file.stat().st_size for file in _files(tmp_path)]
    assert len(sizes) == 3
    monkeypatch.setattr(saved, "MAX_BYTES", 2 * sizes[0] + 1)
    _ask(engine(), tokens=[9, *PUBLIC])
    engine()
    assert len(_files(tmp_path)) == 2
    assert _ask(engine(), tokens=[9, *PUBLIC]).num_cached == len(PUBLIC) + 1
