"""The console: signing in and out, the conversations; agents, sites, the settings in force and the audit log for admins."""

import shlex
import time
from collections.abc import Callable
from datetime import date, datetime, timedelta
from hashlib import sha256
from typing import Annotated
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from fastapi.responses import JSONResponse, RedirectResponse

from feedback.accounts import SESSION_MS, Agent
from feedback.conversations import Conversations, Found, Search
from feedback.credentials import WrongPassword, fold, one_time_password
from server.body import body
from server.console.console import COOKIE, PASSWORD, ROOT, SIGN_IN, Console, is_https
from server.console.nav import RANK
from server.console.settings_view import shown_settings, toml_of_site
from server.errors import InvalidRequest
from server.limits import RateLimit, address_of
from server.schema.console import AgentRequest, Filters, PasswordRequest, SignInRequest
from server.settings import Settings

HOME = f"{ROOT}/conversations"
PAGE_ROWS = 50
DEEDS = {"add": "agent_added", "role": "role_changed", "password": "password_reset", "disable": "agent_disabled", "enable": "agent_enabled"}


class SignInLimits:
    """Guessing is slow, from one address and for one name. Who is attacked may have to wait half a minute too."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._addresses = RateLimit(per_minute=10, burst=20)
        self._names = RateLimit(per_minute=2, burst=10)

    def take(self, address: str, name: str) -> None:
        """Raises TooManyRequests."""
        self._addresses.take(address, self._clock())
        self._names.take(fold(name), self._clock())


def console_router(console: Console, conversations: Conversations, settings: Settings) -> APIRouter:
    """Routes under /console."""
    router = APIRouter(prefix="/console", include_in_schema=False)
    limits = SignInLimits()
    _add_sign_in(router, console, limits, first_command(settings))
    _add_own_account(router, console, limits)
    _add_conversations(router, console, conversations)
    _add_admin(router, console, settings)
    _add_agents(router, console)
    return router


def first_command(settings: Settings) -> str:
    """What to type while there is no agent."""
    is_default = settings.data_dir == Settings.model_fields["data_dir"].default
    return "kefu agent add NAME --role admin" + ("" if is_default else f" --data-dir {shlex.quote(str(settings.data_dir.absolute()))}")


def _add_sign_in(router: APIRouter, console: Console, limits: SignInLimits, command_for_first: str) -> None:
    @router.get("/sign_in", tags=["public"])
    async def sign_in_page(request: Request) -> Response:
        if await console.accounts.signed_in(request.cookies.get(COOKIE, "")):
            return RedirectResponse(_landing(request.query_params.get("next", "")), 303)
        command = "" if await console.accounts.agents() else command_for_first
        return console.render(request, "sign_in.html", command=command, next=request.query_params.get("next", ""))

    @router.post("/sign_in", tags=["public"])
    async def sign_in(request: Request, sent: Annotated[SignInRequest, Depends(body(SignInRequest))]) -> Response:
        limits.take(address_of(request), sent.name)
        try:
            agent, token = await console.accounts.sign_in(sent.name, sent.password)
        except WrongPassword:
            await console.audit.write("visitor", "sign_in_failed", sha256(fold(sent.name).encode()).hexdigest()[:16])
            raise
        await console.accounts.sign_out(request.cookies.get(COOKIE, ""))
        await console.audit.write(agent.name, "sign_in", agent.id)
        return _with_session(request, token, _landing(sent.next))


def _add_own_account(router: APIRouter, console: Console, limits: SignInLimits) -> None:
    agent = Annotated[Agent, Depends(console.require_role("agent"))]

    @router.get("", tags=["agent"])
    async def home(me: agent) -> Response:
        return RedirectResponse(HOME, 303)

    @router.post("/sign_out", tags=["agent"])
    async def sign_out(request: Request, me: agent) -> Response:
        await console.accounts.sign_out(request.cookies.get(COOKIE, ""))
        await console.audit.write(me.name, "sign_out", me.id)
        response = JSONResponse({"location": SIGN_IN})
        response.delete_cookie(COOKIE, path=ROOT)
        return response

    @router.get("/password", tags=["agent"])
    async def password_page(request: Request, me: agent) -> Response:
        return console.render(request, "password.html")

    @router.post("/password", tags=["agent"])
    async def password(request: Request, me: agent, sent: Annotated[PasswordRequest, Depends(body(PasswordRequest))]) -> Response:
        """Ends every session of this agent but the one that it opens."""
        limits.take(address_of(request), me.name)
        if not me.must_change_password:
            await console.accounts.sign_in(me.name, sent.current)
        await console.accounts.set_password(me.name, sent.password, must_change=False)
        await console.audit.write(me.name, "password_changed", me.id)
        _, token = await console.accounts.sign_in(me.name, sent.password)
        return _with_session(request, token, HOME)


def _add_conversations(router: APIRouter, console: Console, conversations: Conversations) -> None:
    agent = Annotated[Agent, Depends(console.require_role("agent"))]

    @router.get("/conversations", tags=["agent"])
    async def conversation_list(request: Request, me: agent, filters: Annotated[Filters, Query()]) -> Response:
        at_ms, _, last_id = (filters.before or "").partition(".")
        found = await conversations.search(_search(filters), (int(at_ms), last_id) if at_ms else None, PAGE_ROWS + 1)
        query = _query(filters, before=None)
        older = _query(filters, before=_cursor(found[PAGE_ROWS - 1])) if len(found) > PAGE_ROWS else ""
        return console.render(request, "conversations.html", filters=filters, found=found[:PAGE_ROWS], query=query, older=older)

    @router.get("/conversations/{conversation_id}", tags=["agent"])
    async def conversation(
        request: Request, me: agent, conversation_id: Annotated[str, Path(pattern=r"^\w{1,40}$")], filters: Annotated[Filters, Query()]
    ) -> Response:
        opened, turns = await conversations.whole(conversation_id)
        return console.render(request, "conversation.html", conversation=opened, turns=turns, query=_query(filters, filters.before))


def _add_admin(router: APIRouter, console: Console, settings: Settings) -> None:
    admin = Annotated[Agent, Depends(console.require_role("admin"))]

    @router.get("/settings", tags=["admin"])
    async def settings_page(request: Request, me: admin) -> Response:
        return console.render(request, "settings.html", settings=shown_settings(settings))

    @router.get("/sites", tags=["admin"])
    async def sites(request: Request, me: admin) -> Response:
        # The console may have a port of its own; customers come in by the server's.
        own = request.base_url.replace(port=settings.server.port) if settings.console.port else request.base_url
        shown = [(name, site, toml_of_site(name, site)) for name, site in settings.sites.items()]
        return console.render(request, "sites.html", sites=shown, server=str(own).rstrip("/"))

    @router.get("/audit", tags=["admin"])
    async def audit_page(request: Request, me: admin, before: Annotated[int | None, Query(ge=1, lt=2**31)] = None) -> Response:
        entries = await console.audit.page(before, PAGE_ROWS + 1)
        older = entries[PAGE_ROWS - 1].seq if len(entries) > PAGE_ROWS else None
        return console.render(request, "audit.html", entries=entries[:PAGE_ROWS], older=older)


def _add_agents(router: APIRouter, console: Console) -> None:
    admin = Annotated[Agent, Depends(console.require_role("admin"))]
    accounts = console.accounts

    @router.get("/agents", tags=["admin"])
    async def agents(request: Request, me: admin) -> Response:
        return console.render(request, "agents.html", agents=await accounts.agents(), roles=list(RANK))

    @router.post("/agents", tags=["admin"])
    async def change(me: admin, sent: Annotated[AgentRequest, Depends(body(AgentRequest))]) -> dict[str, str]:
        """Nobody may shut themselves out, so an admin is always left."""
        password = one_time_password() if sent.action in ("add", "password") else ""
        if fold(sent.name) == fold(me.name):
            raise InvalidRequest("ask another admin to change your own account", code="own_account")
        was = await (accounts.add(sent.name, sent.role, password, must_change=True) if sent.action == "add" else accounts.find(sent.name))
        if sent.action == "password":
            await accounts.set_password(was.name, password, must_change=True)
        elif sent.action == "role":
            await accounts.set_role(was.name, sent.role)
        elif sent.action != "add":
            await accounts.set_disabled(was.name, disabled=sent.action == "disable")
        detail: dict[str, object] = {"from": was.role, "to": sent.role} if sent.action == "role" else {"role": was.role}
        await console.audit.write(me.name, DEEDS[sent.action], was.id, detail)
        return {"name": was.name, "password": password} if password else {"location": f"{ROOT}/agents"}


def _with_session(request: Request, token: str, location: str) -> Response:
    response = JSONResponse({"location": location})
    attributes = {"max_age": SESSION_MS // 1000, "path": ROOT, "secure": is_https(request)}
    response.set_cookie(COOKIE, token, httponly=True, samesite="strict", **attributes)  # type: ignore[arg-type]
    return response


def _landing(wanted: str) -> str:
    """Where to go after signing in: a page of the console and nowhere else."""
    return wanted if wanted.startswith(f"{ROOT}/") and not wanted.startswith((SIGN_IN, PASSWORD)) else HOME


def _search(filters: Filters) -> Search:
    until = filters.until + timedelta(days=1) if filters.until else None
    times = {"since_ms": _midnight_ms(filters.since), "until_ms": _midnight_ms(until)}
    return Search(filters.q.strip(), filters.language, filters.thumb, filters.cited, **times)


def _midnight_ms(day: date | None) -> int | None:
    return None if day is None else int(datetime(day.year, day.month, day.day).astimezone().timestamp() * 1000)


def _query(filters: Filters, before: str | None) -> str:
    chosen = {**filters.model_dump(mode="json", exclude_none=True, exclude_defaults=True), "before": before}
    return urlencode({name: value for name, value in chosen.items() if value})


def _cursor(last: Found) -> str:
    return f"{last.created_at_ms}.{last.id}"
