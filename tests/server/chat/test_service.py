"""A job becomes a sequence; its tokens become text; the end is known."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.client import EngineClient
from backends.mini.shop import Language
from backends.protocol import EngineDied, EngineDown
from backends.sequence import FinishReason, SamplingParams
from backends.wire import TokenEvent
from server.chat.service import BRIDGES, ChatJob, ChatMessage, ChatResult, ChatService, CompletionJob, TextDelta
from server.effort import thinking_budget
from server.errors import InvalidRequest
from tests.server.fakes import SPEC, ByteTokenizer, ScriptedEngine, tokens

SAMPLING = SamplingParams(max_tokens=400)
ASK = (ChatMessage("system", "Be kind."), ChatMessage("user", "hi"))
JOB = ChatJob(ASK, SAMPLING)


def _play(script: list[list[TokenEvent]], job: ChatJob | CompletionJob = JOB) -> tuple[list[TextDelta], ChatResult]:
    async def play() -> tuple[list[TextDelta], ChatResult]:
        async with ChatService(ScriptedEngine(script), ByteTokenizer).open(job) as stream:
            return [delta async for delta in stream], stream.result

    return asyncio.run(play())


def _joined(deltas: list[TextDelta], channel: str) -> str:
    return "".join(delta.text for delta in deltas if delta.channel == channel)


def test_a_thought_then_an_answer() -> None:
    deltas, result = _play(tokens("hm\n</think>\n\nHé 😀"))
    assert (_joined(deltas, "reasoning"), _joined(deltas, "content")) == ("hm\n", "Hé 😀") == (result.reasoning, result.content)
    assert result.finish_reason == "stop"
    assert result.num_cached == 3
    assert result.num_reasoning_tokens == 4
    assert result.completion_token_ids[-1] == 258
    assert len(result.logprobs) == len(result.completion_token_ids)
    assert None not in (result.ttft_ms, result.first_answer_ms)
    assert (result.ttft_ms or 0) <= (result.first_answer_ms or 0) <= result.total_ms


@given(st.integers(1, 40), st.text("hé</think>\n 😀", max_size=30))
def test_batching_changes_the_number_of_deltas_and_never_the_text(per_batch: int, answer: str) -> None:
    script = tokens(f"hm</think>{answer}")
    whole, result = _play(tokens(f"hm</think>{answer}", per_batch=per_batch))
    single, by_one = _play(script)
    for channel in ("reasoning", "content"):
        assert _joined(whole, channel) == _joined(single, channel)
    assert (result.content, result.finish_reason) == (by_one.content, by_one.finish_reason)
    channels = [delta.channel for delta in whole]
    assert channels == sorted(channels, reverse=True)


def test_a_stop_string_ends_the_answer_and_not_the_thought() -> None:
    deltas, result = _play(tokens("END is near</think>\n\none EN two END three", finish=None), replace(JOB, stop=("END",)))
    assert result.reasoning == "END is near"
    assert _joined(deltas, "content") == result.content == "one EN two "
    assert result.finish_reason == "stop"
    assert bytes(result.completion_token_ids[-3:]) == b"END"


@pytest.mark.parametrize(
    ("reason", "told"), [(FinishReason.LENGTH, "length"), (FinishReason.REPETITION, "length"), (FinishReason.ABORT, "abort")]
)
def test_how_it_ended(reason: FinishReason, told: str) -> None:
    deltas, result = _play(tokens("hm</think>an EN", finish=reason), replace(JOB, stop=("END",)))
    assert (_joined(deltas, "content"), result.finish_reason) == ("an EN", told)


def test_the_limit_inside_a_thought_leaves_no_content() -> None:
    _, result = _play(tokens("hm hm", finish=FinishReason.LENGTH))
    assert (result.reasoning, result.content, result.finish_reason) == ("hm hm", "", "length")
    assert result.num_reasoning_tokens == len(result.completion_token_ids)


def test_half_a_character_at_the_end_is_not_shown() -> None:
    ids = ByteTokenizer().encode("</think>ok 😀", special=True)[:-1]
    script = [[TokenEvent(1, i, -0.1) for i in ids], [TokenEvent(1, -1, None, (), FinishReason.LENGTH)]]
    assert _play(script)[1].content == "ok "


@given(st.text("ab\n😀", max_size=12), st.booleans())
def test_logprob_entries_join_to_the_content(answer: str, stops: bool) -> None:
    script = tokens(f"hm</think>\n{answer}END and more" if stops else f"hm</think>\n{answer}")
    deltas, result = _play(script, replace(JOB, logprobs=True, stop=("END",)))
    entries = [entry for delta in deltas for entry in delta.logprobs]
    assert b"".join(entry.data for entry in entries).decode() == result.content
    assert all(entry.logprob <= 0 for entry in entries)


def test_a_forced_close_is_told_by_its_unsampled_tokens() -> None:
    said = tokens("hm</think>ok")
    assert not _play(said)[1].forced_close
    forced = [[TokenEvent(1, 260)] if batch[0].token_id == 260 else batch for batch in said]
    assert _play(forced)[1].forced_close


def test_a_text_completion_has_neither_thoughts_nor_template() -> None:
    engine = ScriptedEngine(tokens("\n<think>a</think>"))
    service = ChatService(engine, ByteTokenizer)

    async def play() -> str:
        async with service.open(CompletionJob("<|im_start|>x", SAMPLING)) as stream:
            return "".join([delta.text async for delta in stream])

    assert asyncio.run(play()) == "\n<think>a</think>"
    assert engine.prompts == [[257, ord("x")]]
    for prompt in ("", (999,), ()):
        with pytest.raises(InvalidRequest):
            service.open(CompletionJob(prompt, SAMPLING))


# -- what the engine is told -------------------------------------------------------------------------------------------


def _submitted(job: ChatJob, *, is_throttled: bool = False) -> ScriptedEngine:
    engine = ScriptedEngine()

    async def opened() -> None:
        chat = ChatService(engine, ByteTokenizer)
        chat.is_throttled = is_throttled
        await chat.open(job).aclose()

    asyncio.run(opened())
    return engine


def test_the_scope_covers_the_system_message_and_nothing_more() -> None:
    scope = _submitted(replace(JOB, scope_public="shop", scope_private="conv")).submitted[0].scope
    assert scope is not None
    assert (scope.public, scope.private) == ("shop", "conv")
    assert scope.public_len == len("s") + len("system\nBe kind.") + len("e\n") + len("s") + len("user\n")


def test_a_budget_goes_before_an_effort_and_no_effort_means_no_budget() -> None:
    def budget(job: ChatJob, *, is_throttled: bool = False) -> int | None:
        thinking = _submitted(job, is_throttled=is_throttled).submitted[0].thinking
        assert thinking is not None
        return thinking.budget

    assert budget(JOB) is None
    assert budget(replace(JOB, effort="low")) == 100
    assert budget(replace(JOB, effort="low", thinking_budget=7)) == 7
    assert budget(replace(JOB, effort="none")) == 0
    assert budget(replace(JOB, effort="low"), is_throttled=True) == thinking_budget("minimal", 400) < 100
    assert budget(replace(JOB, thinking_budget=200), is_throttled=True) == 200, "a number that was asked for is kept"


@pytest.mark.parametrize(("asked", "language"), [("How long do I have?", "en"), ("可以退货吗？", "zh")])
def test_a_forced_close_is_a_sentence_in_the_customers_language(asked: str, language: Language) -> None:
    job = replace(JOB, messages=(*ASK[:1], ChatMessage("user", asked)))
    thinking, tight = (_submitted(each).submitted[0].thinking for each in (job, replace(job, sampling=SamplingParams(max_tokens=99))))
    assert thinking is not None and tight is not None
    assert bytes(i for i in thinking.close_ids if i < 256).decode() == BRIDGES[language] + "\n\n\n"
    assert thinking.close_ids.count(260) == 1
    assert tight.close_ids == (10, 260, 10, 10)


def test_only_an_efforts_budget_may_shrink() -> None:
    def least(job: ChatJob) -> int | None:
        thinking = _submitted(job).submitted[0].thinking
        assert thinking is not None
        return thinking.least

    assert least(replace(JOB, effort="high")) == thinking_budget("minimal", 400) > 0
    assert least(replace(JOB, effort="none")) == 0
    assert least(replace(JOB, effort="high", thinking_budget=300)) is None
    assert least(JOB) is None


@pytest.mark.parametrize(
    "job", [replace(JOB, effort="none"), replace(JOB, thinking_budget=0), replace(JOB, effort="high", thinking_budget=0)]
)
def test_no_thinking_closes_the_thought_in_the_prompt(job: ChatJob) -> None:
    engine = _submitted(job)
    assert engine.prompts[0][-4:] == [10, 260, 10, 10]
    assert engine.submitted[0].thinking is not None
    assert engine.submitted[0].thinking.starts_open is False
    assert _play(tokens("\n\nYes"), job)[1].content == "Yes"


@given(st.integers(1, 100_000))
def test_more_effort_never_allows_less_thought_and_always_leaves_an_answer(max_tokens: int) -> None:
    budgets = [thinking_budget(effort, max_tokens) for effort in ("none", "minimal", "low", "medium", "high", "xhigh")]
    assert budgets == sorted(budgets)
    assert budgets[-1] < max_tokens


def test_max_tokens_zero_is_the_rest_of_the_context_and_too_many_are_refused() -> None:
    engine = _submitted(replace(JOB, sampling=SamplingParams(max_tokens=0)))
    assert engine.submitted[0].sampling.max_tokens == SPEC.context_length - len(engine.prompts[0])
    with pytest.raises(InvalidRequest, match="4096") as caught:
        _submitted(replace(JOB, sampling=SamplingParams(max_tokens=4090)))
    assert (caught.value.param, caught.value.code) == ("max_tokens", "context_length_exceeded")
    with pytest.raises(InvalidRequest, match="vocabulary"):
        _submitted(replace(JOB, sampling=SamplingParams(logit_bias={999: 1.0}, max_tokens=5)))


def test_warm_prefills_what_the_next_turn_begins_with() -> None:
    engine = ScriptedEngine()
    service = ChatService(engine, ByteTokenizer)
    service.warm((*ASK, ChatMessage("assistant", "Yes.")), "shop", "conv")
    service.warm(ASK[:1], "shop", "")
    following = service.template.render((*ASK, ChatMessage("assistant", "Yes."), ChatMessage("user", "more")), None).token_ids
    (conversation, scope), (persona, persona_scope) = engine.warmed
    assert following[: len(conversation)] == conversation
    assert following[: len(persona)] == persona
    assert scope.public_len == persona_scope.public_len == len(persona)


def test_a_model_without_thoughts_needs_no_warming_after_an_answer() -> None:
    engine = ScriptedEngine()
    service = ChatService(engine, lambda: ByteTokenizer("{% for m in messages %}{{ m.content }}|{% endfor %}", special_tags=False))
    service.warm((*ASK, ChatMessage("assistant", "Yes.")), "", "")
    assert engine.warmed == []
    service.warm(ASK[:1], "", "")
    assert len(engine.warmed) == 1


# -- ends --------------------------------------------------------------------------------------------------------------


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(2):
        while not condition():
            await asyncio.sleep(0)


@pytest.mark.anyio
async def test_every_way_out_aborts_once_and_reports_once() -> None:
    async def leave_block(service: ChatService) -> None:
        async with service.open(JOB):
            pass

    async def cancel_task(service: ChatService) -> None:
        async def consume() -> None:
            async with service.open(JOB) as stream:
                async for _ in stream:
                    pass

        task = asyncio.create_task(consume())
        await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.wait({task})

    async def stop(service: ChatService) -> None:
        async with service.open(JOB) as stream:
            stream.stop()
            assert [delta async for delta in stream] == []
            assert stream.result.finish_reason == "abort"

    ways: list[Callable[[ChatService], Awaitable[None]]] = [leave_block, cancel_task, stop]
    for way in ways:
        engine, results = ScriptedEngine(), list[ChatResult]()
        await way(ChatService(engine, ByteTokenizer, results.append))
        assert engine.open == []
        assert [tokens.num_aborts for tokens in engine.submitted] == [1]
        assert [result.finish_reason for result in results] == ["abort"]


@pytest.mark.anyio
async def test_what_was_said_before_the_engine_died_is_kept() -> None:
    engine, results = ScriptedEngine(), list[ChatResult]()
    stream = ChatService(engine, ByteTokenizer, results.append).open(JOB)
    for batch in tokens("hm</think>ab", finish=None):
        engine.submitted[0].push(*batch)
    engine.submitted[0].die()
    with pytest.raises(EngineDied):
        async with stream:
            async for _ in stream:
                pass
    assert [(result.content, result.finish_reason) for result in results] == [("ab", "error")]


@pytest.mark.anyio
async def test_an_interrupted_stream_raises_what_it_was_given() -> None:
    service = ChatService(ScriptedEngine(), ByteTokenizer)
    stream = service.open(JOB)
    service.interrupt_all(EngineDown("leaving"))
    with pytest.raises(EngineDown, match="leaving"):
        await anext(stream)
    assert stream.result.finish_reason == "error"


@pytest.mark.anyio
async def test_an_open_stream_is_found_by_its_owner_only() -> None:
    service = ChatService(ScriptedEngine(), ByteTokenizer)
    stream = service.open(replace(JOB, scope_public="mine"))
    assert service.find(stream.completion_id, "mine") == [stream]
    assert service.find(stream.completion_id, "theirs") == []
    await stream.aclose()
    assert service.find(stream.completion_id, "mine") == []


@pytest.mark.anyio
async def test_answer_now_closes_the_thought() -> None:
    engine = ScriptedEngine()
    async with ChatService(engine, ByteTokenizer).open(JOB) as stream:
        stream.answer_now()
        assert engine.submitted[0].num_closes == 1


def test_the_vocabulary_is_not_read_before_the_engine_has_loaded_the_model() -> None:
    def read() -> ByteTokenizer:
        raise AssertionError

    service = ChatService(EngineClient(), read)
    for job in (JOB, CompletionJob("x", SAMPLING)):
        with pytest.raises(EngineDown, match="loading"):
            service.open(job)


def test_a_known_model_is_sampled_as_its_card_asks() -> None:
    card = SamplingParams(temperature=0.7, top_k=20)
    assert ChatService(ScriptedEngine(), ByteTokenizer, sampling=card).default_sampling() is card
    assert ChatService(ScriptedEngine(), ByteTokenizer).default_sampling().top_k == 40
