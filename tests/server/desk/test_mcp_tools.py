"""MCP, with a real server over both of its transports."""

import asyncio
import importlib.util
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner

from server.cli import cli
from server.desk.mcp_tools import McpServer
from server.desk.tool import Caller, DeskTool, ToolFailed
from server.desk.tools_file import load_tools

pytestmark = [pytest.mark.anyio, pytest.mark.skipif(importlib.util.find_spec("mcp") is None, reason="not installed: mcp")]

STRANGER = Caller("en")
MODULE = ("-m", "tests.server.desk.mcp_shop")
ROOT = Path(__file__).parents[3]


def _file(folder: Path, where: str, more: str = "") -> Path:
    path = folder / "tools.toml"
    path.write_text(
        f'hosts = ["127.0.0.1:{_port(where)}"]\n[mcp.shop]\n{where}\n[mcp.shop.tools]\n'
        'stock = { read_only = true, fill = { customer = "{customer.id}" } }\nreserve = { read_only = true }\n'
        f"fail = {{}}\n{more}"
    )
    return path


def _port(where: str) -> str:
    return where.rpartition(":")[2].partition("/")[0] if "http:" in where else "1"


@asynccontextmanager
async def _held(path: Path) -> AsyncIterator[dict[str, DeskTool]]:
    server = McpServer("shop", load_tools(path).mcp["shop"])
    task = asyncio.create_task(server.hold())
    try:
        async with asyncio.timeout(30):
            while not server.offered:
                await asyncio.sleep(0.02)
        yield {tool.name: tool for tool in server.offered}
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _use(tools: dict[str, DeskTool]) -> None:
    assert sorted(tools) == ["fail", "reserve", "stock"]
    # Both must say so: the server calls only two of them read-only, and the file only two.
    assert {name for name, tool in tools.items() if tool.is_read_only} == {"stock"}
    assert "customer" not in tools["stock"].definition("en") and tools["stock"].terms.needs_customer
    said = await tools["stock"].run({"item": "cup", "customer": "c1"}, STRANGER)
    assert '"left": "7"' in said and '"for": "c1"' in said
    with pytest.raises(ToolFailed):
        await tools["fail"].run({}, STRANGER)


async def test_over_stdio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    command = ", ".join(f'"{part}"' for part in (sys.executable, *MODULE))
    async with _held(_file(tmp_path, f"command = [{command}]\nenv = {{ PYTHONPATH = '{ROOT}' }}")) as tools:
        await _use(tools)


async def test_over_streamable_http(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    process = await asyncio.create_subprocess_exec(
        sys.executable, *MODULE, str(port), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        async with asyncio.timeout(30):
            while True:
                try:
                    (await asyncio.open_connection("127.0.0.1", port))[1].close()
                    break
                except OSError:
                    await asyncio.sleep(0.05)
        async with _held(_file(tmp_path, f'url = "http://127.0.0.1:{port}/mcp"')) as tools:
            await _use(tools)
            process.terminate()
            await process.wait()
            with pytest.raises(ToolFailed, match="unavailable"):
                await tools["stock"].run({"item": "cup"}, STRANGER)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def test_the_command_line_asks_the_server(tmp_path: Path) -> None:
    absent = CliRunner().invoke(cli, ["tools", "check", str(_file(tmp_path, 'command = ["/no/such/server"]'))])
    assert absent.exit_code == 1 and "mcp.shop: the server does not answer" in absent.output
    listed = CliRunner().invoke(cli, ["tools", "list", str(tmp_path / "tools.toml")])
    assert "reserve" in listed.output and "known customers" in listed.output
