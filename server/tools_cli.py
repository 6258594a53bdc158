"""`kefu tools`: is the tools file right, and what may the bot call with it."""

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from server.desk.mcp_tools import McpServer
from server.desk.tools_file import DEMO_TOOLS, BadTools, Listed, ToolsFile, listed, load_tools
from server.settings import load_settings

CONNECT_S = 30
File = Annotated[Path | None, typer.Argument(help="A tools file; else the one in the settings.")]

tools_cli = typer.Typer(no_args_is_help=True, help="What the bot may call: check the tools file, list its tools.")
out = Console(highlight=False, markup=False)


@tools_cli.command("check")
def check(file: File = None) -> None:
    """Read a tools file as the server does, ask its MCP servers for their tools, and say what is wrong."""
    path, tools = _load(file)
    asyncio.run(_ask(tools))
    out.print(f"{path.name} is right: {len(list(listed(tools)))} tools.")


@tools_cli.command("list")
def list_tools(file: File = None) -> None:
    """List what the bot may call and where, what asks the customer first, and what only known customers have."""
    for tool in listed(_load(file)[1]):
        out.print(_line(tool), soft_wrap=True)


def _load(file: Path | None) -> tuple[Path, ToolsFile]:
    path = file or load_settings().desk.tools or DEMO_TOOLS
    return path, load_tools(path)


def _line(tool: Listed) -> str:
    known = ", known customers" if tool.needs_customer else ""
    return f"{tool.name}  {tool.where}  {'at once' if tool.is_read_only else 'asks first'}{known}"


async def _ask(tools: ToolsFile) -> None:
    """Raises BadTools for an MCP server that does not answer, or lacks a tool."""
    for name, terms in tools.mcp.items():
        server = McpServer(name, terms)
        try:
            async with asyncio.timeout(CONNECT_S), AsyncExitStack() as stack:
                await server.connect(stack)
        except Exception as error:
            raise BadTools(f"mcp.{name}: the server does not answer: {type(error).__name__}") from error
        if missing := sorted(terms.tools.keys() - {tool.name for tool in server.offered}):
            raise BadTools(f"mcp.{name}: the server has no tool {missing[0]} that can be used")
