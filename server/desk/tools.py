"""The desk's tools: what the model may call for a customer, what asks for a yes first, and what comes of a call."""

import asyncio
import json
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import httpx

from backends.mini.shop import Language
from feedback.calls import Call, Calls, CallStatus
from server.chat.service import ChatMessage
from server.chat.tools import Tool, ToolCall, ToolUse
from server.desk.arguments import members, mismatch
from server.desk.http_tools import http_tool, make_client
from server.desk.mcp_tools import McpServer
from server.desk.tool import UNAVAILABLE, Caller, DeskTool, ToolFailed
from server.desk.tools_file import ToolsFile, filled, localized, plain

log = logging.getLogger("kefu.tools")

MAX_CALLS = 4
MAX_ARGUMENT_CHARS = 2000
# What the customer's button says, as kefu-mini was trained to hear it.
YES: dict[Language, str] = {"en": "Yes, please do it.", "zh": "好的，请办理。"}
NO: dict[Language, str] = {"en": "No, leave it as it is.", "zh": "不用了，保持原样。"}
ASK: dict[Language, str] = {"en": "Shall I go ahead? {what}: {values}", "zh": "要为您办理吗？{what}：{values}"}
# What is said to a no.
KEPT: dict[Language, str] = {
    "en": "All right, I have left everything as it is. Is there anything else I can do?",
    "zh": "好的，我没有做任何改动。还有什么可以帮您？",
}
# In the place of an answer that the model could not give.
OUTCOME: dict[tuple[Language, bool], str] = {
    ("en", True): "That is done.",
    ("en", False): "I'm sorry, I could not get that confirmed. Please ask a person from our team to look at it.",
    ("zh", True): "已经办好了。",
    ("zh", False): "很抱歉，没能确认是否办成。请联系我们的人工客服查看。",
}
SIGN_IN = '{"error": "the customer is not signed in; ask them to sign in on the site first"}'


@dataclass(frozen=True, slots=True)
class Confirm:
    """What waits for the customer's yes: the call's id, its tool, and the arguments with the names that they know them by."""

    call_id: str
    tool: str
    arguments: tuple[tuple[str, str], ...]


class DeskTools:
    """All tools of a tools file. MCP servers come and go; theirs are there while they are."""

    def __init__(
        self,
        file: ToolsFile,
        calls: Calls,
        customer_of: Callable[[str], tuple[str, str]],
        mounts: Mapping[str, httpx.AsyncBaseTransport],
    ) -> None:
        """`customer_of` tells a visitor's site and verified customer id, empty ones for a stranger; `mounts`: hosts in this process."""
        self.file = file
        self.calls = calls
        self._customer_of = customer_of
        self._client = make_client(mounts)
        self._declared = [http_tool(name, terms, self._client) for name, terms in file.tools.items()]
        self._servers = [McpServer(name, terms) for name, terms in file.mcp.items()]

    async def run(self) -> None:
        """Keep the sessions, until this is cancelled."""
        async with self._client:
            await asyncio.gather(*(server.hold() for server in self._servers), asyncio.Event().wait())

    def of(self, visitor_id: str, language: Language) -> "Toolbox":
        """What this visitor's conversation has now."""
        tools = (*self._declared, *(tool for server in self._servers for tool in server.offered))
        return Toolbox({tool.name: tool for tool in tools}, Caller(language, *self._customer_of(visitor_id)))


class Toolbox:
    """The tools as one customer may use them, in their language."""

    def __init__(self, tools: Mapping[str, DeskTool], caller: Caller) -> None:
        self._tools = tools
        self._caller = caller
        self.offered = tuple(Tool(tool.name, tool.definition(caller.language)) for tool in tools.values())

    def use(self, calls: Sequence[Call]) -> ToolUse:
        """One call at a time, until there were enough."""
        return ToolUse(self.offered, "auto" if len(calls) < MAX_CALLS else "none", is_parallel=False)

    def asks_first(self, call: Call) -> bool:
        """Whether it changes something. One that cannot be made at all does not: the model is told why."""
        tool = self._tools.get(call.name)
        return tool is not None and not tool.is_read_only and not self._wrong(call)

    def question(self, call: Call) -> str:
        """What will be done, in the server's words, with the values that it will be done with."""
        tool, language = self._tools[call.name], self._caller.language
        arguments = json.loads(call.arguments)
        if tool.terms.confirm:
            return filled(getattr(tool.terms.confirm, language), defaultdict(str, arguments))
        values = (f"{name} {plain(value)}" for name, value in self._labelled(call))
        return ASK[language].format(what=tool.description[language], values=", ".join(values))

    def confirm(self, call: Call) -> Confirm:
        return Confirm(call.id, call.name, tuple(self._labelled(call)))

    def _labelled(self, call: Call) -> list[tuple[str, str]]:
        """The arguments as a customer reads them."""
        known = members(localized(self._tools[call.name].schema, self._caller.language)) if call.name in self._tools else {}
        names = {name: members(known, name).get("description") or name for name in known}
        return [(str(names.get(name, name)), plain(value)) for name, value in json.loads(call.arguments).items()]

    async def look_up(self, call: Call) -> Call:
        """Make a call that changes nothing, or say why it cannot be made. Raises PermissionError for any other."""
        if self.asks_first(call):
            raise PermissionError(f"{call.name} needs the customer's yes")
        return await self._make(call)

    async def carry_out(self, call: Call) -> Call:
        """Make a call that the customer has confirmed."""
        return await self._make(call)

    async def _make(self, call: Call) -> Call:
        began = time.monotonic()
        status: CallStatus = "done"
        try:
            if wrong := self._wrong(call):
                raise ToolFailed(wrong)
            tool = self._tools[call.name]
            fixed = {name: filled(text, self._caller.values) for name, text in tool.terms.fill.items()}
            result = await tool.run(json.loads(call.arguments) | fixed, self._caller)
        except ToolFailed as failure:
            status, result = "failed", str(failure)
        duration_ms = (time.monotonic() - began) * 1000
        log.info("tool %s: %s in %.0f ms", call.name, status, duration_ms)
        return replace(call, status=status, result=result, duration_ms=duration_ms)

    def _wrong(self, call: Call) -> str:
        """Why it cannot be made, as the model is told; empty when it can."""
        if (tool := self._tools.get(call.name)) is None:
            return UNAVAILABLE
        too_long = "arguments are too long" if len(call.arguments) > MAX_ARGUMENT_CHARS else ""
        if reason := too_long or mismatch(json.loads(call.arguments), tool.asked):
            return json.dumps({"error": reason})
        return SIGN_IN if tool.terms.needs_customer and not self._caller.customer_id else ""


def steps(calls: Sequence[Call]) -> tuple[ChatMessage, ...]:
    """Calls and their results as the model reads them: data of the role `tool`."""
    return tuple(
        message
        for call in calls
        for message in (
            ChatMessage("assistant", "", (ToolCall(call.id, call.name, call.arguments),)),
            ChatMessage("tool", call.result, (), call.id),
        )
    )
