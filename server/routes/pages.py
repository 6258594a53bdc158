"""The pages people open, and their styles and scripts."""

from hashlib import sha256

from fastapi import APIRouter, Request, Response
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from server.errors import NotFound
from server.language import choose_language
from web import LANGUAGES, TEMPLATES, Assets, load_assets, load_strings

PAGE_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=(), clipboard-write=(self)",
    "Cache-Control": "no-cache",
    "Vary": "Accept-Language",
}
IMMUTABLE = {"Cache-Control": "public, max-age=31536000, immutable"}


def pages_router() -> APIRouter:
    """Serve `/` in the reader's language, and `/static/{version}/...` from memory; no path reaches the file system."""
    router = APIRouter()
    assets = load_assets()
    pages = _render_all(assets)

    @router.get("/", tags=["public"], include_in_schema=False)
    def chat(request: Request) -> Response:
        language = choose_language(request.query_params.get("lang"), request.headers.get("accept-language", ""))
        return _respond(request, pages[language], "text/html; charset=utf-8", PAGE_HEADERS)

    @router.get("/static/{version}/{name:path}", tags=["public"], include_in_schema=False)
    def static(request: Request, version: str, name: str) -> Response:
        file = assets.files.get(name) if version == assets.version else None
        if file is None:
            raise NotFound("no such file")
        return _respond(request, file.content, file.media_type, IMMUTABLE)

    return router


def _render_all(assets: Assets) -> dict[str, bytes]:
    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    template = environment.get_template("chat.html")
    strings = load_strings()
    words = {language: {key: each for key, each in strings[language].items() if not key.startswith("console_")} for language in LANGUAGES}
    pages = {}
    for language in LANGUAGES:
        other = next(each for each in LANGUAGES if each != language)
        values = {"t": words[language], "language": language, "static": f"/static/{assets.version}"}
        pages[language] = template.render(**values, other={"language": other, **strings[other]}).encode()
    return pages


def _respond(request: Request, content: bytes, media_type: str, headers: dict[str, str]) -> Response:
    etag = f'"{sha256(content).hexdigest()[:20]}"'
    sent = {**headers, "ETag": etag}
    if etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=sent)
    return Response(content, media_type=media_type, headers=sent)
