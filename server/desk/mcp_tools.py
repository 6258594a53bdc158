"""Tools of MCP servers, through the official SDK (`pip install kefu[mcp]`). The only importer of mcp."""

import asyncio
import logging
import subprocess
from collections.abc import Mapping
from contextlib import AsyncExitStack
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING

from server.desk.arguments import inlined, members
from server.desk.tool import UNAVAILABLE, Caller, DeskTool, ToolFailed, told
from server.desk.tools_file import BadTools, McpTerms

if TYPE_CHECKING:
    from mcp import Client
    from mcp_types import Tool

log = logging.getLogger("kefu.tools")

RETRY_S, READ_S = 10.0, 20.0
MAX_DESCRIPTION_CHARS = 1000


class McpServer:
    """One server's session, opened again when it is lost; `offered` are those of its tools that the tools file allows.

    Raises BadTools where the SDK is not installed.
    """

    def __init__(self, name: str, terms: McpTerms) -> None:
        if find_spec("mcp") is None:
            raise BadTools(f"mcp.{name} needs the MCP SDK: pip install 'kefu[mcp]'")
        self.name = name
        self.offered: list[DeskTool] = []
        self._terms = terms
        self._lost = asyncio.Event()

    async def hold(self) -> None:
        """Keep a session, for as long as the server runs."""
        while True:
            self._lost.clear()
            (failure,) = await asyncio.gather(self._session(), return_exceptions=True)
            self.offered = []
            if failure is not None:
                log.warning("MCP server %s: %s", self.name, type(failure).__name__)
                await asyncio.sleep(RETRY_S)

    async def connect(self, stack: AsyncExitStack) -> None:
        """Open a session for as long as the stack is open, and read what the server offers. Raises what the SDK raises."""
        from mcp import Client, StdioServerParameters, stdio_client
        from mcp.client.streamable_http import streamable_http_client

        if self._terms.url:
            from httpx2 import AsyncClient

            http = await stack.enter_async_context(AsyncClient(headers=self._terms.headers, trust_env=False, timeout=READ_S))
            transport = streamable_http_client(self._terms.url, http_client=http)
        else:
            command, *args = self._terms.command
            transport = stdio_client(StdioServerParameters(command=command, args=args, env=self._terms.env), errlog=subprocess.DEVNULL)
        client = await stack.enter_async_context(Client(transport, read_timeout_seconds=READ_S))
        listed = (await client.list_tools()).tools
        self.offered = [offer for tool in listed if tool.name in self._terms.tools and (offer := self._offer(tool, client))]

    def _offer(self, tool: "Tool", client: "Client") -> DeskTool | None:
        """Read-only is what both the server and the tools file call so."""
        terms = self._terms.tools[tool.name]
        said = (tool.description or tool.name)[:MAX_DESCRIPTION_CHARS]
        en, zh = (terms.description.en, terms.description.zh) if terms.description else (said, said)
        try:
            schema = members({"": inlined(tool.input_schema, tool.input_schema)}, "")
        except ValueError as error:
            log.warning("tool %s of %s is not offered: %s", tool.name, self.name, error)
            return None
        is_read_only = bool(terms.read_only and tool.annotations and tool.annotations.read_only_hint)
        return DeskTool(tool.name, terms, {"en": en, "zh": zh}, schema, is_read_only, partial(self._call, client, tool.name))

    async def _call(self, client: "Client", name: str, arguments: Mapping[str, object], caller: Caller) -> str:
        try:
            async with asyncio.timeout(self._terms.tools[name].timeout_s):
                result = await client.call_tool(name, dict(arguments))
        except Exception as error:
            self._lost.set()
            log.warning("tool %s: no answer: %s", name, type(error).__name__)
            raise ToolFailed(UNAVAILABLE) from error
        text = told("\n".join(part.text for part in result.content if part.type == "text"))
        if result.is_error:
            raise ToolFailed(text)
        return text

    async def _session(self) -> None:
        async with AsyncExitStack() as stack:
            await self.connect(stack)
            await self._lost.wait()
