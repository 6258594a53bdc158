"""The desk's API: what the chat page calls."""

import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Request, Response

import feedback.record
from backends.mini.shop import Language, Shop
from feedback.database import RecordUnavailable
from feedback.record import Message
from feedback.signals import Choice, Signals, Thumb
from feedback.signals import Done as DoneTo
from server.body import body
from server.desk.customers import Customers
from server.desk.desk import Answer, Desk
from server.desk.handoff import Handoffs
from server.desk.tools import Confirm
from server.desk.turn import Accepted, Answering, Delta, Done, Event, Failed, Held, LookingUp, Offered, Queued, Restart, Thinking
from server.desk.visitors import InvalidToken, VisitorPass, Visitors
from server.errors import NotFound, error_object
from server.limits import DailyLimit, InFlight, RateLimit, address_of, network_of
from server.schema.desk import (
    ChoiceRequest,
    ConfirmReply,
    ConversationReply,
    ConversationRequest,
    DecisionRequest,
    EmptyRequest,
    MessageReply,
    MessageRequest,
    ShopReply,
    SignalReply,
    SignalRequest,
    VisitorReply,
    VisitorRequest,
)
from server.settings import DeskSettings, SiteSettings
from server.sse import EventStream, sse_event

# One address may be a household or an office: it gets what this many visitors get.
VISITORS_PER_ADDRESS = 6
SIGNALS_PER_DAY = 60
LISTENERS_PER_ADDRESS = 256
BETTER: Mapping[str, Literal[1, 0, -1]] = {"first": 1, "neither": 0, "second": -1}


class DeskLimits:
    """How much one visitor, and all visitors of one address, may ask for."""

    def __init__(self, settings: DeskSettings, clock: Callable[[], float] = time.monotonic) -> None:
        per_minute = settings.messages_per_minute
        self._clock = clock
        self._admissions = RateLimit(settings.visitors_per_minute, max(1, int(settings.visitors_per_minute)))
        self._messages = RateLimit(per_minute, max(1, int(per_minute)))
        self._address_messages = RateLimit(per_minute * VISITORS_PER_ADDRESS, max(1, int(per_minute * VISITORS_PER_ADDRESS)))
        self._daily_messages = DailyLimit(settings.messages_per_day)
        self._address_daily_messages = DailyLimit(settings.address_messages_per_day)
        self._address_signals = RateLimit(SIGNALS_PER_DAY / (24 * 60), SIGNALS_PER_DAY)
        self.answers = InFlight(settings.max_in_flight * VISITORS_PER_ADDRESS)
        self.listeners = InFlight(LISTENERS_PER_ADDRESS)

    def admit(self, address: str) -> None:
        """A new visitor. This and the next two raise TooManyRequests."""
        self._admissions.take(address, self._clock())

    def send(self, visitor_id: str, address: str) -> None:
        """A message, or a new conversation. What is refused for haste does not count for the day."""
        now = self._clock()
        self._messages.take(visitor_id, now)
        self._address_messages.take(address, now)
        self._daily_messages.take(visitor_id, now)
        self._address_daily_messages.take(address, now)

    def vote(self, address: str) -> None:
        """A signal; how many of a visitor's count is the ledger's business."""
        self._address_signals.take(address, self._clock())


@dataclass(frozen=True, slots=True)
class Welcome:
    """Who may come in: anonymous visitors, and the known customers of the sites."""

    visitors: Visitors
    customers: Customers
    sites: Mapping[str, SiteSettings]


def desk_router(
    desk: Desk, handoffs: Handoffs, signals: Signals, welcome: Welcome, shops: Mapping[Language, Shop], limits: DeskLimits
) -> APIRouter:
    """Routes under /desk. Every call but the first two is made by a visitor, and sees only what is theirs."""
    router = APIRouter(prefix="/desk")
    _add_public(router, welcome, shops, limits)
    _add_conversations(router, desk, welcome.visitors, limits)
    _add_answers(router, desk, handoffs, signals, welcome.visitors, limits)
    _add_signals(router, signals, handoffs, welcome.visitors, limits)
    _add_seconds(router, desk, signals, welcome.visitors, limits)
    return router


def require_visitor(visitors: Visitors) -> Callable[[Request], Awaitable[str]]:
    """The dependency of every route tagged `visitor`; its value is the visitor's id. Raises InvalidToken."""

    async def visitor_id(request: Request) -> str:
        return visitors.visitor_id(_token(request), _site(request))

    return visitor_id


def _add_public(router: APIRouter, welcome: Welcome, shops: Mapping[Language, Shop], limits: DeskLimits) -> None:
    @router.post("/visitors", tags=["public"], status_code=201)
    async def admit(request: Request, response: Response, sent: Annotated[VisitorRequest, Depends(body(VisitorRequest))]) -> VisitorReply:
        """A visitor: a known customer of the site; the same one again when the token can still be renewed (200); else a new one."""
        site = _site(request)
        if site and site not in welcome.sites:
            raise NotFound("there is no such site")
        try:
            admitted: VisitorPass = welcome.visitors.renew("" if sent.customer else _token(request), site)
            response.status_code = 200
        except InvalidToken:
            limits.admit(address_of(request))
            known = welcome.customers.customer_id(site, sent.customer) if sent.customer else None
            admitted = welcome.visitors.know(site, known) if known else welcome.visitors.admit(site)
        return VisitorReply.model_validate(admitted)

    @router.get("/shop", tags=["public"])
    async def shop(language: Language) -> ShopReply:
        return ShopReply.model_validate(shops[language])


def _add_conversations(router: APIRouter, desk: Desk, visitors: Visitors, limits: DeskLimits) -> None:
    visitor = Annotated[str, Depends(require_visitor(visitors))]

    @router.post("/conversations", tags=["visitor"], status_code=201)
    async def open_conversation(
        request: Request, visitor_id: visitor, wanted: Annotated[ConversationRequest, Depends(body(ConversationRequest))]
    ) -> ConversationReply:
        limits.send(visitor_id, address_of(request))
        opened = await desk.open_conversation(visitor_id, wanted.language)
        return ConversationReply(conversation_id=opened.id, language=opened.language, messages=[])

    @router.get("/conversations/current", tags=["visitor"])
    async def current(visitor_id: visitor) -> ConversationReply:
        history = await desk.current(visitor_id)
        messages = [MessageReply.model_validate(message) for message in history.messages]
        conversation = history.conversation
        return ConversationReply(
            conversation_id=conversation.id,
            language=conversation.language,
            messages=messages,
            answering=history.answering,
            state=conversation.state,
            consent_train=conversation.consent_train,
            confirm=ConfirmReply.model_validate(history.confirm) if history.confirm else None,
            seq=max((message.seq for message in history.messages), default=0),
        )

    @router.post("/conversations/{conversation_id}/stop", tags=["visitor"], status_code=202, dependencies=[Depends(body(EmptyRequest))])
    async def stop(conversation_id: str, visitor_id: visitor) -> dict[str, str]:
        await desk.stop(visitor_id, conversation_id)
        return {}

    @router.post(
        "/conversations/{conversation_id}/answer_now", tags=["visitor"], status_code=202, dependencies=[Depends(body(EmptyRequest))]
    )
    async def answer_now(conversation_id: str, visitor_id: visitor) -> dict[str, str]:
        await desk.answer_now(visitor_id, conversation_id)
        return {}


def _add_answers(router: APIRouter, desk: Desk, handoffs: Handoffs, signals: Signals, visitors: Visitors, limits: DeskLimits) -> None:
    """Answers come as server-sent events; see `_frame` for what they carry."""
    visitor = Annotated[str, Depends(require_visitor(visitors))]
    messages = "/conversations/{conversation_id}/messages"

    @router.post(messages, tags=["visitor"])
    async def ask(
        conversation_id: str, request: Request, visitor_id: visitor, sent: Annotated[MessageRequest, Depends(body(MessageRequest))]
    ) -> Response:
        with admitted(request, visitor_id) as held:
            answer = await handoffs.ask(visitor_id, conversation_id, sent.text, str(sent.client_message_id), sent.replaces)
            await note(visitor_id, answer, "edit")
            return _stream(answer, held.pop_all())

    @router.post(messages + "/{message_id}/regenerate", tags=["visitor"], dependencies=[Depends(body(EmptyRequest))])
    async def regenerate(conversation_id: str, message_id: str, request: Request, visitor_id: visitor) -> Response:
        with admitted(request, visitor_id) as held:
            answer = await desk.regenerate(visitor_id, conversation_id, message_id)
            await note(visitor_id, answer, "regenerate")
            return _stream(answer, held.pop_all())

    @router.post("/conversations/{conversation_id}/calls/{call_id}", tags=["visitor"])
    async def decide(
        conversation_id: str,
        call_id: str,
        request: Request,
        visitor_id: visitor,
        sent: Annotated[DecisionRequest, Depends(body(DecisionRequest))],
    ) -> Response:
        with admitted(request, visitor_id) as held:
            decision: Literal["running", "declined"] = "running" if sent.decision == "yes" else "declined"
            return _stream(await desk.decide(visitor_id, conversation_id, call_id, decision), held.pop_all())

    @contextmanager
    def admitted(request: Request, visitor_id: str) -> Iterator[ExitStack]:
        address = address_of(request)
        limits.send(visitor_id, address)
        signals.seen(visitor_id, visitors.hashed(network_of(request)))
        with ExitStack() as held:
            held.enter_context(limits.answers.held(address))
            yield held

    async def note(visitor_id: str, answer: Answer, kind: DoneTo) -> None:
        # An answer does not wait for the record; what it cannot take now is one signal less.
        with suppress(RecordUnavailable, feedback.record.NotFound):
            if answer.replaces:
                await signals.did(visitor_id, answer.replaces, kind)


def _add_signals(router: APIRouter, signals: Signals, handoffs: Handoffs, visitors: Visitors, limits: DeskLimits) -> None:
    visitor = Annotated[str, Depends(require_visitor(visitors))]

    @router.post("/signals", tags=["visitor"], status_code=201)
    async def signal(
        request: Request, response: Response, visitor_id: visitor, said: Annotated[SignalRequest, Depends(body(SignalRequest))]
    ) -> SignalReply:
        """Keep a vote: on disk before the reply. The same key again is the same signal (200)."""
        limits.vote(address_of(request))
        thumb = Thumb(said.completion_id, said.value, tuple(said.tags), said.comment or None, str(said.idempotency_key))
        signals.seen(visitor_id, visitors.hashed(network_of(request)))
        is_thumb = said.kind == "thumb"
        receipt = await (signals.vote(visitor_id, thumb) if is_thumb else signals.did(visitor_id, said.completion_id, "copy"))
        await handoffs.check_failures(receipt.conversation_id)
        response.status_code = 201 if receipt.is_new else 200
        return SignalReply.model_validate(receipt)


def _add_seconds(router: APIRouter, desk: Desk, signals: Signals, visitors: Visitors, limits: DeskLimits) -> None:
    visitor = Annotated[str, Depends(require_visitor(visitors))]
    message = "/conversations/{conversation_id}/messages/{message_id}"

    @router.post(message + "/second", tags=["visitor"], dependencies=[Depends(body(EmptyRequest))])
    async def second(conversation_id: str, message_id: str, visitor_id: visitor) -> Response:
        """The offer of another answer, or nothing when none came of it; `side` is where this one stands. Going on typing ends it."""
        return _stream(await desk.second(visitor_id, conversation_id, message_id), ExitStack())

    @router.post(message + "/choice", tags=["visitor"], status_code=201)
    async def choose(
        conversation_id: str,
        message_id: str,
        request: Request,
        response: Response,
        visitor_id: visitor,
        said: Annotated[ChoiceRequest, Depends(body(ChoiceRequest))],
    ) -> SignalReply:
        """Keep which of the two is better: on disk before the reply. The same key again is the same signal (200)."""
        limits.vote(address_of(request))
        signals.seen(visitor_id, visitors.hashed(network_of(request)))
        choice = Choice(message_id, BETTER[said.better], said.dwell_ms, str(said.idempotency_key))
        receipt = await signals.choose(visitor_id, conversation_id, choice)
        response.status_code = 201 if receipt.is_new else 200
        return SignalReply.model_validate(receipt)


def _token(request: Request) -> str:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def _site(request: Request) -> str:
    """The site whose page this is, "" for our own; a token is good for one only."""
    return request.headers.get("x-kefu-site", "")


def _stream(answer: Answer, held: ExitStack) -> EventStream:
    async def frames() -> AsyncGenerator[bytes, None]:
        async for event in answer.events:
            yield _frame(event)

    def hang_up() -> None:
        answer.hang_up()
        held.close()

    return EventStream(frames(), hang_up)


_PLAIN = {
    LookingUp: sse_event("state", {"state": "looking_up"}),
    Answering: sse_event("state", {"state": "answering"}),
    Restart: sse_event("restart", {}),
}


def _frame(event: Event) -> bytes:
    match event:
        case Accepted(message_id):
            return sse_event("accepted", {"message_id": message_id})
        case Queued(place, eta_s):
            return sse_event("state", {"state": "queued", "place": place, "eta_s": eta_s})
        case Thinking(can_answer_now):
            return sse_event("state", {"state": "thinking", "can_answer_now": can_answer_now})
        case Confirm():
            return sse_event("confirm", ConfirmReply.model_validate(event).model_dump())
        case Delta(text):
            return sse_event("delta", {"text": text})
        case Done(message):
            return sse_event("done", {"message": on_the_wire(message)})
        case Failed(error):
            return sse_event("error", error_object(error))
        case Held(state):
            return sse_event("held", {"state": state})
        case Offered(message, side):
            return sse_event("offer", {"message": on_the_wire(message), "side": side})
        case _:
            return _PLAIN[type(event)]


def on_the_wire(message: Message) -> dict[str, object]:
    """A message as the page gets it."""
    return MessageReply.model_validate(message).model_dump()
