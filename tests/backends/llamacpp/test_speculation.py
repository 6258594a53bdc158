"""Guessing ahead changes nothing but the speed: same tokens, same logprobs, same KV, wherever an answer is cut.

llama.cpp's CPU kernels round a pass of one row differently from all wider ones, so that near ties may fall the other way. To compare
bit by bit, every pass here carries at least one guess; the engine called plain only ever carries a wrong one.
"""

import re
from collections.abc import Iterator

import llama_cpp as lib
import pytest

from backends.constraint import Grammars
from backends.llamacpp.backend import LlamaBackend
from backends.llamacpp.tokenizer import LlamaTokenizer
from backends.protocol import EngineOptions
from backends.scheduler import Scheduler
from backends.sequence import CacheScope, SamplingParams, Sequence, Thinking
from backends.speculation import Gain, Lookup
from backends.wire import TokenEvent

LIST = "Order 1 is on its way. Order 2 is on its way. Order 3 is on its way. Order 4 is on its way. "
WRONG = 7
PROMPTS = (LIST * 2, "一二三四五六七八九十" * 6, "When do you open? " * 8)


class _Lookup(Lookup):
    """Guesses something in every pass."""

    is_wrong = False

    def guess(self, tokens: list[int], limit: int) -> list[int]:
        found = [] if self.is_wrong else super().guess(tokens, limit)
        return found or [WRONG][: max(0, limit)]


class _Backend(LlamaBackend):
    def __init__(self, model: str, *, is_wrong: bool, num_kv_tokens: int = 4096) -> None:
        super().__init__(EngineOptions(model, "m", max_sequences=4, num_kv_tokens=num_kv_tokens, threads=1))
        self.is_wrong = is_wrong

    def start(self, seq: Sequence) -> int:
        num_cached = super().start(seq)
        self._runs[seq.seq_id].lookup = lookup = _Lookup()
        lookup.is_wrong = self.is_wrong
        return num_cached


@pytest.fixture
def plain(model_path: str) -> Iterator[LlamaBackend]:
    backend = _Backend(model_path, is_wrong=True)
    yield backend
    backend.close()


@pytest.fixture
def guessing(model_path: str) -> Iterator[LlamaBackend]:
    backend = _Backend(model_path, is_wrong=False)
    yield backend
    backend.close()


@pytest.fixture(autouse=True)
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guess whether it pays or not."""
    monkeypatch.setattr(Gain, "pays", lambda self: True)


def _sequence(seq_id: int, text: str, backend: LlamaBackend, model: str, **sampling: object) -> Sequence:
    tokens = LlamaTokenizer(model).encode(text, special=True)
    endless = dict.fromkeys(backend.spec.eos_token_ids, -100.0)
    params = SamplingParams(**{"temperature": 0.0, "max_tokens": 90, "logit_bias": endless, **sampling})  # type: ignore[arg-type]
    return Sequence(seq_id, tokens, len(tokens), params, CacheScope(private=f"{seq_id} {text}"))


def _run(backend: LlamaBackend, *sequences: Sequence) -> dict[int, list[TokenEvent]]:
    scheduler, events = Scheduler(backend), dict[int, list[TokenEvent]]()
    for seq in sequences:
        scheduler.submit(seq)
    while scheduler.has_work:
        for event in scheduler.step():
            events.setdefault(event.seq_id, []).append(event)
    _check(backend)
    return events


def _check(backend: LlamaBackend) -> None:
    """The ledger and llama.cpp agree on how far every sequence id's KV reaches."""
    memory = lib.llama_get_memory(backend._model._context)
    for handle in backend._entries:
        assert lib.llama_memory_seq_pos_max(memory, handle) == len(backend._cells._rows[handle]) - 1
    assert backend._cells.num_pinned == 0


@pytest.mark.parametrize(
    "sampling",
    [
        {},
        {"logit_bias": {}},
        {"temperature": 0.7, "top_k": 40, "top_p": 0.95, "seed": 3},
        {"temperature": 1.2, "seed": 4, "num_top_logprobs": 3},
        {"temperature": 0.5, "seed": 5, "repetition_penalty": 1.1, "presence_penalty": 0.3, "frequency_penalty": 0.1},
        {"temperature": 0.0, "presence_penalty": 0.2, "num_top_logprobs": 5},
    ],
)
def test_every_token_and_logprob_is_what_plain_decoding_gives(
    sampling: dict[str, object], plain: LlamaBackend, guessing: LlamaBackend, model_path: str
) -> None:
    before = guessing.cache_stats()
    for i, text in enumerate(PROMPTS):
        wanted = _run(plain, _sequence(i, text, plain, model_path, **sampling))
        assert_same(_run(guessing, _sequence(i, text, guessing, model_path, **sampling)), wanted)
    assert guessing.cache_stats().num_guessed > before.num_guessed


def test_a_grammar_is_followed_all_the_same_when_guesses_come_true(plain: LlamaBackend, guessing: LlamaBackend, model_path: str) -> None:
    grammars, before = Grammars(lambda: LlamaTokenizer(model_path)), guessing.cache_stats()

    def formed(backend: LlamaBackend) -> Sequence:
        seq = _sequence(1, LIST * 2, backend, model_path, temperature=0.8, seed=2)
        seq.constraint = grammars.constrain('start: ("Order " /[1-4]/ " is on its way. ")~6')
        return seq

    wanted = _run(plain, formed(plain))
    assert_same(_run(guessing, formed(guessing)), wanted)
    tokens = [event.token_id for event in wanted[1] if event.token_id >= 0]
    text = b"".join(map(LlamaTokenizer(model_path).token_bytes, tokens)).decode()
    assert re.fullmatch("(Order [1-4] is on its way. ){6}", text)
    after = guessing.cache_stats()
    assert after.num_kept - before.num_kept > 10


def test_guesses_come_true_and_two_sequences_guess_together(plain: LlamaBackend, guessing: LlamaBackend, model_path: str) -> None:
    before = guessing.cache_stats()
    asked = [[_sequence(i, text, each, model_path, num_top_logprobs=5) for i, text in enumerate(PROMPTS[:2])] for each in (plain, guessing)]
    assert_same_but_for_ties(_run(guessing, *asked[1]), _run(plain, *asked[0]))
    after = guessing.cache_stats()
    assert after.num_kept - before.num_kept > 20


@pytest.mark.parametrize("max_tokens", [1, 2, 3, 5, 8, 13, 21])
def test_a_cut_by_length_leaves_kv_that_the_next_turn_can_build_on(
    max_tokens: int, plain: LlamaBackend, guessing: LlamaBackend, model_path: str
) -> None:
    assert continued(plain, model_path, max_tokens) == continued(guessing, model_path, max_tokens)


@pytest.mark.parametrize("budget", [3, 6, 7, 11, 30])
def test_a_forced_close_in_the_middle_of_a_guess(budget: int, plain: LlamaBackend, guessing: LlamaBackend, model_path: str) -> None:
    assert_same(closed_early(guessing, model_path, budget), closed_early(plain, model_path, budget))


def test_an_end_token_inside_a_guess_ends_it_there(plain: LlamaBackend, guessing: LlamaBackend, model_path: str) -> None:
    (end,) = guessing.spec.eos_token_ids[:1]
    words = LlamaTokenizer(model_path).encode("a b c d ", special=False)
    said = []
    for backend in (plain, guessing):
        seq = _sequence(1, "", backend, model_path, logit_bias={}, temperature=1.0, seed=2)
        seq.token_ids = [*words, end] * 12 + words[:-1]
        seq.num_prompt_tokens = len(seq.token_ids)
        said.append(_run(backend, seq))
    assert_same(*said)


def test_an_engine_without_room_preempts_and_says_the_same(model_path: str, plain: LlamaBackend) -> None:
    tight = _Backend(model_path, is_wrong=False, num_kv_tokens=256)
    wide, narrow = (
        _run(each, *[_sequence(i, PROMPTS[i], each, model_path, max_tokens=80, num_top_logprobs=5) for i in range(2)])
        for each in (plain, tight)
    )
    assert_same_but_for_ties(narrow, wide)
    tight.close()


def _tokens(events: dict[int, list[TokenEvent]]) -> dict[int, list[int]]:
    return {seq_id: [event.token_id for event in of_one if event.token_id >= 0] for seq_id, of_one in events.items()}


def assert_same(got: dict[int, list[TokenEvent]], wanted: dict[int, list[TokenEvent]]) -> None:
    """The same tokens; log probabilities up to what a pass of another width rounds away."""
    assert _tokens(got) == _tokens(wanted)
    for seq_id, events in wanted.items():
        wanted_logprobs = [event.logprob for event in events if event.logprob is not None]
        assert [event.logprob for event in got[seq_id] if event.logprob is not None] == pytest.approx(wanted_logprobs, abs=0.2)


def assert_same_but_for_ties(got: dict[int, list[TokenEvent]], wanted: dict[int, list[TokenEvent]]) -> None:
    """The same tokens, up to a place where two were as good as equally likely.

    Where sequences share a cache, their cells lie elsewhere when passes differ, and sums over them round differently.
    """
    assert got.keys() == wanted.keys()
    for seq_id, events in wanted.items():
        pairs = zip((e for e in got[seq_id] if e.token_id >= 0), (e for e in events if e.token_id >= 0), strict=False)
        parted = next(((one, other) for one, other in pairs if one.token_id != other.token_id), None)
        if parted is None:
            assert len(got[seq_id]) == len(events)
        else:
            one, other = parted
            assert dict(other.top_logprobs)[one.token_id] == pytest.approx(dict(other.top_logprobs)[other.token_id], abs=0.2)


def continued(backend: LlamaBackend, model_path: str, max_tokens: int) -> list[int]:
    """All tokens of a turn that goes on after an answer which its length cut; its KV must all be there."""
    first = _sequence(1, LIST, backend, model_path, max_tokens=max_tokens)
    _run(backend, first)
    assert first.num_completion_tokens == max_tokens
    again = _sequence(2, "", backend, model_path)
    again.token_ids = [*first.token_ids, 9, 10]
    again.num_prompt_tokens, again.scope = len(again.token_ids), first.scope
    _run(backend, again)
    assert again.num_cached == len(first.token_ids) - 1
    return again.token_ids


def closed_early(backend: LlamaBackend, model_path: str, budget: int) -> dict[int, list[TokenEvent]]:
    """An answer whose thought is closed by force after `budget` tokens."""
    seq = _sequence(1, LIST, backend, model_path, temperature=0.8, seed=9)
    seq.thinking = Thinking(open_id=1, close_id=61, close_ids=(60, 61, 62), starts_open=True, budget=budget)
    seq.in_thought = True
    events = _run(backend, seq)
    assert seq.num_thought == budget
    return events
