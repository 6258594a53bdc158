"""The widget: the script for other people's pages, the chat page in its frame, and a page that shows how it looks."""

import base64
import hashlib
import json
from collections.abc import Mapping

from fastapi import APIRouter, Request, Response

from server.errors import NotFound
from server.routes.pages import CONTENT_SECURITY_POLICY, HTML, IMMUTABLE, PAGE_HEADERS, Pages, respond
from server.settings import SiteSettings
from server.theme import stylesheet
from web import ROOT, StaticFile, load_assets

DEMO = "demo"
SHARED = {"Cross-Origin-Resource-Policy": "cross-origin", "Access-Control-Allow-Origin": "*"}
FRESH = {**SHARED, "Cache-Control": "no-cache"}


def widget_router(sites: Mapping[str, SiteSettings]) -> APIRouter:
    """Serve the widget to the pages of these sites, and to nobody else's."""
    router = APIRouter()
    assets = load_assets()
    pages = Pages(assets)
    # The release before stays beside the current one as widget-VERSION.js: a page that pins it works on.
    scripts = {version_of(file): file for name, file in assets.files.items() if name.startswith("widget")}

    @router.get("/widget.js", tags=["public"], include_in_schema=False)
    def newest(request: Request) -> Response:
        file = assets.files["widget.js"]
        return respond(request, file.content, file.media_type, FRESH)

    @router.get("/widget/{version}.js", tags=["public"], include_in_schema=False)
    def pinned(request: Request, version: str) -> Response:
        if version not in scripts:
            raise NotFound("no such version of the widget")
        return respond(request, scripts[version].content, scripts[version].media_type, {**SHARED, **IMMUTABLE})

    @router.get("/embed", tags=["public"], include_in_schema=False)
    def embed(request: Request, site: str = "") -> Response:
        if site not in sites:
            return _unknown(pages, request)
        settings = sites[site]
        origins = list(settings.origins)
        headers = _headers(ancestors=" ".join(origins) or "'self'")
        known = {"id": site, "origins": origins, "title": settings.title}
        page = pages.render("chat.html", pages.language(request, settings.language), site=known)
        return respond(request, page, HTML, headers)

    @router.get("/embed/{site}.css", tags=["public"], include_in_schema=False)
    def theme(request: Request, site: str) -> Response:
        if site not in sites:
            raise NotFound("no such site")
        return respond(request, stylesheet(sites[site].accent), "text/css; charset=utf-8", FRESH)

    if DEMO in sites:
        _add_demo(router, pages, assets.files["widget.js"], sites[DEMO])
    return router


def version_of(script: StaticFile) -> str:
    """The name that a pinned script goes by: the beginning of its hash."""
    return hashlib.sha256(script.content).hexdigest()[:16]


def integrity_of(script: StaticFile) -> str:
    """Its Subresource Integrity (W3C SRI, 3.1)."""
    return "sha384-" + base64.b64encode(hashlib.sha384(script.content).digest()).decode()


def _add_demo(router: APIRouter, pages: Pages, script: StaticFile, settings: SiteSettings) -> None:
    words = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in (ROOT / "i18n" / "demo").glob("*.json")}
    pinned = {"version": version_of(script), "integrity": integrity_of(script)}

    @router.get("/demo", tags=["public"], include_in_schema=False)
    def demo(request: Request) -> Response:
        language, host = pages.language(request, settings.language), str(request.base_url).rstrip("/")
        page = pages.render("demo.html", language, d=words.get(language, words["en"]), host=host, **pinned)
        return respond(request, page, HTML, _headers(frames="'self'"))


def _unknown(pages: Pages, request: Request) -> Response:
    """Seen by whoever is just putting the widget into a page, in its frame, on whatever page that is."""
    page = pages.render("unknown_site.html", pages.language(request))
    return Response(page, 404, _headers(ancestors="*"), HTML)


def _headers(frames: str = "'none'", ancestors: str = "'none'") -> dict[str, str]:
    return {**PAGE_HEADERS, "Content-Security-Policy": CONTENT_SECURITY_POLICY.format(frames=frames, ancestors=ancestors)}
