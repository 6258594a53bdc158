"""What is answered: the same alone and in company, cold and warm, and as the sampling parameters say."""

import re
from collections.abc import Callable
from dataclasses import replace

import pytest

from backends.constraint import Grammars
from backends.protocol import Backend
from backends.registry import make_backend, make_tokenizer
from backends.scheduler import Scheduler
from backends.sequence import CacheScope, FinishReason, SamplingParams, Sequence, Thinking
from tests.conformance.conftest import MakeBackend
from tests.conformance.desk import GREEDY, OPTIONS, PUBLIC, answer, desk, endless, run


def test_both_engines_compute_the_same_model(model_path: str, mlx_path: str) -> None:
    pytest.importorskip("mlx_lm")
    scored = []
    for path in (model_path, mlx_path):
        prompt = make_tokenizer(path).encode("<|im_start|>user\nWhere is my order?<|im_end|>\n<|im_start|>assistant\n", special=True)
        params = SamplingParams(temperature=0.0, max_tokens=1, num_top_logprobs=3)
        seq = Sequence(1, prompt, len(prompt), params, CacheScope(private="a"))
        events = run(Scheduler(make_backend(replace(OPTIONS, path=path))), [seq])[1]
        scored.append(next(event.top_logprobs for event in events if event.token_id >= 0))
    assert dict(scored[0]) == pytest.approx(dict(scored[1]), abs=0.02)


def test_in_company_as_alone(backend: Backend) -> None:
    questions = {i: [200 + 7 * i, 210 + i, 220 - i] * (1 + i % 3) for i in range(6)}
    together = answer(backend, *[desk(i, q) for i, q in questions.items()])
    alone = {i: answer(backend, desk(i + 100, q))[i + 100] for i, q in questions.items()}
    assert together == alone


def test_cold_as_warm_and_greedy_repeats_itself(make: MakeBackend) -> None:
    question = [250, 251, 252]
    backend = make()
    cold = answer(backend, desk(1, question, private="ann"))[1]
    again = desk(2, question, private="ann")
    assert answer(backend, again)[2] == cold
    assert again.num_cached == len(PUBLIC) + 2
    assert answer(make(), desk(3, question))[3] == cold


def test_prefilled_in_chunks_as_in_one(make: MakeBackend) -> None:
    prompt = Sequence(1, [5 + i % 200 for i in range(170)], 170, GREEDY, CacheScope(private="a"))
    again = Sequence(2, list(prompt.token_ids), 170, GREEDY, CacheScope(private="b"))
    assert answer(make(batch_tokens=80), prompt)[1] == answer(make(), again)[2]


def test_a_seed_gives_the_same_text_whatever_else_runs(backend: Backend) -> None:
    def drawn(seq_id: int, seed: int) -> Sequence:
        return desk(seq_id, [250, 251], SamplingParams(temperature=3.0, top_k=40, seed=seed, max_tokens=12))

    alone = answer(backend, drawn(1, seed=5))[1]
    company = [desk(10 + i, [260 + i]) for i in range(4)]
    assert answer(backend, drawn(2, seed=5), *company)[2] == alone
    assert answer(backend, drawn(3, seed=6))[3] != alone


def test_logprobs_are_of_the_unmodified_distribution_and_sorted(backend: Backend) -> None:
    greedy = SamplingParams(temperature=0.0, max_tokens=6, num_top_logprobs=5, repetition_penalty=1.3)
    biased = SamplingParams(temperature=0.7, top_k=2, max_tokens=6, num_top_logprobs=5, logit_bias={77: 100.0})
    events = run(Scheduler(backend), [desk(1, [250], greedy), desk(2, [250], biased)])
    for event in (e for each in events.values() for e in each if e.token_id >= 0):
        values = [logprob for _, logprob in event.top_logprobs]
        assert len(values) == 5
        assert values == sorted(values, reverse=True)
        assert event.logprob is not None
        assert event.logprob <= 0
        assert dict(event.top_logprobs).get(event.token_id, event.logprob) == pytest.approx(event.logprob)
    first, forced = (next(e for e in events[i] if e.token_id >= 0) for i in (1, 2))
    assert dict(first.top_logprobs) == pytest.approx(dict(forced.top_logprobs), abs=1e-3), "bias and penalties change no report"
    assert first.top_logprobs[0][0] == first.token_id != forced.token_id == 77


def test_logit_bias_forbids_and_forces(backend: Backend) -> None:
    plain = answer(backend, desk(1, [250]))[1]
    forbidden = answer(backend, desk(2, [250], SamplingParams(temperature=0.0, max_tokens=10, logit_bias={plain[0]: -100.0})))[2]
    forced = answer(backend, desk(3, [250], SamplingParams(temperature=0.0, max_tokens=4, logit_bias={77: 100.0})))[3]
    assert plain[0] not in forbidden
    assert forced == [77] * 4


def test_penalties_keep_a_forced_loop_from_repeating(backend: Backend) -> None:
    bias = dict.fromkeys(range(70, 110), 60.0) | {77: 80.0}
    for i, penalty in enumerate(({"presence_penalty": 40.0}, {"frequency_penalty": 40.0}, {"repetition_penalty": 3.0})):
        looped = desk(2 * i, [250], SamplingParams(temperature=0.0, max_tokens=4, logit_bias=bias))
        penalized = desk(2 * i + 1, [250], SamplingParams(temperature=0.0, max_tokens=4, logit_bias=bias, **penalty))
        answers = answer(backend, looped, penalized)
        assert answers[2 * i] == [77] * 4
        assert answers[2 * i + 1][0] == 77
        assert len(set(answers[2 * i + 1])) == 4, penalty


def test_a_forced_close_is_computed_like_any_other_token(backend: Backend) -> None:
    close = (60, 61, 62)
    sampling = endless(backend, 14)
    seq = desk(1, [250], sampling)
    seq.thinking = Thinking(open_id=1, close_id=61, close_ids=close, starts_open=True, budget=4)
    seq.in_thought = True
    tokens = answer(backend, seq)[1]
    assert tuple(tokens[4:7]) == close
    given = Sequence(2, seq.token_ids[: len(PUBLIC) + 1 + 7], 0, sampling, CacheScope(private="other"))
    given.num_prompt_tokens = len(given.token_ids)
    assert answer(backend, given)[2][:5] == tokens[7:12], "the answer continues from the close as if it had been prompted"


def test_when_room_runs_out_the_answers_are_still_the_same(make: MakeBackend) -> None:
    def drawn(seq_id: int) -> Sequence:
        bias = dict.fromkeys(roomy.spec.eos_token_ids, -100.0)
        return desk(seq_id, [300 + seq_id] * 60, SamplingParams(temperature=0.8, top_k=40, seed=seq_id, max_tokens=46, logit_bias=bias))

    # Without guesses both grow in step, so the room ends under both.
    roomy, tight = (make(max_sequences=2, num_kv_tokens=cells, prompt_lookup=False) for cells in (4096, 256))
    scheduler = Scheduler(tight)
    events = run(scheduler, [drawn(1), drawn(2)])
    assert scheduler.totals.preemptions > 0
    assert tight.cache_stats().num_used <= 256
    assert {i: [e.token_id for e in each if e.token_id >= 0] for i, each in events.items()} == answer(roomy, drawn(1), drawn(2))


# -- answers that follow a grammar -------------------------------------------------------------------------------------

FORM = """start: LEAD? "<ticket>" %json {"type": "object", "properties": {"n": {"type": "integer", "maximum": 99999, "minimum": 10000},
"mood": {"enum": ["calm", "angry"]}}, "required": ["n", "mood"], "additionalProperties": false,
"x-guidance": {"whitespace_flexible": false}}
LEAD: /\\n{1,2}/"""
FORMED = re.compile(r'\n{0,2}<ticket>\{"n":[0-9]{5},"mood":"(calm|angry)"\}')


@pytest.fixture(scope="module")
def grammars() -> dict[str, Grammars]:
    return {}


@pytest.fixture
def formed(grammars: dict[str, Grammars], engine_path: str) -> Callable[[Sequence], Sequence]:
    mine = grammars.setdefault(engine_path, Grammars(lambda: make_tokenizer(engine_path)))

    def form(seq: Sequence) -> Sequence:
        seq.constraint = mine.constrain(FORM)
        return seq

    return form


def _text(engine_path: str, tokens: list[int]) -> str:
    tokenizer = make_tokenizer(engine_path)
    return b"".join(map(tokenizer.token_bytes, tokens)).decode("utf-8", "replace")


Form = Callable[[Sequence], Sequence]


def test_a_grammar_holds_at_any_temperature_beside_free_answers_and_ends_by_itself(
    backend: Backend, formed: Form, engine_path: str
) -> None:
    hot = [formed(desk(i, [250 + i], SamplingParams(temperature=2.0, seed=i, max_tokens=60))) for i in range(3)]
    free = answer(backend, desk(9, [250]))[9]
    events = run(Scheduler(backend), [*hot, desk(4, [250])])
    for seq_id in range(3):
        assert FORMED.fullmatch(_text(engine_path, [event.token_id for event in events[seq_id] if event.token_id >= 0]))
        assert events[seq_id][-1].finish_reason is FinishReason.STOP
        assert all((event.logprob or 0) <= 0 for event in events[seq_id])
    assert [event.token_id for event in events[4] if event.token_id >= 0] == free


def test_a_thought_is_free_and_the_answer_after_it_is_not(backend: Backend, formed: Form, engine_path: str) -> None:
    tokenizer = make_tokenizer(engine_path)
    close = tuple(tokenizer.encode("\nEnough.\n</think>\n\n", special=True))
    seq = formed(desk(1, [250], SamplingParams(temperature=1.0, seed=3, max_tokens=80)))
    seq.thinking = Thinking(tokenizer.special_id("<think>") or 0, tokenizer.special_id("</think>") or 0, close, True, budget=5)
    seq.in_thought = True
    text = _text(engine_path, answer(backend, seq)[1])
    thought, tag, said = text.partition("</think>")
    assert tag and not FORMED.search(thought)
    assert FORMED.fullmatch(said.removeprefix("\n\n"))


def test_a_model_may_open_its_thought_first(backend: Backend, formed: Form, engine_path: str) -> None:
    tokenizer = make_tokenizer(engine_path)
    open_id, close_id = (tokenizer.special_id(tag) or 0 for tag in ("<think>", "</think>"))
    wants = SamplingParams(temperature=1.0, seed=3, max_tokens=80, logit_bias={open_id: 100.0})
    seq = formed(desk(1, [250], wants))
    seq.thinking = Thinking(open_id, close_id, (close_id,), False, budget=4)
    tokens = answer(backend, seq)[1]
    assert tokens[0] == open_id and tokens.count(close_id) == 1
    assert FORMED.fullmatch(_text(engine_path, tokens[tokens.index(close_id) + 1 :]))


def test_a_grammar_survives_giving_way(make: MakeBackend, formed: Form, engine_path: str) -> None:
    tight, params = make(max_sequences=2, num_kv_tokens=256), SamplingParams(temperature=2.0, seed=1, max_tokens=60)
    scheduler = Scheduler(tight)
    filler = Sequence(1, [5 + i % 100 for i in range(112)], 112, endless(tight, 80), CacheScope(private="a"))
    seq = formed(Sequence(2, [7 + i % 100 for i in range(112)], 112, params, CacheScope(private="b")))
    events = run(scheduler, [filler, seq])
    assert FORMED.fullmatch(_text(engine_path, [event.token_id for event in events[2] if event.token_id >= 0]))
    assert seq.num_preempted > 0
