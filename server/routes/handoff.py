"""The customer's side of talking to a person: asking for one, following what they write, leaving a message, saying how it was."""

from collections.abc import AsyncGenerator
from contextlib import ExitStack
from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response

from feedback.record import Message
from feedback.signals import Csat, Signals
from server.body import body
from server.desk.handoff import Handoffs, View
from server.desk.visitors import Visitors
from server.errors import InvalidRequest
from server.limits import address_of
from server.routes.desk import DeskLimits, on_the_wire, require_visitor
from server.schema.desk import EmptyRequest, SignalReply
from server.schema.handoff import CsatRequest, FormRequest
from server.sse import EventStream, sse_event


def handoff_router(handoffs: Handoffs, signals: Signals, visitors: Visitors, limits: DeskLimits) -> APIRouter:
    """Routes under /desk/conversations/{id}. Every call is made by a visitor, about a conversation of theirs."""
    router = APIRouter(prefix="/desk/conversations/{conversation_id}", tags=["visitor"])
    visitor = Annotated[str, Depends(require_visitor(visitors))]
    empty = Depends(body(EmptyRequest))

    @router.post("/person", dependencies=[empty])
    async def person(conversation_id: str, request: Request, visitor_id: visitor) -> View:
        """A person is wanted; how things stand then. Wanting one twice is wanting one."""
        limits.send(visitor_id, address_of(request))
        return await handoffs.request(visitor_id, conversation_id)

    @router.post("/bot", dependencies=[empty])
    async def bot(conversation_id: str, visitor_id: visitor) -> View:
        """The customer waits no longer and goes on with the bot."""
        return await handoffs.go_on_with_bot(visitor_id, conversation_id)

    @router.post("/form", status_code=201)
    async def form(
        conversation_id: str, request: Request, visitor_id: visitor, sent: Annotated[FormRequest, Depends(body(FormRequest))]
    ) -> View:
        """A message for when nobody is there, on disk before the reply."""
        limits.send(visitor_id, address_of(request))
        contact = {name: value for name, value in sent.model_dump().items() if value}
        return await handoffs.leave_form(visitor_id, conversation_id, contact)

    @router.post("/csat", status_code=201)
    async def csat(
        conversation_id: str,
        request: Request,
        response: Response,
        visitor_id: visitor,
        sent: Annotated[CsatRequest, Depends(body(CsatRequest))],
    ) -> SignalReply:
        """Keep a rating: on disk before the reply. The same key again is the same rating (200)."""
        limits.vote(address_of(request))
        rating = Csat(conversation_id, sent.value, sent.comment or None, str(sent.idempotency_key))
        receipt = await signals.rate(visitor_id, rating)
        response.status_code = 201 if receipt.is_new else 200
        return SignalReply.model_validate(receipt)

    @router.get("/events")
    async def events(conversation_id: str, request: Request, visitor_id: visitor) -> Response:
        """`message` and `state` events, from after Last-Event-ID on."""
        after_seq = _last_event_id(request)
        with ExitStack() as held:
            held.enter_context(limits.listeners.held(address_of(request)))
            news = handoffs.follow(visitor_id, conversation_id, after_seq)
            return EventStream(_frames(news), held.pop_all().close)

    return router


def _last_event_id(request: Request) -> int:
    sent = request.headers.get("last-event-id", "0")
    if not (sent.isascii() and sent.isdecimal() and len(sent) < 10):
        raise InvalidRequest("must be the number of a message", param="last-event-id")
    return int(sent)


async def _frames(news: AsyncGenerator[View | Message, None]) -> AsyncGenerator[bytes, None]:
    async for each in news:
        if isinstance(each, Message):
            yield sse_event("message", {"message": on_the_wire(each), "seq": each.seq}, each.seq)
        else:
            yield sse_event("state", asdict(each))
