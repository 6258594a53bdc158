"""What is MLX's own: loading, quantized KV, the memory guard, the wired limit, breaking off between layers."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("mlx_lm")

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.utils import load_model

from backends.adapter import AdapterRegistry
from backends.mlx import model
from backends.mlx.backend import MlxBackend
from backends.protocol import AdapterRefused, Admission, ModelLoadError
from backends.scheduler import Scheduler
from backends.sequence import CacheScope, FinishReason, SamplingParams, Sequence
from tests.backends.lora import ALPHA, RANK, random_matrices, write_peft
from tests.conformance.desk import GREEDY, OPTIONS, PUBLIC, answer, desk, endless, run


@pytest.fixture
def folder(tmp_path: Path, mlx_path: str) -> Path:
    shutil.copytree(mlx_path, tmp_path / "model")
    return tmp_path / "model"


def _backend(path: str | Path, **changes: object) -> MlxBackend:
    return MlxBackend(replace(OPTIONS, path=str(path), **changes))  # type: ignore[arg-type]


def test_quantized_kv_takes_less_and_answers_the_same_alone_and_in_company(mlx_path: str) -> None:
    plain, small = _backend(mlx_path), _backend(mlx_path, kv_type="q8_0")
    assert small._model.kv_token_bytes * 3 < plain._model.kv_token_bytes
    together = answer(small, *[desk(i, [210 + i, 220] * (i + 1)) for i in range(3)])
    assert together == {i: answer(small, desk(10 + i, [210 + i, 220] * (i + 1)))[10 + i] for i in range(3)}
    warm = desk(20, [210, 220], private="conversation 0")
    assert answer(small, warm)[20] == together[0]
    assert warm.num_cached == len(PUBLIC) + 1


@pytest.fixture
def only_arrays_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """The built-in model's KV is smaller than the noise in what the system counts."""
    monkeypatch.setattr(model, "_footprint", lambda: 0)


def test_the_footprint_grows_with_what_is_allocated() -> None:
    before = model._footprint()
    held = mx.ones((50_000_000,))
    mx.eval(held)
    assert 150_000_000 < model._footprint() - before < 250_000_000


@pytest.mark.usefixtures("only_arrays_count")
def test_a_request_that_memory_cannot_hold_is_refused_before_it_is_computed(mlx_path: str) -> None:
    backend = _backend(mlx_path)
    scheduler = Scheduler(backend)
    small, greedy = desk(1, [250]), desk(2, [251], endless(backend, 3000))
    backend._model.memory_limit = backend._model.memory_limit - backend._model.memory_left + 400 * backend._model.kv_token_bytes
    events = run(scheduler, [small, greedy])
    assert next(e.finish_reason for e in events[1] if e.finish_reason) in (FinishReason.STOP, FinishReason.LENGTH)
    assert [(e.token_id, e.finish_reason) for e in events[2]] == [(-1, FinishReason.NO_MEMORY)]
    assert greedy.num_computed == 0


@pytest.mark.usefixtures("only_arrays_count")
def test_kept_prefixes_make_way_before_anybody_is_refused(mlx_path: str) -> None:
    backend = _backend(mlx_path)
    answer(backend, desk(1, [250] * 60))
    backend._model.memory_limit -= backend._model.memory_left - 90 * backend._model.kv_token_bytes
    newcomer = Sequence(2, [7] * 120, 120, GREEDY, CacheScope(private="other"))
    assert backend.admission(newcomer) is Admission.YES
    backend.start(newcomer)
    assert backend.cache_stats().num_evicted > 0


def test_weights_that_leave_no_room_are_refused(mlx_path: str) -> None:
    with pytest.raises(ModelLoadError, match=r"does not fit this machine: its weights take 0\.0 GB and kefu may use 0\.0 GB"):
        _backend(mlx_path, memory_limit_bytes=10_000_000)


def test_weights_larger_than_memory_are_refused_unread(folder: Path) -> None:
    with (folder / "model-2.safetensors").open("wb") as file:
        file.truncate(4 * 10**12)
    with pytest.raises(ModelLoadError, match=r"its weights take 4000\.0 GB"):
        _backend(folder)


def test_the_wired_limit_is_left_alone(mlx_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(mx, "set_wired_limit", calls.append)
    backend = _backend(mlx_path)
    answer(backend, desk(1, [250]))
    backend.close()
    assert calls == []
    monkeypatch.setattr(mx, "default_device", lambda: mx.gpu)
    assert _backend(mlx_path).spec.max_sequences == 1
    assert calls == []
    assert _backend(mlx_path, set_wired_limit=True, mlx_batch=True).spec.max_sequences == OPTIONS.max_sequences
    assert len(calls) == 1


def _save(model: nn.Module, folder: Path, **config: object) -> None:
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())))
    document = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(document | config))


def test_an_adapter_on_quantized_weights_says_what_merged_ones_say(folder: Path, tmp_path: Path) -> None:
    merged = shutil.copytree(folder, tmp_path / "merged")
    model, _ = load_model(folder)
    model.set_dtype(mx.float32)
    nn.quantize(model, 64, 4)
    _save(model, folder, quantization={"group_size": 64, "bits": 4})
    matrices = random_matrices(1, 0.07)
    whole, _ = load_model(merged)
    for name, quantized in model.named_modules():
        if isinstance(quantized, nn.QuantizedLinear | nn.QuantizedEmbedding):
            weight = mx.dequantize(quantized.weight, quantized.scales, quantized.biases, 64, 4)
            a, b = matrices.get(name.removeprefix("model."), (None, None))
            weight = weight if a is None else weight + mx.array(ALPHA / RANK * (b @ a))
            dict(whole.named_modules())[name].weight = weight
    _save(whole, merged)
    key = AdapterRegistry(tmp_path / "adapters").add("a", write_peft(tmp_path / "p", matrices), folder)
    backend = _backend(folder, data_dir=str(tmp_path))
    adapted, wanted, plain = (_first_logprobs(each, name) for each, name in ((backend, key), (_backend(merged), ""), (backend, "")))
    assert adapted == pytest.approx(wanted, abs=0.01)
    assert max(abs(adapted[token] - plain.get(token, -20.0)) for token in adapted) > 0.5


def _first_logprobs(backend: MlxBackend, adapter: str) -> dict[int, float]:
    """The likeliest first tokens of an answer and their log probabilities."""
    seq = desk(1, [250], SamplingParams(temperature=0.0, max_tokens=1, num_top_logprobs=5), private=f"of {adapter}")
    seq.scope = replace(seq.scope, adapter=adapter)
    return next(dict(event.top_logprobs) for event in run(Scheduler(backend), [seq])[1] if event.token_id >= 0)


@pytest.mark.usefixtures("only_arrays_count")
def test_an_adapter_takes_its_own_memory_only_and_is_refused_without(mlx_path: str, tmp_path: Path) -> None:
    registry = AdapterRegistry(tmp_path / "adapters")
    key = registry.add("a", write_peft(tmp_path / "p", random_matrices(1)), Path(mlx_path))
    size = registry.path(key).stat().st_size
    backend, seq = _backend(mlx_path, data_dir=str(tmp_path)), desk(1, [250])
    seq.scope = replace(seq.scope, adapter=key)
    modules = [id(module) for _, module in backend._model._model.named_modules()]
    limit, backend._model.memory_limit = backend._model.memory_limit, 0
    with pytest.raises(AdapterRefused, match="no memory is left"):
        backend.start(seq)
    backend._model.memory_limit = limit
    before = mx.get_active_memory()
    backend._adapters.load(key)
    backend._adapters.apply(key)
    mx.eval([(adapted.a, adapted.b) for _, _, adapted in backend._model._adapter])
    assert mx.get_active_memory() - before < 1.2 * size
    registry.remove("a")
    assert backend._adapters.unload_removed({key}) == []
    assert backend._adapters.unload_removed(set()) == [key]
    assert mx.get_active_memory() - before < size / 10
    assert [id(module) for _, module in backend._model._model.named_modules()] == modules


def test_a_pass_is_broken_off_between_layers(mlx_path: str) -> None:
    backend = _backend(mlx_path)
    seq = Sequence(1, [5 + i for i in range(60)], 60, GREEDY, CacheScope(private="a"))
    looks = iter([False, False, True])
    backend.start(seq)
    backend.watch(lambda: next(looks, True))
    assert backend.step() == []
    assert next(looks, None) is None
    assert seq.num_computed == 0
    backend.watch(lambda: False)
    (first,) = backend.step()
    assert first.token_id == answer(backend, Sequence(2, list(seq.token_ids), 60, GREEDY, CacheScope(private="b")))[2][0]


@pytest.mark.parametrize(
    ("name", "said"), [("truncated", "could not be loaded"), ("unknown", "not supported"), ("window", "which cannot be cut and shared")]
)
def test_a_model_that_cannot_be_served_is_refused_in_one_sentence(
    folder: Path, name: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "truncated":
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:100_000])
    elif name == "unknown":
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"model_type": "no_such_model"}))
    else:
        from mlx_lm.models.cache import RotatingKVCache
        from mlx_lm.models.qwen2 import Model

        monkeypatch.setattr(Model, "make_cache", lambda self: [RotatingKVCache(max_size=64)], raising=False)
    with pytest.raises(ModelLoadError) as caught:
        _backend(folder)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
