"""The pages people open, and their styles and scripts."""

from hashlib import sha256

from fastapi import APIRouter, Request, Response
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from server.errors import NotFound
from server.language import choose_language
from web import LANGUAGES, TEMPLATES, Assets, load_assets, load_strings

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-src {frames}; frame-ancestors {ancestors}; require-trusted-types-for 'script'; trusted-types 'none'"
)
PAGE_HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY.format(frames="'none'", ancestors="'none'"),
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=(), clipboard-write=(self)",
    "Cache-Control": "no-cache",
    "Vary": "Accept-Language",
}
HTML = "text/html; charset=utf-8"
NO_SITE = {"id": "", "origins": [], "title": ""}
IMMUTABLE = {"Cache-Control": "public, max-age=31536000, immutable"}


def pages_router() -> APIRouter:
    """Serve `/` in the reader's language, and `/static/{version}/...` from memory; no path reaches the file system."""
    router = APIRouter()
    assets = load_assets()
    pages = Pages(assets)

    @router.get("/", tags=["public"], include_in_schema=False)
    def chat(request: Request) -> Response:
        page = pages.render("chat.html", pages.language(request), site=NO_SITE)
        return respond(request, page, HTML, PAGE_HEADERS)

    @router.get("/static/{version}/{name:path}", tags=["public"], include_in_schema=False)
    def static(request: Request, version: str, name: str) -> Response:
        file = assets.files.get(name) if version == assets.version else None
        if file is None:
            raise NotFound("no such file")
        return respond(request, file.content, file.media_type, IMMUTABLE)

    return router


class Pages:
    """The templates, in every language."""

    def __init__(self, assets: Assets) -> None:
        environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True)
        self._get_template = environment.get_template
        self._words = {
            language: {key: said for key, said in strings.items() if not key.startswith("console_")}
            for language, strings in load_strings().items()
        }
        self._static = f"/static/{assets.version}"

    def language(self, request: Request, default: str | None = None) -> str:
        """The language asked for, else `default`, else one that the browser accepts."""
        return choose_language(request.query_params.get("lang") or default, request.headers.get("accept-language", ""))

    def render(self, template: str, language: str, **values: object) -> bytes:
        """A whole page. Templates see the words of `language` as `t`, and where the page's files are as `static`."""
        others = [{"language": each, **self._words[each]} for each in LANGUAGES if each != language]
        known = {"t": self._words[language], "language": language, "others": others, "static": self._static}
        return self._get_template(template).render(**known, **values).encode()


def respond(request: Request, content: bytes, media_type: str, headers: dict[str, str]) -> Response:
    """What was made or read, or 304 where the browser has it already."""
    etag = f'"{sha256(content).hexdigest()[:20]}"'
    sent = {**headers, "ETag": etag}
    if etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=sent)
    return Response(content, media_type=media_type, headers=sent)
