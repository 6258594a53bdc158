"""What the bot may call for a customer, for editors: where, what asks first, and what came of it. The file itself lies on the server."""

from fastapi import APIRouter, Depends, Request, Response

from feedback.record import now_ms
from server.console.console import Console
from server.desk.tools import DeskTools
from server.desk.tools_file import listed

DAYS = 30


def tools_router(console: Console, tools: DeskTools | None) -> APIRouter:
    """/console/tools."""
    router = APIRouter(prefix="/console", tags=["editor"], include_in_schema=False, dependencies=[Depends(console.require_role("editor"))])

    @router.get("/tools")
    async def overview(request: Request) -> Response:
        counts = await tools.calls.counts(now_ms() - DAYS * 24 * 3_600_000) if tools else {}
        return console.render(request, "tools.html", tools=list(listed(tools.file)) if tools else [], counts=counts, days=DAYS)

    return router
