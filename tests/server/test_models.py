"""A model is found by path or by name, and refused with the numbers before anything is loaded."""

import shutil
from pathlib import Path

import pytest

from backends.catalog import UnknownModel, find
from backends.fit import GIB, Machine
from backends.store import BrokenManifest, FileRecord, Manifest, Store, sha256_of
from server.app import engine_options
from server.models import Chosen, ModelUnavailable, choose, offer
from server.settings import EngineSettings, KnowledgeSettings, ModelsSettings, Settings

PC, MAC = Machine(64 * GIB), Machine(48 * GIB, is_mac=True)


def _settings(tmp_path: Path, **engine: object) -> Settings:
    models = ModelsSettings(dir=tmp_path / "models")
    return Settings(engine=EngineSettings.model_validate(engine), models=models, data_dir=tmp_path / "data")


def _have(tmp_path: Path, name: str, source: Path) -> Path:
    """Put a model file where a pull of this name would have put it."""
    store, entry = Store(tmp_path / "models"), find(name)
    partial = store.place(entry, "gguf", ".partial")
    partial.mkdir(parents=True)
    file = entry.gguf.files[0]
    shutil.copy(source, partial / file)
    record = FileRecord(source.stat().st_size, sha256_of(source))
    store.keep(entry, "gguf", Manifest(entry.gguf.repo, "main", "first use", {file: record}))
    return store.model_path(entry, "gguf")


def test_nothing_set_is_the_built_in_model(tmp_path: Path) -> None:
    chosen = choose(_settings(tmp_path), PC)
    assert (chosen.engine.model, chosen.name, chosen.sampling) == (None, None, None)


def test_a_pulled_model_brings_its_sampling_and_its_room(tmp_path: Path, model_path: str) -> None:
    path = _have(tmp_path, "qwq-32b", Path(model_path))
    chosen = choose(_settings(tmp_path, model="qwq-32b"), PC)
    assert (chosen.engine.model, chosen.name, chosen.sampling) == (path, "qwq-32b", find("qwq-32b").sampling)
    assert (chosen.engine.context_length, chosen.engine.num_kv_tokens) == (32768, 4 * 32768)
    assert choose(_settings(tmp_path, model=path), PC).name == "qwq-32b"
    tight = Machine(64 * GIB, limit_bytes=GIB)
    small = choose(_settings(tmp_path, model="qwq-32b"), tight)
    assert small.fit and small.engine.num_kv_tokens == small.fit.num_tokens == (GIB - path.stat().st_size) // (256 * 1024)
    halved = choose(_settings(tmp_path, model="qwq-32b", kv_type="q8_0"), tight)
    assert 1.8 * small.engine.num_kv_tokens < halved.engine.num_kv_tokens < 2 * small.engine.num_kv_tokens


def test_a_file_of_another_name_is_served_as_it_is(tmp_path: Path, model_path: str) -> None:
    file = shutil.copy(model_path, tmp_path / "mine.gguf")
    chosen = choose(_settings(tmp_path, model=file), PC)
    assert (chosen.engine.model, chosen.name, chosen.sampling, chosen.engine.num_kv_tokens) == (Path(file), None, None, 0)


def test_what_does_not_fit_is_refused_with_the_numbers(tmp_path: Path, model_path: str) -> None:
    huge = tmp_path / "huge.gguf"
    with huge.open("wb") as file:
        file.truncate(100 * GIB)
    with pytest.raises(ModelUnavailable, match=r"huge.gguf does not fit this machine: 107.4 GB of weights, 43.8 GB to spare"):
        choose(_settings(tmp_path, model=huge), PC)
    _have(tmp_path, "qwq-32b", Path(model_path))
    with pytest.raises(ModelUnavailable, match=r"256 KiB a token, 41.1 GB .* room for 15\d,\d{3} tokens of KV"):
        choose(_settings(tmp_path, model="qwq-32b", num_kv_tokens=200_000), Machine(60 * GIB))


def test_a_draft_model_is_found_the_same_way_and_takes_its_room(tmp_path: Path, model_path: str) -> None:
    path, draft = _have(tmp_path, "qwq-32b", Path(model_path)), _have(tmp_path, "qwen2.5-0.5b", Path(model_path))
    chosen = choose(_settings(tmp_path, model="qwq-32b", draft_model="qwen2.5-0.5b"), PC)
    kv_bytes = find("qwen2.5-0.5b").kv_bytes_per_token() * 32768
    assert chosen.engine.draft_model == draft and engine_options(chosen.engine).draft_model == str(draft)
    assert chosen.fit and chosen.fit.weight_bytes == path.stat().st_size + draft.stat().st_size + kv_bytes
    assert choose(_settings(tmp_path, draft_model="qwen2.5-0.5b"), MAC).engine.draft_model == draft
    huge = tmp_path / "huge.gguf"
    with huge.open("wb") as file:
        file.truncate(100 * GIB)
    with pytest.raises(ModelUnavailable, match=r"does not fit this machine: 107.4 GB of weights"):
        choose(_settings(tmp_path, model=model_path, draft_model=huge), PC)
    with pytest.raises(UnknownModel):
        choose(_settings(tmp_path, draft_model="qwq"), PC)


def test_an_embedding_model_is_found_like_any_other_and_counts(tmp_path: Path, model_path: str) -> None:
    _have(tmp_path, "qwen3-embedding-0.6b", Path(model_path))

    def chosen(wanted: object, **engine: object) -> Chosen:
        return choose(_settings(tmp_path, **engine).model_copy(update={"knowledge": KnowledgeSettings(embedding_model=wanted)}), PC)

    entry, path = chosen("qwen3-embedding-0.6b").embedding or (None, None)
    assert entry is not None and entry.asks.endswith("Query:") and path and path.is_file()
    assert chosen(model_path).embedding == (None, Path(model_path))
    beside = chosen(path, model=model_path)
    assert beside.embedding == (entry, path) and beside.fit and beside.fit.weight_bytes == 2 * path.stat().st_size
    with pytest.raises(ModelUnavailable, match=r"must be a GGUF file.*kefu pull"):
        chosen(tmp_path / "none.gguf")
    with pytest.raises(UnknownModel):
        chosen("minilm")


def test_what_is_not_here_or_not_known_is_told(tmp_path: Path, model_path: str) -> None:
    with pytest.raises(ModelUnavailable, match=r"kefu pull qwen3-0\.6b"):
        choose(_settings(tmp_path, model="qwen3-0.6b"), PC)
    with pytest.raises(UnknownModel):
        choose(_settings(tmp_path, model="qwq"), PC)
    _have(tmp_path, "qwen3-embedding-0.6b", Path(model_path))
    with pytest.raises(ModelUnavailable, match="cannot chat"):
        choose(_settings(tmp_path, model="qwen3-embedding-0.6b"), PC)
    _have(tmp_path, "qwq-32b", Path(model_path))
    Store(tmp_path / "models").place(find("qwq-32b"), "gguf", ".json").write_text("{")
    with pytest.raises(BrokenManifest):
        choose(_settings(tmp_path, model="qwq-32b"), PC)


def test_qwq_is_offered_once_on_a_mac_with_room(tmp_path: Path, model_path: str) -> None:
    assert offer(_settings(tmp_path), MAC) is not None
    assert offer(_settings(tmp_path), PC) is None
    assert offer(_settings(tmp_path), Machine(24 * GIB, is_mac=True)) is None
    assert offer(_settings(tmp_path, model="x.gguf"), MAC) is None
    (tmp_path / "data").mkdir()
    assert offer(_settings(tmp_path), MAC) is None
    (tmp_path / "data").rmdir()
    _have(tmp_path, "qwq-32b", Path(model_path))
    assert offer(_settings(tmp_path), MAC) is None
