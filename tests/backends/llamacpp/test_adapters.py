"""Adapters in a running llama.cpp model: they say what merged weights would say, whoever else is computed beside them."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest

from backends.adapter import AdapterRegistry
from backends.llamacpp.backend import LlamaBackend
from backends.llamacpp.tokenizer import LlamaTokenizer
from backends.protocol import AdapterRefused, EngineOptions
from backends.scheduler import Scheduler
from backends.sequence import CacheScope, SamplingParams, Sequence
from tests.backends.lora import ALPHA, RANK, Matrices, random_matrices, write_mlx, write_peft

NAMES = {"q": "attn_q", "k": "attn_k", "v": "attn_v", "o": "attn_output", "gate": "ffn_gate", "up": "ffn_up", "down": "ffn_down"}
QUESTIONS = ("When do you open?", "Where is my order?", "你们几点开门？")


def _write_float_model(path: Path, base: str, matrices: Matrices) -> None:
    """The base model in float32, with the LoRA merged into its weights."""
    deltas = {}
    for name, (a, b) in matrices.items():
        _, layer, _, part = name.split(".")
        deltas[f"blk.{layer}.{NAMES[part.removesuffix('_proj')]}.weight"] = ALPHA / RANK * (b @ a)
    reader = gguf.GGUFReader(base)
    writer = gguf.GGUFWriter(str(path), reader.fields["general.architecture"].contents())
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            kind = field.types[0]
            writer.add_key_value(name, field.contents(), kind, field.types[-1] if kind is gguf.GGUFValueType.ARRAY else None)
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        writer.add_tensor(tensor.name, values + deltas.get(tensor.name, np.float32(0)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, model_path: str) -> Path:
    """A data folder with adapters `a` and `b`, and `base.gguf` beside `merged.gguf`, which has `a` in its weights."""
    home = tmp_path_factory.mktemp("data")
    registry = AdapterRegistry(home / "adapters")
    registry.add("a", write_peft(home / "p", random_matrices(1)), Path(model_path))
    registry.add("b", write_mlx(home / "m", random_matrices(2)), Path(model_path))
    _write_float_model(home / "base.gguf", model_path, {})
    _write_float_model(home / "merged.gguf", model_path, random_matrices(1))
    return home


def _backend(model: str | Path, home: Path) -> LlamaBackend:
    return LlamaBackend(EngineOptions(str(model), "m", max_sequences=8, num_kv_tokens=4096, threads=1, data_dir=str(home)))


@pytest.fixture
def backend(model_path: str, home: Path) -> Iterator[LlamaBackend]:
    backend = _backend(model_path, home)
    yield backend
    backend.close()


def _ask(seq_id: int, question: str, model: str, adapter: str = "", **sampling: float) -> Sequence:
    prompt = (
        f"<|im_start|>system\nYou help the customers of a shop.<|im_end|>\n<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    )
    tokens = LlamaTokenizer(model).encode(prompt, special=True)
    params = SamplingParams(**{"temperature": 0.0, "max_tokens": 40, **sampling})  # type: ignore[arg-type]
    return Sequence(seq_id, tokens, len(tokens), params, CacheScope(12, "desk", f"{seq_id}", adapter))


def _answers(backend: LlamaBackend, *sequences: Sequence) -> dict[int, list[int]]:
    scheduler = Scheduler(backend)
    for seq in sequences:
        scheduler.submit(seq)
    while scheduler.has_work:
        scheduler.step()
    return {seq.seq_id: seq.token_ids[seq.num_prompt_tokens :] for seq in sequences}


def test_an_adapter_says_what_the_merged_model_says(home: Path, model_path: str) -> None:
    key = AdapterRegistry(home / "adapters").all()["a"]
    said = []
    for model, adapter in ((home / "base.gguf", key), (home / "merged.gguf", ""), (home / "base.gguf", "")):
        backend = _backend(model, home)
        said.append(_answers(backend, *[_ask(i, question, model_path, adapter) for i, question in enumerate(QUESTIONS)]))
        backend.close()
    with_adapter, merged, plain = said
    assert with_adapter == merged
    assert with_adapter != plain


def test_in_mixed_company_as_alone(backend: LlamaBackend, home: Path, model_path: str) -> None:
    keys = ["", *AdapterRegistry(home / "adapters").all().values()]
    asked = [(question, key) for question in QUESTIONS[:2] for key in keys]
    together = _answers(backend, *[_ask(i, question, model_path, key) for i, (question, key) in enumerate(asked)])
    alone = {i: _answers(backend, _ask(i + 100, question, model_path, key))[i + 100] for i, (question, key) in enumerate(asked)}
    assert together == alone
    assert len({tuple(answer) for answer in together.values()}) > 2


def test_no_kv_is_shared_across_adapters(backend: LlamaBackend, home: Path, model_path: str) -> None:
    key = AdapterRegistry(home / "adapters").all()["a"]
    asked = [_ask(i, QUESTIONS[0], model_path, adapter) for i, adapter in enumerate(("", key, key, ""))]
    for seq in asked:
        _answers(backend, seq)
    assert [seq.num_cached for seq in asked] == [0, 0, 12, 12]
    file = AdapterRegistry(home / "adapters").path(key)
    used, data = backend.cache_stats().num_used, file.read_bytes()
    file.unlink()
    _answers(backend, _ask(8, QUESTIONS[0], model_path, max_tokens=1))
    assert backend.cache_stats().num_used < used
    file.write_bytes(data)
    again = _ask(9, QUESTIONS[0], model_path, key)
    assert _answers(backend, again)[9] == asked[1].token_ids[asked[1].num_prompt_tokens :]
    assert again.num_cached == 0


def test_every_adapter_gets_its_turn(backend: LlamaBackend, home: Path, model_path: str) -> None:
    keys = ["", *AdapterRegistry(home / "adapters").all().values()]
    scheduler = Scheduler(backend)
    endless = dict.fromkeys(backend.spec.eos_token_ids, -100.0)
    asked = [_ask(i, QUESTIONS[0], model_path, key, max_tokens=200, logit_bias=endless) for i, key in enumerate(keys)]  # type: ignore[arg-type]
    for seq in asked:
        scheduler.submit(seq)
    for _ in range(90):
        scheduler.step()
    made = [seq.num_completion_tokens for seq in asked]
    assert max(made) - min(made) <= 6
    assert min(made) >= 20


def test_what_llama_cpp_cannot_load_is_refused_and_the_rest_goes_on(backend: LlamaBackend, home: Path, model_path: str) -> None:
    registry = AdapterRegistry(home / "adapters")
    before = _answers(backend, _ask(1, QUESTIONS[0], model_path))[1]
    whole = registry.path(registry.all()["a"]).read_bytes()
    bad = registry.folder / "bad"
    bad.mkdir(exist_ok=True)
    broken = (whole[:-200], b"GGUF" + whole[4:200], whole.replace(b"blk.0.attn_q", b"blk.0.attn_z"))
    cases = [(_keep(bad, data), "could not be loaded") for data in broken]
    (bad / f"{'0' * 12}.gguf").write_bytes(whole)
    cases += [(f"bad@{'0' * 12}", "broken"), (f"none@{'0' * 12}", "missing"), ("../a", "registry key")]
    for key, said in cases:
        with pytest.raises(AdapterRefused, match=said):
            backend.start(_ask(5, QUESTIONS[0], model_path, key))
        scheduler = Scheduler(backend)
        scheduler.submit(_ask(6, QUESTIONS[0], model_path, key))
        (event,) = scheduler.step()
        assert said in event.refusal
        assert not scheduler.has_work
    assert _answers(backend, _ask(2, QUESTIONS[0], model_path))[2] == before


def _keep(folder: Path, data: bytes) -> str:
    path = folder / f"{hashlib.sha256(data).hexdigest()[:12]}.gguf"
    path.write_bytes(data)
    return f"{folder.name}@{path.stem}"
