"""The agents' page and its API: who waits, the whole story of a conversation, and everything an agent can do in it."""

from collections.abc import AsyncGenerator
from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response

from feedback.inbox import CannedAnswer, Inbox, Move, Row, Story
from feedback.record import Message, NotFound, State, new_id
from server.body import body
from server.console.console import Console, Me
from server.desk.desk import Desk
from server.desk.handoff import OPEN_STATES, Handoffs
from server.errors import InvalidRequest
from server.schema.desk import EmptyRequest
from server.schema.handoff import AgentMessageRequest, CannedRequest, MoveRequest
from server.sse import EventStream, sse_event


def inbox_router(console: Console, handoffs: Handoffs, inbox: Inbox, desk: Desk) -> APIRouter:
    """The page /console/inbox, and the routes under /console/api that it calls."""
    me = console.require_role("agent")
    router = APIRouter(prefix="/console", tags=["agent"], include_in_schema=False, dependencies=[Depends(me)])
    _add_page(router, console)
    _add_lists(router, handoffs, inbox)
    _add_conversation(router, console, handoffs, inbox, desk)
    _add_canned(router, inbox)
    return router


async def _names(console: Console) -> list[str]:
    """Agents whom a conversation may be given to."""
    return [agent.name for agent in await console.accounts.agents() if agent.disabled_at_ms is None]


def _add_page(router: APIRouter, console: Console) -> None:
    @router.get("/inbox")
    async def page(request: Request) -> Response:
        return console.render(request, "inbox.html", names=await _names(console))


def _add_lists(router: APIRouter, handoffs: Handoffs, inbox: Inbox) -> None:
    @router.get("/api/inbox")
    async def rows(state: State | None = None) -> list[Row]:
        """Those of one state, or who waits (the longest first) and then who is helped."""
        return await inbox.rows((state,) if state else OPEN_STATES)

    @router.get("/api/inbox/events")
    async def events() -> Response:
        """The same list, again whenever it changes."""

        async def frames() -> AsyncGenerator[bytes, None]:
            async for rows in handoffs.watch_inbox():
                yield sse_event("inbox", [asdict(row) for row in rows])

        return EventStream(frames())


def _add_conversation(router: APIRouter, console: Console, handoffs: Handoffs, inbox: Inbox, desk: Desk) -> None:
    empty = Depends(body(EmptyRequest))

    @router.get("/api/inbox/{conversation_id}")
    async def story(conversation_id: str) -> Story:
        return await inbox.story(conversation_id)

    @router.post("/api/inbox/{conversation_id}/move")
    async def move(conversation_id: str, me: Me, sent: Annotated[MoveRequest, Depends(body(MoveRequest))]) -> dict[str, str]:
        """Change whose it is; 409 when somebody was faster."""
        if sent.agent is not None and sent.agent not in await _names(console):
            raise InvalidRequest("there is no such agent", param="agent")
        await handoffs.move(conversation_id, _move(sent, me.name))
        return {}

    @router.post("/api/inbox/{conversation_id}/messages", status_code=201)
    async def say(conversation_id: str, me: Me, sent: Annotated[AgentMessageRequest, Depends(body(AgentMessageRequest))]) -> Message:
        """An answer, or a note that only agents see; the same client_message_id again is the same message."""
        said = Message(new_id("msg"), sent.kind, sent.text, str(sent.client_message_id), author=me.name, gold=sent.kind == "agent")
        return await handoffs.say(conversation_id, said)

    @router.post("/api/inbox/{conversation_id}/typing", status_code=202, dependencies=[empty])
    async def typing(conversation_id: str) -> dict[str, str]:
        if await inbox.status(conversation_id) is None:
            raise NotFound("no such conversation")
        handoffs.type(conversation_id)
        return {}

    @router.post("/api/inbox/{conversation_id}/suggest", dependencies=[empty])
    async def suggest(conversation_id: str) -> Response:
        """What the bot would answer, as `delta` events; `done` says what a customer's answer would have been held back for."""
        found = await inbox.story(conversation_id)

        async def frames() -> AsyncGenerator[bytes, None]:
            async for told in desk.draft(conversation_id, found.conversation.language):
                yield sse_event("delta", {"text": told}) if isinstance(told, str) else sse_event("done", {"violations": told})

        return EventStream(frames())


def _add_canned(router: APIRouter, inbox: Inbox) -> None:
    @router.get("/api/canned")
    async def canned() -> list[CannedAnswer]:
        return await inbox.canned()

    @router.post("/api/canned", status_code=201)
    async def add(sent: Annotated[CannedRequest, Depends(body(CannedRequest))]) -> CannedAnswer:
        return await _keep(CannedAnswer(new_id("can"), sent.title, sent.text))

    @router.post("/api/canned/{answer_id}")
    async def change(answer_id: str, sent: Annotated[CannedRequest, Depends(body(CannedRequest))]) -> CannedAnswer:
        return await _keep(CannedAnswer(answer_id, sent.title, sent.text))

    @router.delete("/api/canned/{answer_id}")
    async def forget(answer_id: str) -> dict[str, str]:
        await inbox.delete_canned(answer_id)
        return {}

    async def _keep(answer: CannedAnswer) -> CannedAnswer:
        await inbox.put_canned(answer)
        return answer


def _move(sent: MoveRequest, me: str) -> Move:
    match sent.action:
        case "take":
            return Move("human", "agent", me, ("bot", "waiting"), agent=me)
        case "release":
            return Move("waiting", "agent", me, ("human",), held_by=me)
        case "return":
            return Move("bot", "agent", me, ("waiting", "human"), held_by=me)
        case "resolve":
            return Move("resolved", "agent", me, ("waiting", "human"), held_by=me)
        case "assign":
            return Move("human", "agent", me, ("human",), agent=sent.agent, held_by=sent.instead_of)
