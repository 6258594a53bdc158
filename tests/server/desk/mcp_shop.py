"""A small MCP server of the official SDK: `python -m tests.server.desk.mcp_shop [PORT]`, stdio without a port."""

import sys

from mcp.server.mcpserver import MCPServer
from mcp_types import ToolAnnotations

server = MCPServer("shop")


@server.tool(annotations=ToolAnnotations(read_only_hint=True))
def stock(item: str, customer: str = "") -> dict[str, str]:
    """How much of an item is there."""
    return {"item": item, "left": "7", "for": customer}


@server.tool()
def reserve(item: str) -> str:
    """Put an item aside."""
    return f"reserved {item}"


@server.tool(annotations=ToolAnnotations(read_only_hint=True))
def fail() -> str:
    """Go wrong."""
    raise RuntimeError("no luck")


@server.tool()
def hidden() -> str:
    """Nobody has allowed this one."""
    return "never"


if __name__ == "__main__":
    if sys.argv[1:]:
        server.run("streamable-http", host="127.0.0.1", port=int(sys.argv[1]))
    else:
        server.run("stdio")
