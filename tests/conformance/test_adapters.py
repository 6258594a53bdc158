"""Adapters in a running model: they say what merged weights would say, whoever else is computed beside them."""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from backends.adapter import AdapterRegistry
from backends.gguf_file import write_file
from backends.protocol import AdapterRefused, Backend
from backends.registry import make_tokenizer
from backends.scheduler import Scheduler
from backends.sequence import CacheScope, SamplingParams, Sequence
from tests.backends.lora import ALPHA, RANK, random_matrices, write_mlx, write_peft
from tests.conformance.conftest import MakeBackend
from tests.conformance.desk import PUBLIC, answer, desk
from tests.exact import write_floats

# Strong enough to change every answer within its few tokens.
STRENGTH = 0.12
QUESTIONS = ("When do you open?", "Where is my order?", "你们几点开门？")


@pytest.fixture
def home(tmp_path: Path, engine_path: str) -> Path:
    """A data folder with adapters `a` and `b`."""
    registry = AdapterRegistry(tmp_path / "adapters")
    registry.add("a", write_peft(tmp_path / "p", random_matrices(1, STRENGTH)), Path(engine_path))
    registry.add("b", write_mlx(tmp_path / "m", random_matrices(2, STRENGTH)), Path(engine_path))
    return tmp_path


@pytest.fixture
def backend(make: MakeBackend, home: Path) -> Backend:
    return make(data_dir=str(home))


@pytest.fixture
def keys(home: Path) -> list[str]:
    """None, `a` and `b`."""
    return ["", *AdapterRegistry(home / "adapters").all().values()]


class Ask:
    """Makes questions to the desk, each in a conversation of its own."""

    def __init__(self, path: str) -> None:
        self._tokenizer = make_tokenizer(path)

    def __call__(self, seq_id: int, question: str, adapter: str = "", **sampling: object) -> Sequence:
        prompt = (
            "<|im_start|>system\nYou help the customers of a shop.<|im_end|>\n"
            f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
        )
        tokens = self._tokenizer.encode(prompt, special=True)
        params = SamplingParams(**{"temperature": 0.0, "max_tokens": 12, **sampling})  # type: ignore[arg-type]
        return Sequence(seq_id, tokens, len(tokens), params, CacheScope(12, "desk", f"{seq_id}", adapter))


@pytest.fixture
def ask(engine_path: str) -> Ask:
    return Ask(engine_path)


def test_an_adapter_says_what_the_merged_model_says(make: MakeBackend, ask: Ask, home: Path, keys: list[str], engine_path: str) -> None:
    deltas = {name: ALPHA / RANK * (b @ a) for name, (a, b) in random_matrices(1, STRENGTH).items()}
    merged = write_floats(home / "merged", engine_path, deltas)
    said = []
    for path, adapter in ((engine_path, keys[1]), (merged, ""), (engine_path, "")):
        backend = make(path=str(path), data_dir=str(home))
        said.append(answer(backend, *[ask(i, question, adapter) for i, question in enumerate(QUESTIONS)]))
    assert said[0] == said[1]
    assert all(said[0][i] != said[2][i] for i in range(len(QUESTIONS)))


def test_in_mixed_company_as_alone_and_nothing_of_it_stays(backend: Backend, make: MakeBackend, ask: Ask, keys: list[str]) -> None:
    asked = [(question, key) for question in QUESTIONS[:2] for key in keys]
    together = answer(backend, *[ask(i, question, key) for i, (question, key) in enumerate(asked)])
    fresh = make(data_dir="")
    for i, (question, key) in enumerate(asked):
        assert answer(backend, ask(i + 100, question, key))[i + 100] == together[i]
        if not key:
            assert answer(fresh, ask(i, question))[i] == together[i]
    assert len({tuple(tokens) for tokens in together.values()}) > 4


def test_no_kv_is_shared_across_adapters(backend: Backend, ask: Ask, home: Path, keys: list[str]) -> None:
    key = keys[1]
    asked = [ask(i, QUESTIONS[0], adapter) for i, adapter in enumerate(("", key, key, ""))]
    said = [answer(backend, seq)[seq.seq_id] for seq in asked]
    assert [seq.num_cached for seq in asked] == [0, 0, 12, 12]
    file = AdapterRegistry(home / "adapters").path(key)
    used, data = backend.cache_stats().num_used, file.read_bytes()
    file.unlink()
    answer(backend, ask(8, QUESTIONS[0], max_tokens=1))
    assert backend.cache_stats().num_used < used
    with pytest.raises(AdapterRefused, match="missing"):
        backend.start(ask(10, QUESTIONS[0], key))
    file.write_bytes(data)
    again = ask(9, QUESTIONS[0], key)
    assert answer(backend, again)[9] == said[1]
    assert again.num_cached == 0


def test_those_that_run_wait_for_and_share_only_what_the_same_adapter_computes(backend: Backend, keys: list[str]) -> None:
    asked = [desk(i, [250]) for i in range(4)]
    for seq, key in zip(asked, (keys[1], keys[1], keys[2], ""), strict=True):
        seq.scope = replace(seq.scope, adapter=key)
    answer(backend, *asked)
    assert [seq.num_cached for seq in asked] == [0, len(PUBLIC), 0, 0]


def test_every_adapter_gets_its_turn(backend: Backend, ask: Ask, keys: list[str]) -> None:
    scheduler = Scheduler(backend)
    endless = dict.fromkeys(backend.spec.eos_token_ids, -100.0)
    asked = [ask(i, QUESTIONS[0], key, max_tokens=200, logit_bias=endless) for i, key in enumerate(keys)]
    for seq in asked:
        scheduler.submit(seq)
    for _ in range(48):
        scheduler.step()
    made = [seq.num_completion_tokens for seq in asked]
    assert max(made) - min(made) <= 6
    assert min(made) >= 10


def test_one_that_comes_while_another_answers_is_loaded_between_passes(backend: Backend, ask: Ask, keys: list[str]) -> None:
    alone = {i: answer(backend, ask(10 + i, QUESTIONS[0], key))[10 + i] for i, key in enumerate(keys[1:])}
    scheduler = Scheduler(backend)
    asked = [ask(i, QUESTIONS[0], key) for i, key in enumerate(keys[1:])]
    for seq in asked:
        scheduler.submit(seq)
        for _ in range(4):
            scheduler.step()
    while scheduler.has_work:
        scheduler.step()
    assert {seq.seq_id: seq.token_ids[seq.num_prompt_tokens :] for seq in asked} == alone


def test_what_cannot_be_loaded_is_refused_and_the_rest_goes_on(backend: Backend, ask: Ask, home: Path, keys: list[str]) -> None:
    registry = AdapterRegistry(home / "adapters")
    before = answer(backend, ask(1, QUESTIONS[0]))[1]
    whole = registry.path(keys[1]).read_bytes()
    bad = registry.folder / "bad"
    bad.mkdir()
    broken = (whole[:-200], b"GGUF" + whole[4:200], whole.replace(b"blk.0.attn_q", b"blk.0.attn_z"), _too_narrow(home / "narrow"))
    cases = [(_keep(bad, data), "could not be loaded") for data in broken]
    (bad / f"{'0' * 12}.gguf").write_bytes(whole)
    cases += [(f"bad@{'0' * 12}", "broken"), (f"none@{'0' * 12}", "missing"), ("../a", "registry key")]
    for key, said in cases:
        with pytest.raises(AdapterRefused, match=said):
            backend.start(ask(5, QUESTIONS[0], key))
        scheduler = Scheduler(backend)
        scheduler.submit(ask(6, QUESTIONS[0], key))
        (event,) = scheduler.step()
        assert said in event.refusal
        assert not scheduler.has_work
    assert answer(backend, ask(2, QUESTIONS[0]))[2] == before


def _too_narrow(path: Path) -> bytes:
    """The file of an adapter for a model of another width."""
    a, b = np.ones((RANK, 64), np.float32), np.ones((64, RANK), np.float32)
    fields = {"general.type": "adapter", "general.architecture": "qwen2", "adapter.type": "lora", "adapter.lora.alpha": ALPHA}
    write_file(path, fields, {"blk.0.attn_q.weight.lora_a": a, "blk.0.attn_q.weight.lora_b": b})
    return path.read_bytes()


def _keep(folder: Path, data: bytes) -> str:
    path = folder / f"{hashlib.sha256(data).hexdigest()[:12]}.gguf"
    path.write_bytes(data)
    return f"{folder.name}@{path.stem}"
