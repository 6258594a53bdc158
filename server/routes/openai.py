"""`/v1`: the OpenAI API, for clients that hold a key."""

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Annotated
from urllib.parse import quote

import msgspec
from fastapi import APIRouter, Depends, Request, Response

from backends.protocol import EmptyAnswer, EngineError, ModelSpec
from server.auth import KeyRing, require_key
from server.body import body
from server.chat.service import ChatJob, ChatMessage, ChatService, ChatStream, CompletionJob, TextDelta, TokenLogprob
from server.errors import InvalidRequest, ModelNotFound, NotFound, error_object
from server.limits import InFlight
from server.schema import completions as wire
from server.schema.openai import ChatCompletionRequest, CompletionRequest, ControlRequest
from server.settings import ServerSettings
from server.sse import CLIENT_CLOSED_REQUEST, EventStream, HungUp, sse_data, until_hang_up

MAX_NAMED_PARAMS = 32
# A cancelled answer ends as at a stop string: clients know no other word for it.
FINISH = {"stop": "stop", "length": "length", "abort": "stop"}

Asked = ChatCompletionRequest | CompletionRequest
Job = ChatJob | CompletionJob
ChatBody = Annotated[ChatCompletionRequest, Depends(body(ChatCompletionRequest))]
ControlBody = Annotated[ControlRequest, Depends(body(ControlRequest))]
CompletionBody = Annotated[CompletionRequest, Depends(body(CompletionRequest))]


def openai_router(chat: ChatService, ring: KeyRing, settings: ServerSettings) -> APIRouter:
    """`POST /v1/chat/completions` (and its cancel), `POST /v1/completions`, `GET /v1/models`."""
    router = APIRouter(prefix="/v1", tags=["key"])
    answers = _Answers(chat, InFlight(settings.max_in_flight), is_strict=settings.strict)
    key = Depends(require_key(ring))
    started_at = int(time.time())

    @router.post("/chat/completions")
    async def create_chat_completion(http: Request, key_id: Annotated[str, key], asked: ChatBody) -> Response:
        return await answers.respond(http, asked, lambda adapter: _chat_job(asked, key_id, chat, adapter), key_id)

    @router.post("/chat/completions/{completion_id}/cancel")
    async def cancel_chat_completion(key_id: Annotated[str, key], completion_id: str) -> Response:
        _find(chat, completion_id, key_id).stop()
        return _json({"id": completion_id, "cancelled": True})

    @router.post("/chat/completions/{completion_id}/control")
    async def control_chat_completion(key_id: Annotated[str, key], completion_id: str, asked: ControlBody) -> Response:
        _find(chat, completion_id, key_id).answer_now()
        return _json({"id": completion_id, "action": asked.action})

    @router.post("/completions")
    async def create_completion(http: Request, key_id: Annotated[str, key], asked: CompletionBody) -> Response:
        return await answers.respond(http, asked, lambda adapter: _completion_job(asked, key_id, chat, adapter), key_id)

    @router.get("/models")
    async def list_models(key_id: Annotated[str, key]) -> Response:
        names = [chat.spec.name, *(f"{chat.spec.name}:{name}" for name in chat.adapters.all())]
        return _json(wire.ModelList([wire.Model(name, started_at, chat.spec.context_length) for name in names]))

    @router.get("/models/{name:path}")
    async def retrieve_model(key_id: Annotated[str, key], name: str) -> Response:
        _adapter(name, chat)
        return _json(wire.Model(name, started_at, chat.spec.context_length))

    return router


class _Answers:
    """Runs jobs and writes their answers, whole or in chunks."""

    def __init__(self, chat: ChatService, in_flight: InFlight, *, is_strict: bool) -> None:
        self._chat = chat
        self._in_flight = in_flight
        self._is_strict = is_strict

    async def respond(self, http: Request, asked: Asked, make: Callable[[str], Job], key_id: str) -> Response:
        adapter = _adapter(asked.model, self._chat)
        if self._is_strict and asked.unknown_fields:
            raise InvalidRequest("there is no such field", param=min(asked.unknown_fields), code="unknown_field")
        headers, job = _ignored(asked), make(adapter)
        if asked.stream:
            return EventStream(self._chunks(job, key_id, counts_usage=asked.wants_usage), headers=headers)
        try:
            return _json(await until_hang_up(http.receive, self._whole(job, key_id)), headers)
        except HungUp:
            return Response(status_code=CLIENT_CLOSED_REQUEST)

    async def _whole(self, job: Job, key_id: str) -> wire.Completion:
        with self._in_flight.held(key_id):
            async with self._chat.open(job) as stream:
                entries = [entry async for delta in stream for entry in delta.logprobs]
            self._warm(job, stream)
        _check_answer(job, stream)
        result = stream.result
        completion = _completion(job, stream, self._chat.spec)
        finish = FINISH[result.finish_reason]
        if isinstance(job, ChatJob):
            logprobs = _logprobs(entries) if job.logprobs else None
            completion.choices = [wire.chat_choice(result.content, result.reasoning, finish, logprobs)]
        else:
            completion.choices = [wire.TextChoice(0, result.content, finish)]
        completion.usage = _usage(stream)
        return completion

    async def _chunks(self, job: Job, key_id: str, *, counts_usage: bool) -> AsyncGenerator[bytes, None]:
        """What is refused is raised before the first chunk; what fails later ends the stream with an error and without [DONE]."""
        with self._in_flight.held(key_id):
            async with self._chat.open(job) as stream:
                await stream.opened()
                chunks = (wire.ChatChunks if isinstance(job, ChatJob) else wire.TextChunks)(
                    _completion(job, stream, self._chat.spec), counts_usage=counts_usage
                )
                yield chunks.first()
                try:
                    async for delta in stream:
                        yield _chunk(chunks, delta)
                    _check_answer(job, stream)
                except EngineError as error:
                    yield sse_data(error_object(error))
                    return
                self._warm(job, stream)
                yield chunks.end(FINISH[stream.result.finish_reason])
                if counts_usage and (usage := _usage(stream)):
                    yield chunks.counts(usage)
                yield wire.DONE

    def _warm(self, job: Job, stream: ChatStream) -> None:
        """Prepare the next turn, once this answer is on its way."""
        result = stream.result
        if isinstance(job, ChatJob) and result.finish_reason in ("stop", "length") and result.content:
            turns = (*job.messages, ChatMessage("assistant", result.content))
            asyncio.get_running_loop().call_soon(self._chat.warm, turns, job.scope_public, job.scope_private, job.adapter)


def _chat_job(asked: ChatCompletionRequest, key_id: str, chat: ChatService, adapter: str) -> ChatJob:
    return ChatJob(
        messages=tuple(ChatMessage(message.role, message.text) for message in asked.messages),
        sampling=asked.sampling(chat.default_sampling(), random_seed=_random_seed),
        stop=asked.stops,
        effort=asked.reasoning_effort,
        thinking_budget=asked.thinking_budget,
        scope_public=key_id,
        scope_private=f"{key_id}\x00{asked.conversation}",
        session=next((message.text for message in asked.messages if message.role == "user"), ""),
        adapter=adapter,
        logprobs=bool(asked.logprobs),
    )


def _completion_job(asked: CompletionRequest, key_id: str, chat: ChatService, adapter: str) -> CompletionJob:
    return CompletionJob(
        prompt=asked.prompt if isinstance(asked.prompt, str) else tuple(asked.prompt),
        sampling=asked.sampling(chat.default_sampling(), random_seed=_random_seed),
        stop=asked.stops,
        scope_public=key_id,
        scope_private=f"{key_id}\x00{asked.conversation}",
        adapter=adapter,
    )


def _find(chat: ChatService, completion_id: str, key_id: str) -> ChatStream:
    stream = chat.find(completion_id, key_id)
    if stream is None:
        raise NotFound("no open completion has this id")
    return stream


def _check_answer(job: Job, stream: ChatStream) -> None:
    """A model that ends without a word has failed: that is no success with empty content. Raises EmptyAnswer."""
    result = stream.result
    if isinstance(job, ChatJob) and not job.stop and result.finish_reason == "stop" and not result.content.strip():
        raise EmptyAnswer("the model ended without an answer; please ask again")


def _adapter(name: str, chat: ChatService) -> str:
    """The adapter that a model's name asks for: its registry key, empty for the model itself. Raises ModelNotFound."""
    if name == chat.spec.name:
        return ""
    key = chat.adapters.all().get(name.removeprefix(f"{chat.spec.name}:"), "")
    if not key or not name.startswith(f"{chat.spec.name}:"):
        raise ModelNotFound("there is no such model here; GET /v1/models names those there are", param="model")
    return key


def _ignored(asked: Asked) -> dict[str, str]:
    named = sorted(quote(name[:64], safe="[]") for name in asked.ignored_fields)[:MAX_NAMED_PARAMS]
    return {"x-ignored-params": ", ".join(named)} if named else {}


def _random_seed() -> int:
    return secrets.randbits(31)


def _chunk(chunks: wire.ChatChunks | wire.TextChunks, delta: TextDelta) -> bytes:
    if isinstance(chunks, wire.TextChunks):
        return chunks.content(delta.text)
    if delta.channel == "reasoning":
        return chunks.reasoning(delta.text)
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


def _usage(stream: ChatStream) -> wire.Usage | None:
    """None when an upstream did not count."""
    result = stream.result
    if result.num_prompt_tokens is None or result.num_completion_tokens is None:
        return None
    return wire.count_usage(
        result.num_prompt_tokens, result.num_completion_tokens, result.num_cached or 0, result.num_reasoning_tokens or 0
    )


def _json(value: object, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json", headers=headers)
