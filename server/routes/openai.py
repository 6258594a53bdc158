"""`/v1`: the OpenAI API, for clients that hold a key."""

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter, Depends, Request, Response

from backends.protocol import EngineError, ModelSpec
from server.auth import KeyRing, require_key
from server.body import body
from server.chat.service import ChatJob, ChatMessage, ChatResult, ChatService, ChatStream, CompletionJob, TextDelta
from server.errors import InvalidRequest, ModelNotFound, NotFound, RequestError, error_object
from server.limits import InFlight
from server.schema import completions as wire
from server.schema.openai import ChatCompletionRequest, CompletionRequest
from server.settings import ServerSettings
from server.sse import CLIENT_CLOSED_REQUEST, EventStream, HungUp, sse_data, until_hang_up

MAX_NAMED_PARAMS = 32
# A cancelled answer ends as it would have at a stop string: clients know no other word for it.
FINISH = {"stop": "stop", "length": "length", "abort": "stop"}

ChatBody = Annotated[ChatCompletionRequest, Depends(body(ChatCompletionRequest))]
CompletionBody = Annotated[CompletionRequest, Depends(body(CompletionRequest))]


@dataclass(frozen=True, slots=True)
class _V1:
    """What the routes share."""

    chat: ChatService
    in_flight: InFlight
    is_strict: bool

    def admit(self, request: ChatCompletionRequest | CompletionRequest) -> dict[str, str]:
        """Check what needs the loaded model; the headers of the response. Raises ModelNotFound, InvalidRequest, EngineDown."""
        if request.model != self.chat.spec.name:
            raise ModelNotFound("there is no such model here; GET /v1/models names those there are", param="model")
        if self.is_strict and request.unknown_fields:
            raise InvalidRequest("there is no such field", param=min(request.unknown_fields), code="unknown_field")
        named = sorted(quote(name[:64], safe="[]") for name in request.ignored_fields)[:MAX_NAMED_PARAMS]
        return {"x-ignored-params": ", ".join(named)} if named else {}

    def job(self, request: ChatCompletionRequest, key_id: str) -> ChatJob:
        return ChatJob(
            messages=tuple(ChatMessage(message.role, message.text) for message in request.messages),
            sampling=request.sampling(self.chat.default_sampling(), random_seed=_random_seed),
            stop=tuple(request.stop or ()),
            effort=request.reasoning_effort,
            thinking_budget=request.thinking_budget,
            scope_public=key_id,
            scope_private=f"{key_id}\x00{request.conversation}",
            logprobs=bool(request.logprobs),
        )

    async def stream_chat(self, job: ChatJob, key_id: str, *, counts_usage: bool) -> AsyncGenerator[bytes, None]:
        """Chunks; whatever is refused is raised before the first of them."""
        with self.in_flight.held(key_id):
            async with self.chat.open(job) as stream:
                writer = wire.ChunkWriter(_whole_chat(stream, self.chat.spec), counts_usage=counts_usage)
                yield writer.role()
                try:
                    async for delta in stream:
                        yield _chunk(writer, delta)
                except (EngineError, RequestError) as error:
                    yield sse_data(error_object(error))
                    return
                self.warm(job, stream.result)
                yield writer.chat_end(FINISH[stream.result.finish_reason])
                if counts_usage:
                    yield writer.usage(_usage(stream.result))
                yield wire.DONE

    async def whole_chat(self, job: ChatJob, key_id: str) -> wire.Completion:
        with self.in_flight.held(key_id):
            async with self.chat.open(job) as stream:
                entries = [entry async for delta in stream for entry in delta.logprobs]
            self.warm(job, stream.result)
            logprobs = wire.Logprobs([wire.logprob_entry(e.data, e.logprob, e.top) for e in entries]) if job.logprobs else None
            return _whole_chat(stream, self.chat.spec, logprobs)

    async def stream_text(self, job: CompletionJob, key_id: str, *, counts_usage: bool) -> AsyncGenerator[bytes, None]:
        with self.in_flight.held(key_id):
            async with self.chat.complete(job) as stream:
                writer = wire.ChunkWriter(_whole_text(stream, self.chat.spec), counts_usage=counts_usage)
                yield writer.text("")
                try:
                    async for delta in stream:
                        yield writer.text(delta.text)
                except (EngineError, RequestError) as error:
                    yield sse_data(error_object(error))
                    return
                yield writer.text_end(FINISH[stream.result.finish_reason])
                if counts_usage:
                    yield writer.usage(_usage(stream.result))
                yield wire.DONE

    async def whole_text(self, job: CompletionJob, key_id: str) -> wire.Completion:
        with self.in_flight.held(key_id):
            async with self.chat.complete(job) as stream:
                async for _ in stream:
                    pass
            return _whole_text(stream, self.chat.spec)

    def warm(self, job: ChatJob, result: ChatResult) -> None:
        """Once the response is on its way, prepare the next turn."""
        if result.finish_reason in ("stop", "length") and result.content:
            turns = (*job.messages, ChatMessage("assistant", result.content))
            asyncio.get_running_loop().call_soon(self.chat.warm, turns, job.scope_public, job.scope_private)


def openai_router(chat: ChatService, ring: KeyRing, settings: ServerSettings) -> APIRouter:
    """`POST /v1/chat/completions` (and its cancel), `POST /v1/completions`, `GET /v1/models`."""
    router = APIRouter(prefix="/v1", tags=["key"])
    v1 = _V1(chat, InFlight(settings.max_in_flight), settings.strict)
    key = Depends(require_key(ring))
    started_at = int(time.time())

    @router.post("/chat/completions")
    async def create_chat_completion(http: Request, key_id: Annotated[str, key], request: ChatBody) -> Response:
        headers = v1.admit(request)
        job = v1.job(request, key_id)
        if request.stream:
            return EventStream(v1.stream_chat(job, key_id, counts_usage=request.wants_usage), headers)
        return await _answer(http, v1.whole_chat(job, key_id), headers)

    @router.post("/chat/completions/{completion_id}/cancel")
    async def cancel_chat_completion(key_id: Annotated[str, key], completion_id: str) -> Response:
        stream = chat.find(completion_id, key_id)
        if stream is None:
            raise NotFound("no open completion has this id")
        stream.stop()
        return _json({"id": completion_id, "object": "chat.completion", "cancelled": True})

    @router.post("/completions")
    async def create_completion(http: Request, key_id: Annotated[str, key], request: CompletionBody) -> Response:
        headers = v1.admit(request)
        prompt = request.prompt if isinstance(request.prompt, str) else tuple(request.prompt)
        sampling = request.sampling(chat.default_sampling(), random_seed=_random_seed)
        job = CompletionJob(prompt, sampling, tuple(request.stop or ()), f"{key_id}\x00{request.conversation}")
        if request.stream:
            return EventStream(v1.stream_text(job, key_id, counts_usage=request.wants_usage), headers)
        return await _answer(http, v1.whole_text(job, key_id), headers)

    @router.get("/models")
    async def list_models(key_id: Annotated[str, key]) -> Response:
        return _json(wire.ModelList([_model(chat.spec, started_at)]))

    @router.get("/models/{model:path}")
    async def retrieve_model(key_id: Annotated[str, key], model: str) -> Response:
        if model != chat.spec.name:
            raise ModelNotFound("there is no such model here; GET /v1/models names those there are", param="model")
        return _json(_model(chat.spec, started_at))

    return router


async def _answer(http: Request, work: "Work", headers: dict[str, str]) -> Response:
    try:
        return _json(await until_hang_up(http.receive, work), headers)
    except HungUp:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
