"""The editors' pages about knowledge: articles, what a question finds, what customers asked in vain."""

import asyncio
from functools import partial
from typing import Annotated
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Path, Query, Request, Response

from feedback.gaps import Gap, Gaps
from feedback.importers import MAX_BYTES, MAX_TITLE_CHARS, READERS, as_markdown, by_hand, read
from feedback.knowledge import BY_HAND, Knowledge
from feedback.retrieval import FITS
from server.body import body
from server.console.console import ROOT, Console, Me
from server.desk.knowledge import DeskKnowledge
from server.errors import BodyTooLarge
from server.schema.console import ArticleRequest, ImportRequest
from server.schema.desk import EmptyRequest

HOME = f"{ROOT}/knowledge"
MAX_LISTED = 200
NUM_FOUND = 8
ArticleId = Annotated[str, Path(pattern=r"^\w{1,40}$")]
Words = Annotated[str, Query(max_length=4000, pattern=r"^[^\x00]*$")]


def knowledge_router(console: Console, knowledge: Knowledge, gaps: Gaps, desk: DeskKnowledge, max_body_bytes: int) -> APIRouter:
    """Routes under /console/knowledge. A file comes as base64 in a body of at most `max_body_bytes`."""
    router = APIRouter(prefix="/console", tags=["editor"], include_in_schema=False, dependencies=[Depends(console.require_role("editor"))])
    _add_list(router, console, knowledge, desk, min(MAX_BYTES, (max_body_bytes - 1024) * 3 // 4))
    _add_articles(router, console, knowledge, gaps)
    return router


def _add_list(router: APIRouter, console: Console, knowledge: Knowledge, desk: DeskKnowledge, max_file_bytes: int) -> None:
    @router.get("/knowledge")
    async def articles(request: Request, q: Words = "", ask: Words = "") -> Response:
        """`q` is looked for in titles and files; `ask` is put to the search that answers rest on."""
        everything, wanted = await knowledge.articles(), q.strip().casefold()
        listed = [one for one in everything if wanted in one.title.casefold() or wanted in one.source.casefold()]
        found = await desk.look(ask, NUM_FOUND) if ask.strip() else []
        fixed = {"num_articles": len(everything), "max_listed": MAX_LISTED, "max_file_bytes": max_file_bytes, "fits": FITS}
        kinds = ",".join(sorted(READERS))
        return console.render(
            request, "knowledge.html", q=q, ask=ask, articles=listed, found=found, kinds=kinds, by_hand=BY_HAND, fixed=fixed
        )

    @router.post("/knowledge/import")
    async def import_(me: Me, sent: Annotated[ImportRequest, Depends(body(ImportRequest))]) -> dict[str, str]:
        """What came from a file of this name before is replaced."""
        if len(sent.content) > max_file_bytes:
            raise BodyTooLarge("the file is too large")
        tally = await knowledge.put(sent.name, await asyncio.to_thread(read, sent.name, sent.content))
        counts = {"new": tally.num_new, "changed": tally.num_changed, "same": tally.num_same, "gone": tally.num_gone}
        await console.audit.write(me.name, "knowledge_imported", sent.name, dict(counts))
        return {"location": f"{HOME}?{urlencode({'q': sent.name})}"}


def _add_articles(router: APIRouter, console: Console, knowledge: Knowledge, gaps: Gaps) -> None:
    @router.get("/knowledge/gaps")
    async def suggestions(request: Request) -> Response:
        return console.render(request, "gaps.html", asked=await gaps.largest(), told=await gaps.told())

    @router.get("/knowledge/new")
    async def new(request: Request, gap: Annotated[str, Query(max_length=40)] = "") -> Response:
        """An empty form, or one that begins with what a gap is about."""
        suggested = [*await gaps.told(), *await gaps.largest()] if gap else []
        begun = next((each for each in suggested if each.id == gap), Gap("", ()))
        title = " ".join("".join(begun.questions[:1]).split())[:MAX_TITLE_CHARS]
        return console.render(request, "article.html", article=None, passages=[], title=title, text=begun.answer, questions=begun.questions)

    @router.get("/knowledge/{article_id}")
    async def article(request: Request, article_id: ArticleId) -> Response:
        found, passages = await knowledge.article(article_id)
        text, asked = as_markdown(found.title, passages), [question for each in passages for question in each.questions]
        page = partial(console.render, request, "article.html", article=found, passages=passages, by_hand=BY_HAND)
        return page(title=found.title, text=text, questions=asked)

    @router.post("/knowledge")
    async def save(me: Me, sent: Annotated[ArticleRequest, Depends(body(ArticleRequest))]) -> dict[str, str]:
        draft = await asyncio.to_thread(by_hand, sent.title, sent.text, sent.questions.splitlines())
        saved_id = await knowledge.save(draft, sent.replaces, sent.version)
        await console.audit.write(me.name, "article_saved", saved_id, {"replaces": sent.replaces})
        return {"location": f"{HOME}/{saved_id}"}

    @router.post("/knowledge/{article_id}/delete", dependencies=[Depends(body(EmptyRequest))])
    async def delete(me: Me, article_id: ArticleId) -> dict[str, str]:
        """What was cited from it stays readable in its conversations."""
        await knowledge.remove(article_id)
        await console.audit.write(me.name, "article_deleted", article_id)
        return {"location": HOME}
