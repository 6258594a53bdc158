"""Tools over HTTP: one request to a host of the list, no redirects, nothing from the environment, and a bounded answer."""

import asyncio
import json
import logging
from collections.abc import Mapping
from functools import partial
from urllib.parse import urlencode

import httpx

from server.desk.policy_file import Said
from server.desk.tool import MAX_RESULT_BYTES, TOO_LONG, UNAVAILABLE, Caller, DeskTool, ToolFailed, told
from server.desk.tools_file import PLACEHOLDER, HttpTerms, address, plain

log = logging.getLogger("kefu.tools")

MAX_S = 20
# What is refused with one of these is told with its reason; the others are between that server and us.
TOLD = (400, 404, 409, 410, 422)


def http_tool(name: str, terms: HttpTerms, client: httpx.AsyncClient) -> DeskTool:
    """The tool that makes this request."""
    said = terms.description or Said(en=name, zh=name)
    return DeskTool(name, terms, {"en": said.en, "zh": said.zh}, terms.arguments, terms.is_read_only, partial(_call, client, name, terms))


def make_client(mounts: Mapping[str, httpx.AsyncBaseTransport]) -> httpx.AsyncClient:
    """`mounts` are hosts inside this process."""
    return httpx.AsyncClient(follow_redirects=False, trust_env=False, timeout=MAX_S, mounts=mounts)


async def _call(client: httpx.AsyncClient, name: str, terms: HttpTerms, arguments: Mapping[str, object], caller: Caller) -> str:
    try:
        url = address(terms.url, {**arguments, **caller.values})
    except ValueError as error:
        raise ToolFailed(json.dumps({"error": str(error)})) from error
    in_url, in_query = PLACEHOLDER.findall(terms.url), terms.query or ()
    query = urlencode({each: plain(value) for each, value in arguments.items() if each in in_query and each not in in_url})
    body = {each: value for each, value in arguments.items() if each not in in_query and each not in in_url}
    url += ("&" if "?" in url else "?") + query if query else ""
    headers = {"accept": "application/json", "accept-encoding": "identity", "accept-language": caller.language, **terms.headers}
    try:
        async with (
            asyncio.timeout(terms.timeout_s),
            client.stream(terms.method, url, headers=headers, json=body or None) as reply,
        ):
            content = await _read(reply)
    except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
        log.warning("tool %s: no answer: %s", name, type(error).__name__)
        raise ToolFailed(UNAVAILABLE) from error
    if reply.is_success:
        return told(content)
    log.warning("tool %s: status %d", name, reply.status_code)
    raise ToolFailed(told(content) if reply.status_code in TOLD and content.lstrip().startswith("{") else UNAVAILABLE)


async def _read(reply: httpx.Response) -> str:
    content = b""
    async for piece in reply.aiter_bytes(4096):
        content += piece
        if len(content) > MAX_RESULT_BYTES:
            raise ToolFailed(TOO_LONG)
    return content.decode(errors="replace")
