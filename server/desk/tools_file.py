"""The tools file: what the bot may call, where, and with whose word. One TOML file a shop."""

import json
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args
from urllib.parse import quote, urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from backends.mini.shop import Language
from server.desk.arguments import JsonObject, inlined, members, schema_fault
from server.desk.policy_file import Said, sentences

DEMO_TOOLS = Path(__file__).parent / "demo" / "tools.toml"
PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
CUSTOMER = ("customer.id", "customer.site")
_SECRET = re.compile(r"\$\{ENV:(\w+)\}")
Method = Literal["GET", "POST", "PUT", "PATCH", "DELETE"]


class BadTools(Exception):
    """The tools file cannot be used; the message says why."""


def _with_secrets(text: str) -> str:
    for name in _SECRET.findall(text):
        if name not in os.environ:
            raise ValueError(f"there is no variable {name}")
    return _SECRET.sub(lambda match: os.environ[match[1]], text)


ToolName = Annotated[str, Field(pattern="^[A-Za-z][A-Za-z0-9_-]{0,63}$")]
Host = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]*(:\d{1,5})?$")]
Secrets = Annotated[dict[str, Annotated[str, AfterValidator(_with_secrets)]], Field(default_factory=dict, repr=False)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Terms(_Part):
    """Of every tool. `fill` names arguments that the server gives, which the model neither sees nor says; `confirm` asks for the yes."""

    description: Said | None = None
    confirm: Said | None = None
    read_only: bool | None = None
    fill: dict[str, str] = Field(default_factory=dict)
    timeout_s: float = Field(10.0, gt=0, le=20)
    url: str = ""

    @property
    def needs_customer(self) -> bool:
        return any(name in CUSTOMER for text in (self.url, *self.fill.values()) for name in PLACEHOLDER.findall(text))


class HttpTerms(Terms):
    """An HTTP request, spelled here or by an operation of an OpenAPI document (JSON) beside this file.

    Arguments go into the URL's `{}`, those of `query` (without it: all, of a GET or DELETE) behind it, the rest into a JSON body.
    """

    method: Method = "GET"
    headers: Secrets
    arguments: JsonObject = Field(default_factory=dict)
    query: list[str] | None = None
    openapi: str = ""
    operation: str = ""

    @property
    def is_read_only(self) -> bool:
        return self.method == "GET" if self.read_only is None else self.read_only


class McpTerms(_Part):
    """An MCP server: a command (stdio) or a URL (streamable HTTP), and those of its tools that may be called."""

    command: list[str] = Field(default_factory=list)
    env: Secrets
    url: str = ""
    headers: Secrets
    tools: Annotated[dict[ToolName, Terms], Field(min_length=1)]


class ToolsFile(_Part):
    """Nothing but `hosts` is ever asked."""

    hosts: list[Host] = Field(default_factory=list)
    tools: dict[ToolName, HttpTerms] = Field(default_factory=dict)
    mcp: dict[ToolName, McpTerms] = Field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Listed:
    """One tool as people see it: where it is called, whether that only reads, and whether the customer must be known."""

    name: str
    where: str
    description: Said | None
    is_read_only: bool
    needs_customer: bool


def listed(file: ToolsFile) -> Iterator[Listed]:
    """Every tool that the file declares, those of MCP servers included, whether the server is up or not."""
    for name, http in file.tools.items():
        yield Listed(name, f"{http.method} {http.url}", http.description, http.is_read_only, http.needs_customer)
    for server in file.mcp.values():
        for name, terms in server.tools.items():
            where = server.url or " ".join(server.command)
            yield Listed(name, where, terms.description, bool(terms.read_only), terms.needs_customer)


def load_tools(path: Path) -> ToolsFile:
    """Read a tools file, operations of OpenAPI documents in the place where they are named. Raises BadTools."""
    try:
        text = path.read_text("utf-8")
        file = ToolsFile.model_validate(tomllib.loads(text))
        tools = {name: _checked(name, terms, file.hosts, path.parent) for name, terms in file.tools.items()}
        for name, server in file.mcp.items():
            if bool(server.command) == bool(server.url):
                raise ValueError(f"mcp.{name} needs a command or a url, one of them")
            if server.url:
                _check_url(f"mcp.{name}", server.url, file.hosts)
        names = [*tools, *(tool for server in file.mcp.values() for tool in server.tools)]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"{twice[0]} is the name of two tools")
    except OSError as error:
        raise BadTools(f"{error.filename} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        raise BadTools("\n".join(sentences(error, text, path.name))) from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise BadTools(f"{path.name}: {error}") from error
    return file.model_copy(update={"tools": tools})


def localized(schema: object, language: Language) -> object:
    """The schema with each description that is in both languages in this one."""
    if isinstance(schema, list):
        return [localized(each, language) for each in schema]
    if not isinstance(schema, dict):
        return schema
    is_said = schema.keys() == {"en", "zh"} and all(isinstance(each, str) for each in schema.values())
    return schema[language] if is_said else {name: localized(each, language) for name, each in schema.items()}


def filled(template: str, values: Mapping[str, object]) -> str:
    """The template with its values as text."""
    return PLACEHOLDER.sub(lambda match: plain(values[match[1]]), template)


def address(template: str, values: Mapping[str, object]) -> str:
    """The template with its values percent-encoded. Raises ValueError for a value that would move the path."""
    encoded = {name: quote(plain(value), safe="") for name, value in values.items()}
    if moves := [name for name in PLACEHOLDER.findall(template) if encoded[name] in ("", ".", "..")]:
        raise ValueError(f"{moves[0]} cannot stand in an address")
    return filled(template, encoded)


def plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _checked(name: str, terms: HttpTerms, hosts: list[str], folder: Path) -> HttpTerms:
    """The request as it is made. Raises ValueError, and what a document of another shape leads to."""
    where = f"tools.{name}"
    if terms.openapi:
        document = json.loads((folder / terms.openapi).read_text("utf-8"))
        terms = terms.model_copy(update=_operation(document, terms))
    if terms.description is None:
        raise ValueError(f"{where}: description is missing")
    _check_url(where, terms.url, hosts)
    if fault := schema_fault({"type": "object"} | members({"": localized(terms.arguments, "en")}, "")):
        raise ValueError(f"{where}.arguments: {fault}")
    names, required = members(terms.arguments), terms.arguments.get("required")
    sure = {*(required if isinstance(required, list) else []), *terms.fill, *CUSTOMER}
    if unsure := [each for each in PLACEHOLDER.findall(terms.url) if each not in sure]:
        raise ValueError(f"{where}.url: {{{unsure[0]}}} is neither a required argument nor filled in")
    asked = terms.confirm.en + terms.confirm.zh if terms.confirm else ""
    if unknown := [each for each in (*PLACEHOLDER.findall(asked), *(terms.query or ())) if each not in names]:
        raise ValueError(f"{where}: {unknown[0]} is not among the arguments")
    if strange := [each for text in terms.fill.values() for each in PLACEHOLDER.findall(text) if each not in CUSTOMER]:
        raise ValueError(f"{where}.fill: {{{strange[0]}}} is not known")
    query = terms.query if terms.query is not None else list(names) if terms.method in ("GET", "DELETE") else []
    return terms.model_copy(update={"query": query})


def _check_url(where: str, url: str, hosts: list[str]) -> None:
    parts = urlsplit(PLACEHOLDER.sub("x", url))
    if parts.scheme not in ("http", "https") or PLACEHOLDER.search("/".join(url.split("/", 3)[:3])) or _SECRET.search(url):
        raise ValueError(f"{where}.url must begin with http:// or https:// and a host that is spelled out; secrets belong into headers")
    if parts.netloc not in hosts:
        raise ValueError(f"{where}.url: {parts.netloc} is not among the hosts of this file")


def _operation(document: Mapping[str, object], terms: HttpTerms) -> dict[str, object]:
    """Method, URL, arguments, query and description of an operation of an OpenAPI 3 document."""
    for path, item in members(document, "paths").items():
        for method in get_args(Method):
            found = members(item, method.lower())
            if terms.operation == "" or found.get("operationId") != terms.operation:
                continue
            shared, own = (part.get("parameters") or [] for part in (members({"": item}, ""), found))
            parameters = inlined([*shared, *own], document)  # type: ignore[misc]
            body = members(inlined(found.get("requestBody"), document), "content")
            base = terms.url or document["servers"][0]["url"]  # type: ignore[index]
            said = str(found.get("summary") or found.get("description") or terms.operation)
            described = terms.description or Said(en=said, zh=said)
            arguments, query = _arguments(parameters, members(body.get("application/json"), "schema"))
            return {"method": method, "url": base.rstrip("/") + path, "arguments": arguments, "query": query, "description": described}
    raise ValueError(f"{terms.openapi} has no operation {terms.operation}")


def _arguments(parameters: object, body: JsonObject) -> tuple[JsonObject, list[str]]:
    properties, required, query = dict(members(body)), list(body.get("required") or []), []  # type: ignore[call-overload]
    for each in parameters if isinstance(parameters, list) else []:
        if each["in"] not in ("path", "query"):
            if each.get("required"):
                raise ValueError(f"{each['name']} would have to be sent in a {each['in']}")
            continue
        if each["name"] in properties:
            raise ValueError(f"{each['name']} is asked for twice")
        properties[each["name"]] = each.get("schema", {}) | {name: each[name] for name in ("description",) if name in each}
        required += [each["name"]] if each.get("required") else []
        query += [each["name"]] if each["in"] == "query" else []
    return {"type": "object", "properties": properties, "required": required}, query
