"""Tools over HTTP, against a real server that behaves as badly as it can."""

import json
from collections.abc import Iterator

import pytest

from server.desk.http_tools import http_tool, make_client
from server.desk.tool import Caller, DeskTool, ToolFailed
from server.desk.tools_file import HttpTerms
from tests.server.desk.shop_server import ShopServer, shop_server

pytestmark = pytest.mark.anyio

KNOWN = Caller("zh", "shop", "a/../b c")


@pytest.fixture(scope="module")
def shop() -> Iterator[ShopServer]:
    with shop_server() as shop:
        yield shop


def _tool(shop: ShopServer, path: str, **terms: object) -> DeskTool:
    arguments = {"type": "object", "properties": {"id": {"type": "string"}, "note": {"type": "string"}}, "required": ["id"]}
    fields = {"url": f"{shop.url}/{path}", "arguments": arguments, "query": [], **terms}
    return http_tool("t", HttpTerms.model_validate(fields), make_client({}))


async def test_a_request_carries_what_was_declared_and_nothing_of_the_environment(
    shop: ShopServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    tool = _tool(shop, "orders/{id}?c={customer.id}", method="POST", query=["q"], headers={"authorization": "Bearer s3cret"})
    assert tool.terms.needs_customer
    said = await tool.run({"id": "K/1", "q": "ü&a", "note": "好"}, KNOWN)
    assert said == '{"order_id": "K1", "status": "shipped", "expected": "12 May"}'
    assert shop.asked[-1] == (
        "POST",
        "/orders/K%2F1?c=a%2F..%2Fb%20c&q=%C3%BC%26a",
        json.dumps({"note": "好"}, ensure_ascii=False, separators=(",", ":")),
    )
    assert (shop.headers[-1]["authorization"], shop.headers[-1]["accept-language"]) == ("Bearer s3cret", "zh")


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("moved", {"error": "unavailable"}),
        ("huge", {"error": "the result is too long"}),
        ("slow", {"error": "unavailable"}),
        ("broken", {"error": "unavailable"}),
        ("forbidden", {"error": "unavailable"}),
        ("missing", {"order_id": "K1", "error": "not found"}),
    ],
)
async def test_what_goes_wrong_is_told_as_data(shop: ShopServer, path: str, told: dict[str, str]) -> None:
    with pytest.raises(ToolFailed) as failed:
        await _tool(shop, path, timeout_s=0.5).run({}, KNOWN)
    assert json.loads(str(failed.value)) == told
    assert not any(target == "/orders/stolen" for _, target, _ in shop.asked)


async def test_a_server_that_is_not_there_is_unavailable() -> None:
    with pytest.raises(ToolFailed, match="unavailable"):
        await _tool(ShopServer("http://127.0.0.1:9"), "x").run({}, KNOWN)
