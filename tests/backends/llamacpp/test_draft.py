"""A second model that guesses changes nothing but the speed, follows the sequence with its own KV, and is given up where it does not pay.

As for prompt lookup every pass carries a guess, so that texts can be compared bit by bit; the engine called plain only carries wrong ones.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TypeVar, cast

import pytest

from backends.llamacpp.backend import LlamaBackend
from backends.llamacpp.draft import Draft
from backends.llamacpp.model import Decoded, Row
from backends.llamacpp.tokenizer import LlamaTokenizer
from backends.protocol import EngineOptions, ModelLoadError
from backends.registry import make_backend
from backends.scheduler import Scheduler
from backends.speculation import Gain
from bench.model import SHAPES, make_model
from tests.backends.llamacpp.test_speculation import LIST, PROMPTS, _Backend, _run, _sequence, assert_same, closed_early, continued

T = TypeVar("T")
Make = Callable[..., LlamaBackend]
SAMPLINGS = [{}, {"logit_bias": {}}, {"temperature": 0.7, "seed": 3}, {"temperature": 0.7, "top_p": 0.9, "seed": 4, "num_top_logprobs": 3}]


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory, model_path: str) -> str:
    """A random model that speaks the same tokens."""
    path = tmp_path_factory.mktemp("draft") / "stranger.gguf"
    make_model(SHAPES["tiny"], path, Path(model_path))
    return str(path)


@pytest.fixture
def make(model_path: str) -> Iterator[Make]:
    made: list[LlamaBackend] = []

    def make(draft: str, **options: object) -> LlamaBackend:
        known: dict[str, object] = {"max_sequences": 4, "num_kv_tokens": 4096, "threads": 1, "prompt_lookup": False}
        made.append(LlamaBackend(EngineOptions(model_path, "m", draft_model=draft, **{**known, **options})))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for backend in made:
        backend.close()


@pytest.fixture
def plain(model_path: str) -> Iterator[LlamaBackend]:
    backend = _Backend(model_path, is_wrong=True)
    yield backend
    backend.close()


@pytest.fixture(scope="module")
def told() -> dict[object, object]:
    """What plain decoding gave in each case: it is computed once and compared with every draft."""
    return {}


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guess whether it pays or not."""
    monkeypatch.setattr(Gain, "pays", lambda self: True)


def once(told: dict[object, object], case: object, work: Callable[[], T]) -> T:
    if case not in told:
        told[case] = work()
    return cast(T, told[case])


@pytest.fixture(params=["itself", "stranger", "itself and lookup", "stranger and lookup"])
def guessing(request: pytest.FixtureRequest, make: Make, model_path: str, stranger: str) -> LlamaBackend:
    return make(stranger if "stranger" in request.param else model_path, prompt_lookup="lookup" in request.param)


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_every_token_and_logprob_is_what_plain_decoding_gives(
    sampling: dict[str, object], plain: LlamaBackend, guessing: LlamaBackend, model_path: str, told: dict[object, object]
) -> None:
    for i, text in enumerate(PROMPTS):
        wanted = once(told, (i, str(sampling)), lambda i=i, text=text: _run(plain, _sequence(i, text, plain, model_path, **sampling)))
        assert_same(_run(guessing, _sequence(i, text, guessing, model_path, **sampling)), wanted)
    assert guessing.cache_stats().num_guessed > 0


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("max_tokens", [1, 2, 3, 5, 13])
def test_a_cut_by_length_leaves_kv_that_the_next_turn_can_build_on(
    max_tokens: int, plain: LlamaBackend, guessing: LlamaBackend, model_path: str, told: dict[object, object]
) -> None:
    wanted = once(told, ("cut", max_tokens), lambda: continued(plain, model_path, max_tokens))
    assert wanted == continued(guessing, model_path, max_tokens)


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("budget", [3, 7, 11])
def test_a_forced_close_in_the_middle_of_a_guess(
    budget: int, plain: LlamaBackend, guessing: LlamaBackend, model_path: str, told: dict[object, object]
) -> None:
    wanted = once(told, ("close", budget), lambda: closed_early(plain, model_path, budget))
    assert_same(closed_early(guessing, model_path, budget), wanted)


@pytest.mark.usefixtures("always")
def test_an_end_token_ends_the_answer_and_the_guess(plain: LlamaBackend, guessing: LlamaBackend, model_path: str) -> None:
    said = []
    for backend in (plain, guessing):
        (end,) = backend.spec.eos_token_ids[:1]
        seq = _sequence(1, LIST, backend, model_path, logit_bias={end: 25.0}, temperature=0.7, seed=5)
        said.append(_run(backend, seq))
        assert seq.num_completion_tokens < seq.sampling.max_tokens
    assert_same(*said)


@pytest.mark.usefixtures("always")
def test_a_draft_that_is_right_is_believed_and_reads_each_token_once(make: Make, model_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = make(model_path)
    rows = _spy(backend, monkeypatch)
    for i, text in enumerate(PROMPTS):
        before, rows[:] = backend.cache_stats(), []
        seq = _sequence(i, text, backend, model_path)
        _run(backend, seq)
        stats = backend.cache_stats()
        num_guessed, num_kept = stats.num_guessed - before.num_guessed, stats.num_kept - before.num_kept
        assert num_kept > 0.8 * num_guessed > 0.5 * seq.num_completion_tokens
        assert sum(rows) <= len(seq.token_ids) + num_guessed - num_kept


@pytest.mark.usefixtures("always")
def test_a_long_text_is_read_one_batch_a_pass(make: Make, model_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = make(model_path, batch_tokens=128)
    rows = _spy(backend, monkeypatch)
    seq = _sequence(1, LIST * 12, backend, model_path)
    scheduler = Scheduler(backend)
    scheduler.submit(seq)
    while scheduler.has_work:
        before = len(rows)
        scheduler.step()
        assert max(rows[before:], default=0) <= 128 and sum(rows[before:]) < 160
    assert seq.num_prompt_tokens > 200 and backend.cache_stats().num_kept > 0


@pytest.mark.usefixtures("always")
def test_two_at_once_are_not_guessed_for(make: Make, model_path: str) -> None:
    backend = make(model_path)
    scheduler = Scheduler(backend)
    sequences = [_sequence(i, text, backend, model_path) for i, text in enumerate(PROMPTS[:2])]
    for seq in sequences:
        scheduler.submit(seq)
    while all(seq in scheduler.running or not seq.num_completion_tokens for seq in sequences):
        assert backend.cache_stats().num_guessed == 0
        scheduler.step()
    while scheduler.has_work:
        scheduler.step()


def test_a_draft_that_is_never_right_is_given_up(make: Make, model_path: str, stranger: str) -> None:
    backend = make(stranger)
    seq = _sequence(1, LIST, backend, model_path, max_tokens=400, presence_penalty=1.0)
    _run(backend, seq)
    stats = backend.cache_stats()
    # Two tokens, the shortest guess, in every pass would be twice as many as those that are drawn.
    assert stats.num_guessed - stats.num_kept < seq.num_completion_tokens
    assert isinstance(backend._draft, Draft) and backend._draft.gain._saved_s <= 0


def test_another_vocabulary_is_refused_in_a_sentence(tmp_path: Path, model_path: str, mlx_path: str, stranger: str, make: Make) -> None:
    other = tmp_path / "other.gguf"
    other.write_bytes(Path(stranger).read_bytes().replace(b"<|im_start|>", b"<|im_begin|>", 1))
    with pytest.raises(ModelLoadError, match=r"its vocabulary differs at token \d+$"):
        make(str(other))
    with pytest.raises(ModelLoadError, match="for GGUF files only"):
        make_backend(EngineOptions(mlx_path, "m", draft_model=stranger))


@pytest.mark.usefixtures("always")
def test_unused_places_may_differ_and_are_never_a_guess(tmp_path: Path, model_path: str, make: Make, plain: LlamaBackend) -> None:
    num_tokens, larger = LlamaTokenizer(model_path).vocab_size, tmp_path / "larger.gguf"
    make_model(replace(SHAPES["tiny"], vocabulary=10 * num_tokens), larger, Path(model_path))
    guessing = make(str(larger))
    wanted = _run(plain, _sequence(1, LIST, plain, model_path))
    assert _run(guessing, _sequence(1, LIST, guessing, model_path)) == wanted
    padded = LlamaBackend(EngineOptions(str(larger), "m", num_kv_tokens=2048, threads=1, prompt_lookup=False, draft_model=model_path))
    _run(padded, _sequence(1, LIST, padded, model_path, logit_bias={num_tokens + 3: 100.0}))
    assert padded.cache_stats().num_guessed > 0
    padded.close()


def _spy(backend: LlamaBackend, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each of the draft's passes has."""
    assert backend._draft is not None
    rows: list[int] = []
    decode = backend._draft._model.decode

    def counted(batch: list[Row]) -> Decoded:
        rows.append(len(batch))
        return decode(batch)

    monkeypatch.setattr(backend._draft._model, "decode", counted)
    return rows
