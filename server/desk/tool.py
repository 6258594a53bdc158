"""One tool of the desk, wherever it runs: what the model is shown of it, on whose behalf it is called, and what a call may end in."""

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from backends.mini.shop import Language
from server.desk.arguments import JsonObject, members
from server.desk.tools_file import Terms, localized

MAX_RESULT_BYTES = 16 * 1024
UNAVAILABLE = '{"error": "unavailable"}'
TOO_LONG = '{"error": "the result is too long"}'


class ToolFailed(Exception):
    """The message is what the model is told, as data: a JSON object."""


@dataclass(frozen=True, slots=True)
class Caller:
    """On whose behalf a tool is called: `customer_id` is what the site's server has signed, empty for a stranger."""

    language: Language
    site: str = ""
    customer_id: str = ""

    @property
    def values(self) -> dict[str, object]:
        return {"customer.id": self.customer_id, "customer.site": self.site}


@dataclass(frozen=True, slots=True)
class DeskTool:
    """`schema` is all that it takes; `run` is given all of that, and raises ToolFailed."""

    name: str
    terms: Terms
    description: Mapping[Language, str]
    schema: JsonObject
    is_read_only: bool
    run: Callable[[Mapping[str, object], Caller], Awaitable[str]]

    @property
    def asked(self) -> JsonObject:
        """The schema of what the model gives: what the server fills in is left out."""
        required = self.schema.get("required")
        kept = {name: each for name, each in members(self.schema).items() if name not in self.terms.fill}
        needed = [name for name in required if name not in self.terms.fill] if isinstance(required, list) else []
        return {"type": "object"} | self.schema | {"properties": kept, "required": needed, "additionalProperties": False}

    def definition(self, language: Language) -> str:
        shown = {name: self.asked[name] for name in ("type", "properties", "required")}
        function = {"name": self.name, "description": self.description[language], "parameters": localized(shown, language)}
        return json.dumps({"type": "function", "function": function}, ensure_ascii=False)


def told(content: str) -> str:
    """A result as the model reads it: JSON with blanks after its commas, other text as it stands. Raises ToolFailed for a long one."""
    if len(content.encode()) > MAX_RESULT_BYTES:
        raise ToolFailed(TOO_LONG)
    try:
        return json.dumps(json.loads(content), ensure_ascii=False, allow_nan=False)
    except (ValueError, RecursionError):
        return content.strip()
