"""The desk's API: what the chat page calls."""

import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import ExitStack
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response

from backends.mini.shop import Language, Shop
from feedback.record import Message
from feedback.signals import Signals, Thumb
from server.body import body
from server.desk.desk import Answer, Desk
from server.desk.handoff import Handoffs
from server.desk.turn import Accepted, Answering, Delta, Done, Event, Failed, Held, Queued, Restart, Thinking
from server.desk.visitors import InvalidToken, VisitorPass, Visitors
from server.errors import error_object
from server.limits import DailyLimit, InFlight, RateLimit, address_of
from server.schema.desk import (
    ConversationReply,
    ConversationRequest,
    EmptyRequest,
    MessageReply,
    MessageRequest,
    ShopReply,
    SignalReply,
    SignalRequest,
    VisitorReply,
)
from server.settings import DeskSettings
from server.sse import EventStream, sse_event

# One address may be a household or an office: it gets what this many visitors get.
VISITORS_PER_ADDRESS = 6
SIGNALS_PER_DAY = 60
LISTENERS_PER_ADDRESS = 256


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


def desk_router(
    desk: Desk, handoffs: Handoffs, signals: Signals, visitors: Visitors, shops: Mapping[Language, Shop], limits: DeskLimits
) -> APIRouter:
    """Routes under /desk. Every call but the first two is made by a visitor, and sees only what is theirs."""
    router = APIRouter(prefix="/desk")
    _add_public(router, visitors, shops, limits)
    _add_conversations(router, desk, handoffs, visitors, limits)
    _add_signals(router, signals, handoffs, visitors, limits)
    return router


def require_visitor(visitors: Visitors) -> Callable[[Request], Awaitable[str]]:
    """The dependency of every route tagged `visitor`; its value is the visitor's id. Raises InvalidToken."""

    async def visitor_id(request: Request) -> str:
        return visitors.visitor_id(_token(request))

    return visitor_id


def _add_public(router: APIRouter, visitors: Visitors, shops: Mapping[Language, Shop], limits: DeskLimits) -> None:
    @router.post("/visitors", tags=["public"], status_code=201, dependencies=[Depends(body(EmptyRequest))])
    async def admit(request: Request, response: Response) -> VisitorReply:
        """A visitor: the same one again when the token can still be renewed (200), else a new one (201)."""
        try:
            admitted: VisitorPass = visitors.renew(_token(request))
            response.status_code = 200
        except InvalidToken:
            limits.admit(address_of(request))
            admitted = visitors.admit()
        return VisitorReply.model_validate(admitted)

    @router.get("/shop", tags=["public"])
    async def shop(language: Language) -> ShopReply:
        return ShopReply.model_validate(shops[language])


def _add_conversations(router: APIRouter, desk: Desk, handoffs: Handoffs, visitors: Visitors, limits: DeskLimits) -> None:
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
            seq=max((message.seq for message in history.messages), default=0),
        )

    @router.post("/conversations/{conversation_id}/messages", tags=["visitor"])
    async def ask(
        conversation_id: str, request: Request, visitor_id: visitor, sent: Annotated[MessageRequest, Depends(body(MessageRequest))]
    ) -> Response:
        """The answer as server-sent events; see `_frame` for what they carry."""
        address = address_of(request)
        limits.send(visitor_id, address)
        with ExitStack() as held:
            held.enter_context(limits.answers.held(address))
            answer = await handoffs.ask(visitor_id, conversation_id, sent.text, str(sent.client_message_id))
            return _stream(answer, held.pop_all())

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


def _add_signals(router: APIRouter, signals: Signals, handoffs: Handoffs, visitors: Visitors, limits: DeskLimits) -> None:
    visitor = Annotated[str, Depends(require_visitor(visitors))]

    @router.post("/signals", tags=["visitor"], status_code=201)
    async def signal(
        request: Request, response: Response, visitor_id: visitor, said: Annotated[SignalRequest, Depends(body(SignalRequest))]
    ) -> SignalReply:
        """Keep a vote: on disk before the reply. The same key again is the same signal (200)."""
        limits.vote(address_of(request))
        thumb = Thumb(said.completion_id, said.value, tuple(said.tags), said.comment or None, str(said.idempotency_key))
        receipt = await signals.vote(visitor_id, thumb)
        await handoffs.check_failures(receipt.conversation_id)
        response.status_code = 201 if receipt.is_new else 200
        return SignalReply.model_validate(receipt)


def _token(request: Request) -> str:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def _stream(answer: Answer, held: ExitStack) -> EventStream:
    async def frames() -> AsyncGenerator[bytes, None]:
        async for event in answer.events:
            yield _frame(event)

    def hang_up() -> None:
        answer.hang_up()
        held.close()

    return EventStream(frames(), hang_up)


def _frame(event: Event) -> bytes:
    match event:
        case Accepted(message_id):
            return sse_event("accepted", {"message_id": message_id})
        case Queued(place, eta_s):
            return sse_event("state", {"state": "queued", "place": place, "eta_s": eta_s})
        case Thinking(can_answer_now):
            return sse_event("state", {"state": "thinking", "can_answer_now": can_answer_now})
        case Answering():
            return sse_event("state", {"state": "answering"})
        case Delta(text):
            return sse_event("delta", {"text": text})
        case Restart():
            return sse_event("restart", {})
        case Done(message):
            return sse_event("done", {"message": on_the_wire(message)})
        case Failed(error):
            return sse_event("error", error_object(error))
        case Held(state):
            return sse_event("held", {"state": state})


def on_the_wire(message: Message) -> dict[str, object]:
    """A message as the page gets it."""
    return MessageReply.model_validate(message).model_dump()
