"""The README is held to the code: every setting, metric, route and command stands in it."""

import re
from collections.abc import Iterator
from pathlib import Path

import typer
from pydantic import BaseModel

from backends.protocol import CacheStats
from backends.wire import Stats
from server.cli import cli
from server.metrics import EngineNumbers, Metrics
from server.settings import Settings

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def _settings(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str | None]]:
    for name, field in model.model_fields.items():
        if isinstance(field.default, BaseModel):
            yield from _settings(type(field.default), f"{prefix}{name}.")
        else:
            yield prefix + name, field.description


def test_every_setting_is_documented_as_the_code_describes_it() -> None:
    missing = [
        name for name, description in _settings(Settings) if not re.search(rf"\| `{name}` \|.*\| {re.escape(description or '')} \|", README)
    ]
    assert missing == []


def test_every_metric_is_documented() -> None:
    stats = Stats(0, 0, 0, CacheStats(1, 0, 0, 0), 0, 0, 0, 0, 0, 0, 0, 0)
    rendered = Metrics(lambda: EngineNumbers(0, 0, 0, stats)).render().decode()
    names = {
        re.sub("_total$", "", name) for name in re.findall(r"^# HELP (kefu_\w+) ", rendered, re.MULTILINE) if not name.endswith("_created")
    }
    assert len(names) > 10
    assert {name for name in names if f"`{name}`" not in README} == set()


def test_every_route_is_documented() -> None:
    paths = set()
    for path in (ROOT / "server" / "routes").glob("*.py"):
        source = path.read_text(encoding="utf-8")
        prefix = re.search(r'APIRouter\(prefix="([^"]*)"', source)
        paths |= {(prefix.group(1) if prefix else "") + route for route in re.findall(r'@router\.(?:get|post|delete)\("([^"]*)"', source)}
    assert len(paths) > 8
    documented = {re.sub(r"\{[^}]*\}", "{}", path) for path in re.findall(r"(/[\w/{}.]*)", README)}
    unknown = {path for path in paths if not path.startswith("/desk") and re.sub(r"\{[^}]*\}", "{}", path) not in documented}
    assert unknown == set()


def test_every_command_is_documented() -> None:
    group = typer.main.get_command(cli)
    names = [f"kefu {name}" for name in group.list_commands(None)] if hasattr(group, "list_commands") else []  # type: ignore[arg-type]
    assert names
    assert [name for name in names if name not in README] == []
