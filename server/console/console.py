"""What every page of the console shares: who asks, whether they may, and how a page is drawn."""

import hashlib
import hmac
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Annotated
from urllib.parse import quote

from fastapi import Depends, Request, Response
from fastapi.responses import RedirectResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from feedback.accounts import Accounts, Agent
from feedback.audit import Audit
from feedback.credentials import Role
from server.console.nav import may, nav_for
from server.errors import Forbidden, NotJson, Unauthorized, row_for
from server.language import choose_language
from web import LANGUAGES, TEMPLATES, load_assets, load_strings

ROOT = "/console"
SIGN_IN, SIGN_OUT, PASSWORD = f"{ROOT}/sign_in", f"{ROOT}/sign_out", f"{ROOT}/password"
COOKIE, LANGUAGE_COOKIE, CSRF_HEADER = "kefu_agent", "kefu_language", "x-csrf-token"
YEAR_S = 365 * 24 * 3600
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
        "base-uri 'none'; form-action 'self'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "Cache-Control": "no-store",
}


async def _me(request: Request) -> Agent:
    agent: Agent = request.state.agent
    return agent


# Who asks, in a router that `require_role` guards.
Me = Annotated[Agent, Depends(_me)]


class NotSignedIn(Unauthorized):
    """Nobody, or somebody whose session has ended."""

    def __init__(self) -> None:
        super().__init__("sign in to the console first", code="not_signed_in")


class PasswordIsTemporary(Forbidden):
    """Until they choose one of their own, an agent can do nothing else."""

    def __init__(self) -> None:
        super().__init__("choose a password of your own first", code="password_is_temporary")


class Console:
    """`require_role` guards a route, `render` draws its page, `audit` remembers what was done."""

    def __init__(self, accounts: Accounts, audit: Audit) -> None:
        self.accounts = accounts
        self.audit = audit
        self._strings = load_strings()
        self._static = f"/static/{load_assets().version}"
        self._pages = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True)
        self._pages.filters.update(when=_when, iso=lambda at_ms: datetime.fromtimestamp(at_ms / 1000, UTC).isoformat())

    def require_role(self, role: Role) -> Callable[[Request], Awaitable[Agent]]:
        """The dependency of every route tagged `agent`, `editor` or `admin`; its value is the agent.

        A call that may change something must be JSON and carry the session's CSRF token. Raises NotSignedIn, Forbidden, NotJson.
        """

        async def agent(request: Request) -> Agent:
            token = request.cookies.get(COOKIE, "")
            found = await self.accounts.signed_in(token) if token else None
            if found is None:
                raise NotSignedIn
            request.state.agent = found
            if request.method not in ("GET", "HEAD"):
                _check_origin(request, token)
            if not may(found.role, role):
                raise Forbidden(f"this needs the role {role}", code="role_needed")
            if found.must_change_password and request.url.path not in (PASSWORD, SIGN_OUT):
                raise PasswordIsTemporary
            return found

        return agent

    def render(self, request: Request, template: str, status: int = 200, **context: object) -> Response:
        """A page of web/templates/console/, in the reader's language. It sees `agent` (or None), `nav`, `t`, `csrf` and the context."""
        asked = request.query_params.get("lang")
        language = choose_language(asked or request.cookies.get(LANGUAGE_COOKIE), request.headers.get("accept-language", ""))
        other = next(each for each in LANGUAGES if each != language)
        t = self._strings[language]
        agent: Agent | None = getattr(request.state, "agent", None)
        page = self._pages.get_template(f"console/{template}").render(
            t=t,
            problems={key: words for key, words in t.items() if key.startswith(("console_problem_", "console_inbox_", "console_check_"))},
            language=language,
            other={**self._strings[other], "href": f"?{request.url.include_query_params(lang=other).query}"},
            static=self._static,
            agent=agent,
            nav=nav_for(agent.role) if agent and not agent.must_change_password else [],
            path=request.url.path,
            csrf=csrf_token(request.cookies.get(COOKIE, "")) if agent else "",
            **context,
        )
        response = Response(page, status, HEADERS, "text/html; charset=utf-8")
        if asked in LANGUAGES:
            response.set_cookie(
                LANGUAGE_COOKIE, asked, max_age=YEAR_S, path=ROOT, secure=is_https(request), httponly=True, samesite="strict"
            )
        return response

    def refusal(self, request: Request, error: Exception) -> Response | None:
        """The page that a person sees instead of an error; None when it is not a person who asks for a page of the console."""
        path, query = request.url.path, request.url.query
        is_page = request.method == "GET" and "text/html" in request.headers.get("accept", "")
        if not is_page or not f"{path}/".startswith(f"{ROOT}/"):
            return None
        if isinstance(error, NotSignedIn):
            return RedirectResponse(f"{SIGN_IN}?next={quote(f'{path}?{query}' if query else path)}", 303)
        if isinstance(error, PasswordIsTemporary):
            return RedirectResponse(PASSWORD, 303)
        status = int(getattr(error, "status_code", 0)) or row_for(error).status
        return self.render(request, "refusal.html", status, kind={403: "role", 404: "missing"}.get(status, "failed"))


def csrf_token(token: str) -> str:
    """What a page of this session must send along: only who holds the cookie's token can compute it."""
    return hmac.new(token.encode("utf-8", "surrogatepass"), b"kefu.console.csrf", hashlib.sha256).hexdigest()


def is_https(request: Request) -> bool:
    """Also behind a proxy. Whoever forges the header only keeps their own cookie from coming back."""
    return request.url.scheme == "https" or request.headers.get("x-forwarded-proto") == "https"


def _check_origin(request: Request, token: str) -> None:
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise NotJson("the body must be sent as application/json")
    presented = request.headers.get(CSRF_HEADER, "").encode("utf-8", "surrogatepass")
    if not hmac.compare_digest(csrf_token(token).encode(), presented):
        raise Forbidden(f"this call needs the page's token in {CSRF_HEADER}", code="csrf")


def _when(at_ms: int) -> str:
    """A time as the clock on this machine's wall shows it."""
    return datetime.fromtimestamp(at_ms / 1000).astimezone().strftime("%Y-%m-%d %H:%M")
