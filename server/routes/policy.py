"""The editors' page about the policy: what is in force, what a change would do, and every version before."""

import asyncio
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response

from backends.protocol import EngineError
from feedback.database import RecordUnavailable
from feedback.knowledge import Outdated
from server.body import body
from server.chat.service import ChatMessage, ChatService
from server.console.console import ROOT, Console, Me
from server.desk.guard import Noted, review
from server.desk.knowledge import DeskKnowledge
from server.desk.policy_file import parse_policy
from server.desk.policy_set import MUST_SAY_NO, judge, read_lines
from server.desk.policy_store import PolicyStore
from server.desk.trial import answer
from server.errors import NotFound
from server.schema.console import PolicyRequest
from server.settings import DeskSettings, Settings

Sent = Annotated[PolicyRequest, Depends(body(PolicyRequest))]


def policy_router(console: Console, settings: Settings, knowledge: DeskKnowledge, chat: ChatService) -> APIRouter:
    """Routes under /console/policy."""
    router = APIRouter(prefix="/console", tags=["editor"], include_in_schema=False, dependencies=[Depends(console.require_role("editor"))])
    _add_page(router, console, PolicyStore(settings), knowledge)
    _add_trying(router, settings.desk, knowledge, chat)
    return router


def _add_page(router: APIRouter, console: Console, store: PolicyStore, knowledge: DeskKnowledge) -> None:
    @router.get("/policy")
    def page(request: Request, version: Annotated[str, Query(pattern="^([0-9a-f]{64})?$")] = "") -> Response:
        """With `version`, the text to edit is a saved one."""
        path = store.file(version) if version else store.path
        if not path.is_file():
            raise NotFound("there is no such version")
        text, saved, in_force = path.read_text("utf-8"), store.saved(), knowledge.terms["en"].version
        return console.render(request, "policy.html", text=text, chosen=version, saved=saved, in_force=in_force, file=store.path)

    @router.post("/policy")
    async def save(me: Me, sent: Sent) -> dict[str, str]:
        if sent.edited != knowledge.terms["en"].version:
            raise Outdated("somebody else has put a policy in force since this one was opened")
        try:
            terms = await asyncio.to_thread(store.save, sent.content)
        except OSError as error:
            raise RecordUnavailable("the policy cannot be written") from error
        knowledge.use(terms)
        await console.audit.write(me.name, "policy_saved", terms["en"].version)
        return {"location": f"{ROOT}/policy"}


def _add_trying(router: APIRouter, settings: DeskSettings, knowledge: DeskKnowledge, chat: ChatService) -> None:
    lines = read_lines(MUST_SAY_NO)

    @router.post("/policy/check")
    async def check(sent: Sent) -> dict[str, str | Noted]:
        """What the model would be told under this policy, and what is wrong with the answer."""
        policy = await knowledge.preview(sent.language, sent.question, parse_policy(sent.content.encode())[sent.language])
        return {"violations": review(sent.answer, policy.evidence([sent.question]), policy.rules, sent.language), "system": policy.system}

    @router.post("/policy/test")
    async def test(sent: Sent) -> dict[str, object]:
        """Put one line of the test set to the model under this policy."""
        line, terms, said = lines[sent.test % len(lines)], parse_policy(sent.content.encode()), list[ChatMessage]()
        try:
            for question in line.ask:
                said.append(ChatMessage("user", question))
                policy = await knowledge.preview(line.language, question, terms[line.language])
                said.append(ChatMessage("assistant", await answer(chat, settings, policy, said)))
        except EngineError as error:
            return {"asked": line.ask[-1], "answer": "", "faults": [f"no answer: {error}"], "total": len(lines)}
        told = said[-1].content
        return {"asked": line.ask[-1], "answer": told, "faults": judge(line, told), "total": len(lines)}
