"""The web application over a scripted engine, called in process or served on a real socket."""

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager

import httpx
import pytest
import uvicorn
from fastapi import FastAPI

from server.auth import KeyRing
from server.chat.service import ChatService
from server.errors import install_handlers
from server.metrics import EngineNumbers, Metrics
from server.middleware import Door, Traffic
from server.routes.embeddings import embeddings_router
from server.routes.health import health_router
from server.routes.openai import openai_router
from server.settings import ServerSettings
from tests.server.fakes import ByteTokenizer, ScriptedEngine

MakeApp = Callable[..., FastAPI]


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine()


@pytest.fixture
def traffic() -> Traffic:
    return Traffic()


@pytest.fixture
def metrics(engine: ScriptedEngine) -> Metrics:
    return Metrics(lambda: EngineNumbers(0, len(engine.open), 0, None))


@pytest.fixture
def make_app(engine: ScriptedEngine, traffic: Traffic, metrics: Metrics) -> MakeApp:
    """`/v1` and health, with the given server settings."""

    def make(**fields: object) -> FastAPI:
        settings = ServerSettings.model_validate(fields)
        ring = KeyRing(settings.api_keys)
        app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
        app.include_router(openai_router(ChatService(engine, ByteTokenizer, metrics.observe_result), ring, settings))
        app.include_router(embeddings_router(None, ring, settings))
        app.include_router(health_router(engine, traffic, metrics, ring))
        install_handlers(app)
        app.add_middleware(Door, settings=settings, traffic=traffic, observe=metrics.observe_request)
        return app

    return make


@pytest.fixture
async def client(make_app: MakeApp) -> AsyncIterator[httpx.AsyncClient]:
    """Calls the application with default settings, in process."""
    async with calling(make_app()) as caller:
        yield caller


def calling(app: FastAPI) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1")


@contextmanager
def serving(app: FastAPI) -> Iterator[str]:
    """The application on a real socket of its own, in a thread."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        # asyncio does it only where a socket names its protocol; without it every reply waits 40 ms for an acknowledgement.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=1))
        thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[sock])))
        thread.start()
        try:
            while not server.started:
                threading.Event().wait(0.01)
            yield f"http://127.0.0.1:{sock.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()
