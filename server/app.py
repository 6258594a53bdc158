"""The composition root: settings and an engine in, the whole web application out."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import get_args

import httpx
from fastapi import FastAPI

from backends.adapter import AdapterRegistry
from backends.catalog import Entry
from backends.client import EngineClient
from backends.fit import GIB
from backends.mini.shop import Language, Shop, load_shop
from backends.protocol import AdapterRefused, EngineDown, EngineOptions, ModelLoadError, ModelSpec, Tokenizer
from backends.registry import check_model, make_tokenizer
from backends.sequence import SamplingParams
from backends.supervisor import Supervisor
from backends.upstream import UpstreamClient
from feedback.accounts import Accounts
from feedback.audit import Audit
from feedback.calls import Calls
from feedback.conversations import Conversations
from feedback.database import Database
from feedback.erase import Eraser
from feedback.gaps import Gaps
from feedback.inbox import Inbox
from feedback.insights import Insights
from feedback.knowledge import Knowledge
from feedback.lookback import Lookback
from feedback.offers import Offers
from feedback.record import Record
from feedback.retention import Days, Retention
from feedback.review import Reviews
from feedback.rounds import Rounds
from feedback.second_look import SecondLook
from feedback.signals import PROPENSITY, Signals
from server.auth import KeyRing
from server.awake import Awake, SleepWatch, caffeinate
from server.chat.service import DEFAULT_SAMPLING, ChatService
from server.chat.upstream import UpstreamChat
from server.console.console import Console
from server.desk.customers import Customers
from server.desk.demo.orders import demo_orders
from server.desk.desk import Desk
from server.desk.handoff import Handoffs
from server.desk.knowledge import DeskKnowledge
from server.desk.notify import Notifier
from server.desk.policy import Policy
from server.desk.policy_file import Terms, load_policy
from server.desk.policy_store import PolicyStore
from server.desk.second import Seconds
from server.desk.second_look import ask_at_rest
from server.desk.tools import DeskTools
from server.desk.tools_file import DEMO_TOOLS, load_tools
from server.desk.visitors import Visitors
from server.embedder import Embedder, Rows
from server.errors import install_handlers
from server.metrics import EngineNumbers, Metrics
from server.middleware import Door, Traffic
from server.models import Chosen, choose_embedding
from server.rollout import watch_rounds, watch_training
from server.routes.consent import consent_router
from server.routes.console import console_router
from server.routes.desk import DeskLimits, Welcome, desk_router
from server.routes.embeddings import embeddings_router
from server.routes.handoff import handoff_router
from server.routes.health import health_router
from server.routes.inbox import inbox_router
from server.routes.insights import insights_router
from server.routes.knowledge import knowledge_router
from server.routes.openai import openai_router
from server.routes.pages import pages_router
from server.routes.policy import policy_router
from server.routes.review import review_router
from server.routes.rounds import rounds_router
from server.routes.tools import tools_router
from server.routes.widget import widget_router
from server.settings import EngineSettings, Settings, UpstreamSettings

log = logging.getLogger("kefu.app")

BUILT_IN = Path(__file__).parents[1] / "backends" / "mini" / "weights" / "kefu-mini.gguf"
WATCH_EVERY_S = 0.25
# A text is embedded in one pass, whose memory grows with its tokens times the vocabulary.
MAX_TOKENS = 2048
Work = Coroutine[object, object, None]


@dataclass(frozen=True, slots=True)
class App:
    """What was composed.

    `interrupt` ends every open answer, for when a shutdown can wait no longer. `broken` holds the reason once it is certain that
    the model will never load.
    """

    asgi: FastAPI
    traffic: Traffic
    interrupt: Callable[[], None]
    broken: list[str]


def create_app(
    settings: Settings,
    supervisor: Supervisor | UpstreamClient,
    read_tokenizer: Callable[[], Tokenizer] | None,
    sampling: SamplingParams = DEFAULT_SAMPLING,
    embedder: Embedder | None = None,
) -> App:
    """Everything but a socket; `read_tokenizer` is called once the model is loaded, and only an upstream needs none.

    Raises RecordUnavailable for an unusable folder, AdapterRefused when the adapter that is set is missing, BadPolicy, BadTools.
    """
    engine, traffic, ring, broken = supervisor.client, Traffic(), KeyRing(settings.server.api_keys), list[str]()
    metrics = Metrics(partial(_numbers, supervisor, embedder))
    chat = _make_chat(settings, engine, read_tokenizer, metrics, sampling)
    database, terms = Database.open(settings.database_url, settings.data_dir), load_policy(PolicyStore(settings).path)
    shops = {language: _greeting(load_shop(language), terms[language]) for language in get_args(Language)}
    policies = {language: Policy.of(shop, language, terms[language]) for language, shop in shops.items()}
    welcome = Welcome(Visitors(settings.data_dir / "visitor.key"), Customers(settings.sites), settings.sites)
    desk = Desk(chat, Record(database), policies, settings.desk, engine.wait_s)
    articles, desk.on_check = Knowledge(database), metrics.observe_check
    desk.knowledge = knowledge = DeskKnowledge(articles, shops, settings.desk.pinned_tokens, terms)
    knowledge.embedder, desk.tools = embedder, _make_tools(settings, database, welcome.visitors)
    notifier, inbox, gaps, limits = Notifier(settings.desk), Inbox(database), Gaps(database), DeskLimits(settings.desk)
    handoffs, audit = Handoffs(desk, inbox, settings.desk, notifier.waiting), Audit(database, settings.data_dir / "audit.head")
    console, retention = Console(Accounts(database), audit), _make_retention(settings, database, audit)
    signals, lookback = _make_signals(database, desk, handoffs, welcome.visitors, settings.desk.compare_share)
    second, lookback.model = SecondLook(database, partial(ask_at_rest, chat), settings.desk.rephrase_judge), embedder

    def works() -> list[Work]:
        follow = watch_rounds(chat, Rounds(database), console.audit, settings.engine.adapter)
        watched = _watch(engine, chat, desk.prepare, broken), watch_sleep(chat, engine, Awake(caffeinate()))
        trained = [watch_training(chat, supervisor, settings.data_dir)] if isinstance(supervisor, Supervisor) else []
        kept = handoffs.run(), lookback.run(), second.run(), retention.run(), knowledge.run()
        return [follow, *watched, *trained, *kept, *([desk.tools.run()] if desk.tools else [])]

    engines, traffic.on_drain = [supervisor, embedder.supervisor] if embedder else [supervisor], handoffs.end_streams
    lifespan = _lifespan(engines, database, works, (handoffs.close, notifier.close, desk.close))
    asgi = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    for router in (
        health_router(engine, traffic, metrics, ring),
        openai_router(chat, ring, settings.server, embedder),
        embeddings_router(embedder, ring, settings.server),
        desk_router(desk, handoffs, signals, welcome, shops, limits),
        handoff_router(handoffs, signals, welcome.visitors, limits),
        consent_router(Record(database), welcome.visitors),
        pages_router(),
        widget_router(settings.sites),
        inbox_router(console, handoffs, inbox, desk),
        knowledge_router(console, articles, gaps, knowledge, settings.server.max_body_bytes),
        policy_router(console, settings, knowledge, chat),
        insights_router(console, Insights(database)),
        review_router(console, Reviews(database)),
        rounds_router(console, Rounds(database), settings.data_dir),
        tools_router(console, desk.tools),
        console_router(console, Conversations(database), settings),
    ):
        asgi.include_router(router)
    install_handlers(asgi, console.refusal)
    asgi.add_middleware(Door, settings=settings.server, traffic=traffic, observe=metrics.observe_request, console=settings.console)
    return App(asgi, traffic, lambda: chat.interrupt_all(EngineDown("the server is shutting down", retry_after_s=10)), broken)


def _make_signals(database: Database, desk: Desk, handoffs: Handoffs, visitors: Visitors, share: float) -> tuple[Signals, Lookback]:
    """The ledger, the draw that says which answers ask for a thumb and which, others as far as can be, have a second one beside them,
    and who looks back at what was said.
    """
    signals = Signals(database)

    def drawn(completion_id: str) -> float:
        return int(visitors.hashed(f"ask {completion_id}"), 16) / 2**64

    desk.asks = signals.asks = lambda completion_id: bool(completion_id) and drawn(completion_id) < PROPENSITY
    if share:
        desk.seconds = Seconds(Offers(database, signals), share, lambda completion_id: drawn(completion_id) >= 1 - share)
        desk.seconds.asks = desk.asks
    lookback = Lookback(database, signals)
    handoffs.on_kept, lookback.on_looked = lookback.kept, handoffs.failures_seen
    return signals, lookback


def _lifespan(
    engines: Sequence[Supervisor | UpstreamClient],
    database: Database,
    works: Callable[[], list[Work]],
    closings: Sequence[Callable[[], Awaitable[None]]],
) -> Callable[[FastAPI], contextlib.AbstractAsyncContextManager[None]]:
    """The engines up and `works` under way for as long as the application lives; then everything is ended in order."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        for engine in engines:
            await engine.start()
        tasks = [asyncio.create_task(work) for work in works()]
        try:
            yield
        finally:
            await _cancel(tasks)
            await asyncio.gather(*(close() for close in closings))
            await asyncio.gather(*(engine.stop() for engine in engines))
            database.close()

    return lifespan


async def _cancel(tasks: Collection[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _numbers(supervisor: Supervisor | UpstreamClient, embedder: Embedder | None) -> EngineNumbers:
    engine, is_up = supervisor.client, embedder is not None and embedder.client.is_ready
    return EngineNumbers(engine.num_waiting, engine.num_running, supervisor.num_restarts, engine.stats, is_up)


def _make_retention(settings: Settings, database: Database, audit: Audit) -> Retention:
    return Retention(database, Eraser(database, audit, settings.data_dir), audit, Days(**settings.retention.model_dump()))


def _make_tools(settings: Settings, database: Database, visitors: Visitors) -> DeskTools | None:
    """The tools that are set, or the demo shop's over its own orders. Raises BadTools."""
    is_demo = settings.desk.policy is None and not settings.upstream.base_url
    if settings.desk.tools is None and not is_demo:
        return None
    mounts = {} if settings.desk.tools else {"all://orders.demo": httpx.ASGITransport(demo_orders(datetime.now(UTC).date()))}
    return DeskTools(load_tools(settings.desk.tools or DEMO_TOOLS), Calls(database), visitors.customer_of, mounts)


def _greeting(shop: Shop, terms: Terms) -> Shop:
    """The shop, greeting as its policy says."""
    return replace(shop, greeting=terms.greeting(shop.greeting))


def open_app(settings: Settings, chosen: Chosen) -> App:
    """The application over the model that was chosen, or over the upstream that the settings name.

    Raises ModelLoadError for a file that is no model, and what `create_app` does.
    """
    embedder = make_embedder(settings.engine, *chosen.embedding) if chosen.embedding else None
    if settings.upstream.base_url:
        return create_app(settings, make_upstream(settings.upstream), None, embedder=embedder)
    options = engine_options(chosen.engine)
    options = replace(options, name=chosen.name or options.name, data_dir=str(settings.data_dir))
    for path in filter(None, (options.path, options.draft_model)):
        check_model(path)
    supervisor = Supervisor(options, settings.engine.max_waiting)
    return create_app(settings, supervisor, partial(make_tokenizer, options.path), chosen.sampling or DEFAULT_SAMPLING, embedder)


def _make_chat(
    settings: Settings,
    engine: EngineClient | UpstreamClient,
    read_tokenizer: Callable[[], Tokenizer] | None,
    metrics: Metrics,
    sampling: SamplingParams,
) -> ChatService:
    if isinstance(engine, UpstreamClient):
        return UpstreamChat(engine, metrics.observe_result, opens_thought=settings.upstream.opens_thought)
    assert read_tokenizer is not None
    chat = ChatService(engine, read_tokenizer, metrics.observe_result, sampling)
    chat.adapters = AdapterRegistry(settings.data_dir / "adapters", settings.engine.adapter)
    if chat.adapters.chosen and not chat.adapters.chosen_key:
        raise AdapterRefused(f"there is no adapter {chat.adapters.chosen!r}")
    return chat


def engine_options(settings: EngineSettings) -> EngineOptions:
    """What the engine process is told: the built-in model unless another is set."""
    path = settings.model or BUILT_IN
    return EngineOptions(
        path=str(path),
        name=path.name if path.is_dir() else path.stem,
        max_sequences=settings.max_sequences,
        context_length=settings.context_length,
        num_kv_tokens=settings.num_kv_tokens,
        threads=settings.threads,
        gpu_layers=settings.gpu_layers,
        flash_attention=settings.flash_attention,
        kv_type=settings.kv_type,
        mlx_batch=settings.mlx_batch,
        set_wired_limit=settings.set_wired_limit,
        memory_limit_bytes=int(settings.memory_gib * GIB),
        prompt_lookup=settings.prompt_lookup,
        draft_model=str(settings.draft_model or ""),
    )


def make_embedder(settings: EngineSettings, entry: Entry | None, path: Path) -> Embedder:
    """An engine of its own for the embedding model. Raises ModelLoadError for a file that is no model."""
    check_model(str(path))
    name, asks = (entry.name, entry.asks) if entry else (path.stem, "")
    options = EngineOptions(str(path), name, threads=settings.threads, gpu_layers=settings.gpu_layers, embeds=True)
    return Embedder(replace(options, context_length=MAX_TOKENS, num_kv_tokens=MAX_TOKENS, batch_tokens=MAX_TOKENS), asks)


async def find_vectors(settings: Settings, texts: Sequence[str], questions: Sequence[str]) -> tuple[Rows, Rows] | None:
    """Vectors of passages and of questions, where no server runs; None where no embedding model is set.

    Raises ModelUnavailable, ModelLoadError, EngineDown.
    """
    if not (chosen := choose_embedding(settings)):
        return None
    embedder = make_embedder(settings.engine, *chosen)
    await embedder.supervisor.start()
    try:
        limit = (await embedder.supervisor.loaded()).context_length - 1
        return (await embedder.embed(texts, limit))[0], (await embedder.embed([embedder.asks + each for each in questions], limit))[0]
    finally:
        await embedder.supervisor.stop()


def make_upstream(settings: UpstreamSettings) -> UpstreamClient:
    """The client of another server."""
    key = settings.api_key.get_secret_value()
    return UpstreamClient(settings.base_url, key, settings.model, settings.context_length, settings.timeout_s)


async def _watch(engine: EngineClient | UpstreamClient, chat: ChatService, warm: Callable[[], Awaitable[None]], broken: list[str]) -> None:
    """Warm each newly loaded engine, and again when adapters change; report a model that cannot be served."""
    warmed: tuple[ModelSpec, tuple[object, ...]] | None = None
    while True:
        try:
            spec, keys = engine.spec, (chat.adapters, *chat.adapters.all().values())
            if warmed is None or spec is not warmed[0] or keys != warmed[1]:
                await warm()
                warmed = spec, keys
        except (EngineDown, ModelLoadError) as error:
            if warmed is None and getattr(error, "retry_after_s", None) is None:
                broken.append(str(error))
                return
        await asyncio.sleep(WATCH_EVERY_S)


async def watch_sleep(chat: ChatService, engine: EngineClient | UpstreamClient, awake: Awake, clock: SleepWatch | None = None) -> None:
    """Keep the machine awake while answers are open. After it slept all the same, end them with the reason and prove the engine anew."""
    clock = clock or SleepWatch()
    async with awake:
        while True:
            await awake.keep(chat.num_open > 0)
            if slept_s := clock.slept_s():
                log.warning("the computer slept for %.0f s; %d answers ended", slept_s, chat.num_open)
                chat.interrupt_all(EngineDown("the computer slept while it worked on this; please ask again", retry_after_s=1))
                if reason := await engine.prove():
                    log.error("after sleep: %s", reason)
            await asyncio.sleep(WATCH_EVERY_S)
