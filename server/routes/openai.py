"""`/v1`: the OpenAI API, for clients that hold a key."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Annotated

import msgspec
from fastapi import APIRouter, Depends, Request, Response

from backends.protocol import EmptyAnswer, EngineError, ModelSpec
from server.auth import KeyRing, require_key
from server.body import body
from server.chat.choices import Choices
from server.chat.service import ChatJob, ChatMessage, ChatService, ChatStream, CompletionJob, TextDelta, TokenLogprob
from server.embedder import Embedder
from server.errors import NotFound, error_object
from server.limits import InFlight
from server.routes.jobs import adapter_named, chat_job, completion_job, name_ignored
from server.schema import completions as wire
from server.schema.openai import ChatCompletionRequest, CompletionRequest, ControlRequest
from server.settings import ServerSettings
from server.sse import CLIENT_CLOSED_REQUEST, EventStream, HungUp, sse_data, until_hang_up

# A cancelled answer ends as at a stop string: clients know no other word for it.
FINISH = {"stop": "stop", "length": "length", "tool_calls": "tool_calls", "abort": "stop"}

Asked = ChatCompletionRequest | CompletionRequest
Job = ChatJob | CompletionJob
ChatBody = Annotated[ChatCompletionRequest, Depends(body(ChatCompletionRequest))]
ControlBody = Annotated[ControlRequest, Depends(body(ControlRequest))]
CompletionBody = Annotated[CompletionRequest, Depends(body(CompletionRequest))]


def openai_router(chat: ChatService, ring: KeyRing, settings: ServerSettings, embedder: Embedder | None = None) -> APIRouter:
    """`POST /v1/chat/completions` (and its cancel), `POST /v1/completions`, `GET /v1/models`."""
    router = APIRouter(prefix="/v1", tags=["key"])
    answers = _Answers(chat, InFlight(settings.max_in_flight), is_strict=settings.strict)
    key = Depends(require_key(ring))
    started_at = int(time.time())

    @router.post("/chat/completions")
    async def create_chat_completion(http: Request, key_id: Annotated[str, key], asked: ChatBody) -> Response:
        return await answers.respond(http, asked, lambda adapter: chat_job(asked, key_id, chat, adapter), key_id)

    @router.post("/chat/completions/{completion_id}/cancel")
    async def cancel_chat_completion(key_id: Annotated[str, key], completion_id: str) -> Response:
        for stream in _find(chat, completion_id, key_id):
            stream.stop()
        return _json({"id": completion_id, "cancelled": True})

    @router.post("/chat/completions/{completion_id}/control")
    async def control_chat_completion(key_id: Annotated[str, key], completion_id: str, asked: ControlBody) -> Response:
        for stream in _find(chat, completion_id, key_id):
            stream.answer_now()
        return _json({"id": completion_id, "action": asked.action})

    @router.post("/completions")
    async def create_completion(http: Request, key_id: Annotated[str, key], asked: CompletionBody) -> Response:
        return await answers.respond(http, asked, lambda adapter: completion_job(asked, key_id, chat, adapter), key_id)

    @router.get("/models")
    async def list_models(key_id: Annotated[str, key]) -> Response:
        names = [chat.spec.name, *(f"{chat.spec.name}:{name}" for name in chat.adapters.all())]
        chatting = [wire.Model(name, started_at, chat.spec.context_length) for name in names]
        return _json(wire.ModelList(chatting + _embedding_models(embedder, started_at)))

    @router.get("/models/{name:path}")
    async def retrieve_model(key_id: Annotated[str, key], name: str) -> Response:
        found = {model.id: model for model in _embedding_models(embedder, started_at) if model.id != chat.spec.name}
        adapter_named(chat.spec.name if name in found else name, chat)
        return _json(found.get(name, wire.Model(name, started_at, chat.spec.context_length)))

    return router


def _embedding_models(embedder: Embedder | None, created: int) -> list[wire.Model]:
    """The embedding model, once it is loaded."""
    is_loaded = embedder is not None and embedder.client.is_ready
    return [wire.Model(embedder.name, created, embedder.client.spec.context_length)] if embedder and is_loaded else []


class _Answers:
    """Runs jobs and writes their answers, whole or in chunks."""

    def __init__(self, chat: ChatService, in_flight: InFlight, *, is_strict: bool) -> None:
        self._chat = chat
        self._in_flight = in_flight
        self._is_strict = is_strict

    async def respond(self, http: Request, asked: Asked, make: Callable[[str], Job], key_id: str) -> Response:
        adapter = adapter_named(asked.model, self._chat)
        headers, job = name_ignored(asked.ignored_fields, asked.unknown_fields if self._is_strict else ()), make(adapter)
        if asked.stream:
            return EventStream(self._chunks(job, asked.n or 1, key_id, counts_usage=asked.wants_usage), headers=headers)
        try:
            return _json(await until_hang_up(http.receive, self._whole(job, asked.n or 1, key_id)), headers)
        except HungUp:
            return Response(status_code=CLIENT_CLOSED_REQUEST)

    async def _whole(self, job: Job, num_choices: int, key_id: str) -> wire.Completion:
        entries: list[list[TokenLogprob]] = [[] for _ in range(num_choices)]
        with self._in_flight.held(key_id):
            async with self._chat.answering(job, num_choices) as choices:
                async for index, delta in choices:
                    entries[index] += delta.logprobs
            self._warm(job, choices)
        _check_answers(job, choices)
        completion = _completion(job, choices.streams[0], self._chat.spec)
        answers = zip(choices.streams, entries, strict=True)
        completion.choices = [_choice(job, index, stream, logprobs) for index, (stream, logprobs) in enumerate(answers)]
        completion.usage = _usage(choices)
        return completion

    async def _chunks(self, job: Job, num_choices: int, key_id: str, *, counts_usage: bool) -> AsyncGenerator[bytes, None]:
        """What is refused is raised before the first chunk; what fails later ends the stream with an error and without [DONE]."""
        with self._in_flight.held(key_id):
            async with self._chat.answering(job, num_choices) as choices:
                await choices.opened()
                kind = wire.ChatChunks if isinstance(job, ChatJob) else wire.TextChunks
                whole = _completion(job, choices.streams[0], self._chat.spec)
                chunks = [kind(whole, index, counts_usage=counts_usage) for index in range(num_choices)]
                yield b"".join(each.first() for each in chunks)
                try:
                    async for index, delta in choices:
                        yield _chunk(chunks[index], delta)
                    _check_answers(job, choices)
                except EngineError as error:
                    yield sse_data(error_object(error))
                    return
                self._warm(job, choices)
                ends = zip(chunks, choices.streams, strict=True)
                yield b"".join(each.end(FINISH[stream.result.finish_reason]) for each, stream in ends)
                if counts_usage and (usage := _usage(choices)):
                    yield chunks[0].counts(usage)
                yield wire.DONE

    def _warm(self, job: Job, choices: Choices) -> None:
        """Prepare the next turn, once this answer is on its way. Nobody knows which of several it follows."""
        result = choices.streams[0].result
        is_answer = result.finish_reason in ("stop", "length", "tool_calls") and (result.content or result.tool_calls)
        if isinstance(job, ChatJob) and is_answer and len(choices.streams) == 1:
            turns = (*job.messages, ChatMessage("assistant", result.content, result.tool_calls))
            scopes = (job.scope_public, job.scope_private, job.adapter, job.tool_use.tools)
            asyncio.get_running_loop().call_soon(self._chat.warm, turns, *scopes)


def _find(chat: ChatService, completion_id: str, key_id: str) -> list[ChatStream]:
    streams = chat.find(completion_id, key_id)
    if not streams:
        raise NotFound("no open completion has this id")
    return streams


def _check_answers(job: Job, choices: Choices) -> None:
    """A model that ends without a word has failed: that is no success with empty content. Raises EmptyAnswer."""
    results = [stream.result for stream in choices.streams]
    if isinstance(job, ChatJob) and not job.stop and all(each.finish_reason == "stop" and not each.content.strip() for each in results):
        raise EmptyAnswer("the model ended without an answer; please ask again")


def _choice(job: Job, index: int, stream: ChatStream, entries: list[TokenLogprob]) -> wire.ChatChoice | wire.TextChoice:
    result = stream.result
    finish = FINISH[result.finish_reason]
    if not isinstance(job, ChatJob):
        return wire.TextChoice(index, result.content, finish)
    message = wire.assistant_message(result.content, result.reasoning, [call.spelled for call in result.tool_calls])
    return wire.ChatChoice(index, message, finish, _logprobs(entries) if job.logprobs else None)


def _chunk(chunks: wire.ChatChunks | wire.TextChunks, delta: TextDelta) -> bytes:
    if isinstance(chunks, wire.TextChunks):
        return chunks.content(delta.text)
    if delta.channel == "reasoning":
        return chunks.reasoning(delta.text)
    if delta.calls:
        return b"".join(chunks.call(index, call.id, call.name, call.arguments) for index, call in delta.calls)
    return chunks.content(delta.text, _logprobs(delta.logprobs) if delta.logprobs else None)


def _completion(job: Job, stream: ChatStream, spec: ModelSpec) -> wire.Completion:
    return wire.Completion(
        id=stream.completion_id,
        object="chat.completion" if isinstance(job, ChatJob) else "text_completion",
        created=stream.created,
        model=f"{spec.name}:{job.adapter.partition('@')[0]}" if job.adapter else spec.name,
        system_fingerprint=f"{spec.engine_version}-{spec.sha256[:12]}",
    )


def _logprobs(entries: Sequence[TokenLogprob]) -> wire.Logprobs:
    return wire.Logprobs([wire.logprob_entry(entry.data, entry.logprob, entry.top) for entry in entries])


def _usage(choices: Choices) -> wire.Usage | None:
    """All choices share one prompt. None when an upstream did not count."""
    first, results = choices.streams[0].result, [stream.result for stream in choices.streams]
    if first.num_prompt_tokens is None or any(each.num_completion_tokens is None for each in results):
        return None
    num_completion = sum(each.num_completion_tokens or 0 for each in results)
    num_reasoning = sum(each.num_reasoning_tokens or 0 for each in results)
    return wire.count_usage(first.num_prompt_tokens, num_completion, first.num_cached or 0, num_reasoning)


def _json(value: object, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json", headers=headers)
