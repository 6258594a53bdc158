"""Tools files: what is wrong with one is said before anybody is called."""

import json
import random
from pathlib import Path

import pytest

from backends.llamacpp.tokenizer import LlamaTokenizer
from backends.mini.actions import ActionWriter
from backends.mini.shop import load_shop, system_message
from server.chat.template import ChatMessage, ChatTemplate
from server.chat.tools import Tool
from server.desk.arguments import mismatch
from server.desk.http_tools import http_tool, make_client
from server.desk.policy import Policy
from server.desk.policy_file import DEMO, LANGUAGES, load_policy
from server.desk.tools_file import DEMO_TOOLS, BadTools, address, load_tools
from tests.conftest import MINI

GOOD = """
hosts = ["shop.example"]

[tools.get_order]
description = { en = "Look up an order", zh = "查询订单" }
url = "https://shop.example/orders/{order_id}"
headers = { authorization = "Bearer ${ENV:SHOP_TOKEN}" }

[tools.get_order.arguments]
required = ["order_id"]
properties = { order_id = { type = "string", pattern = "^[A-Z]+[0-9]+$" }, verbose = { type = "boolean" } }
"""
OPENAPI = {
    "servers": [{"url": "https://shop.example/v2"}],
    "components": {"schemas": {"Move": {"type": "object", "properties": {"street": {"type": "string"}}, "required": ["street"]}}},
    "paths": {
        "/orders/{id}/address": {
            "parameters": [{"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}],
            "post": {
                "operationId": "move",
                "summary": "Send an order elsewhere",
                "parameters": [{"name": "notify", "in": "query", "schema": {"type": "boolean"}}],
                "requestBody": {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Move"}}}},
            },
        }
    },
}


def _load(folder: Path, text: str) -> object:
    (folder / "tools.toml").write_text(text, encoding="utf-8")
    (folder / "shop.json").write_text(json.dumps(OPENAPI), encoding="utf-8")
    return load_tools(folder / "tools.toml")


@pytest.fixture(autouse=True)
def _token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOP_TOKEN", "s3cret")


def test_a_good_file_is_read_and_its_secret_shows_nowhere(tmp_path: Path) -> None:
    file = _load(tmp_path, GOOD)
    terms = file.tools["get_order"]  # type: ignore[attr-defined]
    assert terms.headers == {"authorization": "Bearer s3cret"} and terms.is_read_only and terms.query == ["order_id", "verbose"]
    assert "s3cret" not in repr(file)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('hosts = ["shop.example"]', 'hosts = ["other.example"]', "shop.example is not among the hosts"),
        ("https://shop.example/", "https://shop.example:8443/", "shop.example:8443 is not among the hosts"),
        ("https://shop.example/", "https://a@shop.example/", "is not among the hosts"),
        ("https://shop.example/", "https://{order_id}/", "spelled out"),
        ("https://shop.example/", "file:///", "must begin with http"),
        ("SHOP_TOKEN", "NO_SUCH", "line 7: tools.get_order.headers.authorization: there is no variable NO_SUCH"),
        ("{order_id}", "{verbose}", "{verbose} is neither a required argument nor filled in"),
        ('required = ["order_id"]', "required = []", "neither a required argument"),
        ("headers =", "colour =", "line 7: tools.get_order.colour: is not known"),
        ('description = { en = "Look up an order", zh = "查询订单" }', "", "description is missing"),
        ('type = "boolean"', 'type = "bool"', "arguments: Invalid type: bool"),
        ('type = "boolean"', "not = {}", "arguments: Unimplemented keys"),
        ("headers =", 'confirm = { en = "{when}?", zh = "?" }\nheaders =', "when is not among the arguments"),
        ("headers =", 'fill = { verbose = "{customer.password}" }\nheaders =', "{customer.password} is not known"),
        ("headers =", 'method = "TRACE"\nheaders =', "tools.get_order.method"),
        ("headers =", 'openapi = "shop.json"\noperation = "nothing"\nheaders =', "no operation nothing"),
        ("[tools.get_order]", "[tools.get_order", "at line 4"),
        ("[tools.get_order]", "[mcp.a]\ntools.get_order = {}\n[tools.get_order]", "mcp.a needs a command or a url"),
        ("[tools.get_order]", '[mcp.a]\ncommand = ["x"]\ntools.get_order = {}\n[tools.get_order]', "get_order is the name of two tools"),
        (
            "[tools.get_order]",
            '[mcp.a]\nurl = "http://evil.example"\ntools.a = {}\n[tools.get_order]',
            "evil.example is not among the hosts",
        ),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in GOOD
    with pytest.raises(BadTools) as refused:
        _load(tmp_path, GOOD.replace(old, new))
    assert said in str(refused.value) and "s3cret" not in str(refused.value)


def test_an_operation_of_an_openapi_document_is_a_tool(tmp_path: Path) -> None:
    text = 'hosts = ["shop.example"]\n[tools.move]\nopenapi = "shop.json"\noperation = "move"\nfill = { id = "{customer.id}" }\n'
    terms = _load(tmp_path, text).tools["move"]  # type: ignore[attr-defined]
    assert (terms.method, terms.url, terms.query) == ("POST", "https://shop.example/v2/orders/{id}/address", ["notify"])
    assert not terms.is_read_only and terms.needs_customer
    tool = http_tool("move", terms, make_client({}))
    shown = json.loads(tool.definition("en"))["function"]
    assert shown["description"] == "Send an order elsewhere"
    assert (set(shown["parameters"]["properties"]), shown["parameters"]["required"]) == ({"street", "notify"}, ["street"])


def test_arguments_are_held_to_the_schema_in_any_order() -> None:
    schema: dict[str, object] = {
        "type": "object",
        "properties": {
            "id": {"type": "string", "pattern": "^K[0-9]+$"},
            "count": {"anyOf": [{"type": "integer", "maximum": 3}, {"type": "null"}]},
        },
        "required": ["id"],
        "additionalProperties": False,
    }
    for good in ({"id": "K1"}, {"count": 3, "id": "K12"}, {"count": None, "id": "K1"}):
        assert mismatch(good, schema) == ""
    for bad in ({}, {"id": "K"}, {"id": 1}, {"id": "K1", "count": 4}, {"id": "K1", "more": 1}, {"id": ["K1"]}):
        assert mismatch(bad, schema)


def test_a_value_cannot_move_an_address() -> None:
    template = "http://shop/orders/{id}/x"
    assert address(template, {"id": "../../admin?a=b#c@evil"}) == "http://shop/orders/..%2F..%2Fadmin%3Fa%3Db%23c%40evil/x"
    for moving in ("", ".", ".."):
        with pytest.raises(ValueError):
            address(template, {"id": moving})


def test_the_demo_shops_prompt_is_the_one_that_kefu_mini_was_trained_with() -> None:
    tokenizer = LlamaTokenizer(str(MINI))
    for language in LANGUAGES:
        writers = [ActionWriter(random.Random(seed), language, "train", kind="demo") for seed in range(8)]
        trained = {json.loads(schema)["name"]: schema for writer in writers for schema in writer.tool_schemas}
        tools = [http_tool(name, terms, make_client({})) for name, terms in load_tools(DEMO_TOOLS).tools.items()]
        ours = {tool.name: json.dumps(json.loads(tool.definition(language))["function"], ensure_ascii=False) for tool in tools}
        assert ours == {name: trained[name] for name in ours} and len(ours) == 4
        policy = Policy.of(load_shop(language), language, load_policy(DEMO)[language])
        offered = tuple(Tool(tool.name, tool.definition(language)) for tool in tools)
        prompt = ChatTemplate(tokenizer).render([ChatMessage("system", policy.system), ChatMessage("user", "hi")], None, offered)
        system = system_message(load_shop(language), language, tuple(ours.values()))
        as_trained = f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n<think>\n"
        assert prompt.token_ids == tokenizer.encode(as_trained, special=True)
