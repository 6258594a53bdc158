"""A desk that plays scripted scenes over the desk's API, so that the page can be tested without a model.

By hand: `python -m tests.web.scripted_desk` serves the page with it on 127.0.0.1:8765.
"""

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from itertools import count

import uvicorn
from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from backends.mini.shop import load_shop
from server.errors import NotFound, error_object
from server.quick_replies import quick_replies
from server.routes.pages import pages_router
from server.routes.widget import widget_router
from server.settings import Settings, SiteSettings


@dataclass
class Scene:
    """How one answer goes: what is said of the wait, the text in pieces, how long between them, and how it ends."""

    text: str = "Unopened items can be returned within **30 days** of delivery [1]."
    first_try: str = ""  # said before the server begins anew
    waits: tuple[tuple[float, dict[str, object]], ...] = ((0.0, {"state": "thinking"}),)
    piece: int = 4
    pause_s: float = 0.0
    ending: str = "complete"  # complete | interrupted | error | cut
    finish_reason: str = "stop"
    confirm: dict[str, object] | None = None


SLOW = Scene(text="Tea and kettles. " * 60, pause_s=0.02, piece=6)


@dataclass
class Desk:
    """Everything the page did, for a test to look at, and what it will meet next, for a test to set."""

    scene: Scene = field(default_factory=Scene)
    refusals: dict[str, list[int]] = field(default_factory=dict)  # path's last part -> statuses to refuse with, in order
    messages: list[dict[str, object]] = field(default_factory=list)
    signals: list[dict[str, object]] = field(default_factory=list)
    asked: list[dict[str, str]] = field(default_factory=list)
    decided: list[tuple[str, object]] = field(default_factory=list)
    regenerated: list[str] = field(default_factory=list)
    admitted: list[tuple[str | None, dict[str, str]]] = field(default_factory=list)  # site and body of each
    language: str = "en"
    said_of_training: list[tuple[str, object]] = field(default_factory=list)
    num_conversations: int = 0
    num_visitors: int = 0
    answering: bool = False
    stopped: bool = False
    hurried: bool = False
    ids: Iterator[int] = field(default_factory=lambda: count(1))

    def reset(self) -> None:
        self.__init__()  # type: ignore[misc]

    def store(self, role: str, text: str, **more: object) -> dict[str, object]:
        message: dict[str, object] = {
            "message_id": f"msg_{next(self.ids)}",
            "role": role,
            "text": text,
            "citations": [],
            "status": "complete",
            **more,
        }
        self.messages.append(message)
        return message

    def consents(self, conversation_id: str) -> object:
        return next((said for about, said in reversed(self.said_of_training) if about == conversation_id), False)

    def cut(self, message_id: str | None) -> None:
        """Forget this message and what followed it."""
        ids = [message["message_id"] for message in self.messages]
        if message_id in ids:
            del self.messages[ids.index(message_id) :]

    def answer(self, text: str, status: str, finish_reason: str) -> dict[str, object]:
        cited = [
            {"number": number, "passage_id": passage.id, "title": passage.title, "text": passage.text}
            for number, passage in enumerate(load_shop("zh" if self.language == "zh" else "en").passages, 1)
            if f"[{number}]" in text
        ]
        completion_id = f"chatcmpl-{next(self.ids)}"
        return self.store(
            "assistant",
            text,
            citations=cited,
            status=status,
            finish_reason=finish_reason,
            completion_id=completion_id,
            thumb=None,
            quick_replies=quick_replies(text),
        )


def sse(name: str, data: object) -> bytes:
    return f"event: {name}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n".encode()


async def play(desk: Desk) -> AsyncIterator[bytes]:
    scene = desk.scene
    said = ""
    yield sse("accepted", {"message_id": desk.messages[-1]["message_id"]})
    for seconds, state in scene.waits:
        yield sse("state", state)
        for _ in range(int(seconds * 20)):
            if not desk.stopped and not desk.hurried:
                await asyncio.sleep(0.05)
    if scene.first_try:
        yield sse("delta", {"text": scene.first_try})
        await asyncio.sleep(0.3)
        yield sse("restart", {})
    yield sse("state", {"state": "answering"})
    for start in range(0, len(scene.text), scene.piece):
        if desk.stopped:
            break
        said += scene.text[start : start + scene.piece]
        yield sse("delta", {"text": scene.text[start : start + scene.piece]})
        await asyncio.sleep(scene.pause_s)
    desk.answering = False
    if scene.ending == "error":
        yield sse("error", {"error": {"message": "the engine stopped", "type": "server_error", "param": None, "code": "engine_died"}})
    elif scene.ending != "cut":
        status = "stopped" if desk.stopped else scene.ending
        message = desk.answer(said, status, scene.finish_reason)
        if scene.confirm:
            yield sse("confirm", scene.confirm)
        yield sse("done", {"message": message})


def create_app(desk: Desk, sites: dict[str, SiteSettings] | None = None) -> FastAPI:
    app = FastAPI()
    app.include_router(pages_router())
    app.include_router(widget_router(sites or Settings().sites))
    app.include_router(_public_routes(desk))
    app.include_router(_conversation_routes(desk))

    @app.exception_handler(NotFound)
    async def not_found(request: Request, error: NotFound) -> Response:
        return JSONResponse(error_object(error), 404)

    @app.middleware("http")
    async def refuse(request: Request, proceed: Callable[[Request], Awaitable[Response]]) -> Response:
        waiting = desk.refusals.get(request.url.path.rsplit("/", 1)[-1])
        if waiting and (status := waiting.pop(0)):
            return JSONResponse({"error": {"message": "no", "type": "t", "param": None, "code": None}}, status)
        return await proceed(request)

    return app


def _public_routes(desk: Desk) -> APIRouter:
    router = APIRouter(prefix="/desk")

    @router.post("/visitors", status_code=201)
    async def visitors(request: Request) -> dict[str, object]:
        desk.num_visitors += 1
        desk.admitted.append((request.headers.get("x-kefu-site"), await request.json()))
        return {"visitor_id": "v", "token": f"token-{desk.num_visitors}", "expires_in_s": 1800}

    @router.get("/shop")
    async def shop(language: str) -> dict[str, object]:
        shop = load_shop("zh" if language == "zh" else "en")
        return {"name": shop.name, "greeting": shop.greeting, "suggestions": shop.suggestions, "passages": []}

    @router.post("/conversations/{conversation_id}/consent")
    async def consent(conversation_id: str, request: Request) -> dict[str, object]:
        said: dict[str, object] = await request.json()
        desk.said_of_training.append((conversation_id, said["train"]))
        return said

    @router.post("/signals", status_code=201)
    async def signals(request: Request) -> dict[str, object]:
        signal = await request.json()
        desk.signals.append(signal)
        for message in desk.messages:
            if message.get("completion_id") == signal["completion_id"]:
                message["thumb"] = signal["value"]
        return {"signal_id": f"sig_{len(desk.signals)}"}

    return router


def _conversation_routes(desk: Desk) -> APIRouter:
    router = APIRouter(prefix="/desk/conversations")

    @router.post("", status_code=201)
    async def open_conversation(request: Request) -> dict[str, object]:
        desk.language = (await request.json())["language"]
        desk.num_conversations += 1
        desk.messages.clear()
        return {"conversation_id": f"conv_{desk.num_conversations}", "language": desk.language, "messages": []}

    @router.get("/current")
    async def current() -> dict[str, object]:
        if not desk.num_conversations:
            raise NotFound("no such conversation")
        conversation_id = f"conv_{desk.num_conversations}"
        now = {"messages": desk.messages, "answering": desk.answering, "confirm": desk.scene.confirm}
        return {"conversation_id": conversation_id, "language": desk.language, "consent_train": desk.consents(conversation_id), **now}

    @router.post("/{conversation_id}/messages/{message_id}/regenerate")
    async def regenerate(conversation_id: str, message_id: str) -> StreamingResponse:
        desk.cut(message_id)
        desk.regenerated.append(message_id)
        desk.answering, desk.stopped, desk.hurried = True, False, False
        return StreamingResponse(play(desk), media_type="text/event-stream")

    @router.post("/{conversation_id}/calls/{call_id}")
    async def decide(conversation_id: str, call_id: str, request: Request) -> StreamingResponse:
        desk.decided.append((call_id, await request.json()))
        desk.store("user", "Yes, please do it.")
        desk.scene = Scene(text="Done.")
        desk.answering, desk.stopped, desk.hurried = True, False, False
        return StreamingResponse(play(desk), media_type="text/event-stream")

    @router.post("/{conversation_id}/messages")
    async def messages(conversation_id: str, request: Request) -> StreamingResponse:
        asked = await request.json()
        desk.cut(asked.get("replaces"))
        if asked["client_message_id"] not in [each["client_message_id"] for each in desk.asked]:
            desk.store("user", asked["text"])
        desk.asked.append(asked)
        desk.answering, desk.stopped, desk.hurried = True, False, False
        return StreamingResponse(play(desk), media_type="text/event-stream")

    @router.post("/{conversation_id}/answer_now", status_code=202)
    async def answer_now(conversation_id: str) -> dict[str, object]:
        desk.hurried = True
        return {}

    @router.post("/{conversation_id}/stop", status_code=202)
    async def stop(conversation_id: str) -> dict[str, object]:
        desk.stopped = True
        return {}

    return router


@contextlib.contextmanager
def serving(app: FastAPI, port: int = 0) -> Iterator[str]:
    """Serve an app from a thread; yields its base URL."""
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


if __name__ == "__main__":
    slow = Scene(waits=((2.0, {"state": "queued", "place": 3, "eta_s": 12}), (5.0, {"state": "thinking"})), piece=2, pause_s=0.03)
    uvicorn.run(create_app(Desk(scene=slow)), port=8765)
