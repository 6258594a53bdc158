"""The ceilings that hold the house up: sizes, forbidden constructs, and documents that match the code."""

import ast
import gc
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("backends", "server", "feedback", "web", "bench")
MAX_LINES = {".py": 400, ".js": 250, ".css": 250}
MAX_FUNCTION_LINES = 60
PRINTING = ("server/cli.py", "bench/", "backends/mini/")
THIRD_PARTY_EDGES = ("server/schema/", "backends/llamacpp/", "backends/mlx/", "backends/mini/", "bench/", "feedback/training/")
WORDS = r"previously|used to|legacy|TODO|FIXME|XXX"
FOSSIL = re.compile(rf"#.*(\b({WORDS})\b|\bissue #?\d|#\d{{2,}}|\b20\d\d-\d\d-\d\d\b)", re.IGNORECASE)


def _files(*suffixes: str) -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    paths = [ROOT / line for line in listed.splitlines()]
    return [p for p in paths if p.suffix in suffixes and p.relative_to(ROOT).parts[0] in (*ROOMS, "tests") and p.is_file()]


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def _parsed(path: Path) -> ast.Module:
    # CPython 3.11 parses source lines for a traceback too, and one parse within another ends in SystemError: no finalizer may speak now.
    gc.disable()
    try:
        return ast.parse(path.read_text(encoding="utf-8"))
    finally:
        gc.enable()


def _product_trees() -> Iterator[tuple[str, ast.Module]]:
    for path in _files(".py"):
        if not _name(path).startswith("tests/"):
            yield _name(path), _parsed(path)


def _is_broad(handler: ast.ExceptHandler) -> bool:
    return handler.type is None or ast.unparse(handler.type) in ("Exception", "BaseException")


def test_there_is_a_house_to_measure() -> None:
    assert len(_files(".py")) > 30


@pytest.mark.parametrize("suffix", sorted(MAX_LINES))
def test_no_file_is_too_long(suffix: str) -> None:
    lengths = {_name(p): len(p.read_text(encoding="utf-8").splitlines()) for p in _files(suffix)}
    assert {name: n for name, n in lengths.items() if n > MAX_LINES[suffix]} == {}


def test_every_function_fits_a_screen() -> None:
    long = []
    for path in _files(".py"):
        for node in ast.walk(_parsed(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (node.end_lineno or 0) - node.lineno >= MAX_FUNCTION_LINES:
                long.append(f"{_name(path)}:{node.lineno} {node.name}")
    assert long == []


def test_no_global_and_no_broad_except_without_a_raise() -> None:
    found = []
    for name, tree in _product_trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.Global):
                found.append(f"{name}:{node.lineno} global")
            if isinstance(node, ast.ExceptHandler) and _is_broad(node) and not any(isinstance(n, ast.Raise) for n in ast.walk(node)):
                found.append(f"{name}:{node.lineno} broad except")
    assert found == []


def test_only_the_command_line_prints() -> None:
    found = []
    for name, tree in _product_trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print" and not name.startswith(PRINTING):
                found.append(f"{name}:{node.lineno}")
    assert found == []


def test_any_stays_at_the_edges() -> None:
    found = [
        f"{name}:{node.lineno}"
        for name, tree in _product_trees()
        if not name.startswith(THIRD_PARTY_EDGES)
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and node.id == "Any"
    ]
    assert found == []


def test_every_module_says_what_lives_there() -> None:
    assert [name for name, tree in _product_trees() if tree.body and not ast.get_docstring(tree)] == []


def test_comments_state_invariants_not_history() -> None:
    lines = [(p, i, line) for p in _files(".py", ".js", ".css") for i, line in enumerate(p.read_text(encoding="utf-8").splitlines(), 1)]
    assert [f"{_name(p)}:{i}" for p, i, line in lines if p.name != "test_house.py" and FOSSIL.search(line)] == []


def test_markup_never_comes_from_strings() -> None:
    unsafe = re.compile(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\son\w+=[\"']|\bstyle=[\"']")
    pages = [p for p in _files(".js", ".html") if not _name(p).startswith("tests/")]
    assert [_name(p) for p in pages if unsafe.search(p.read_text(encoding="utf-8"))] == []


def test_no_registry_address_is_committed() -> None:
    texts = [*(ROOT / "requirements").glob("*.txt"), ROOT / "pyproject.toml", ROOT / "README.md", ROOT / "Makefile"]
    address = re.compile(r"--index-url|--find-links|pypi\.org|files\.pythonhosted")
    assert [p.name for p in texts if address.search(p.read_text(encoding="utf-8"))] == []


def test_every_dependency_is_locked_with_hashes() -> None:
    for path in (ROOT / "requirements").glob("*.txt"):
        pins = re.findall(r"^([a-z0-9._-]+)==\S+(.*)$", path.read_text(encoding="utf-8"), re.MULTILINE | re.IGNORECASE)
        assert pins, path
        assert all(rest.rstrip().endswith("\\") for _, rest in pins), path


def test_the_readme_shows_the_two_commands_and_the_make_targets_exist() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "make run" in readme and "make test" in readme
    for target in set(re.findall(r"`make ([a-z0-9]+)", readme)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_architecture_stays_short() -> None:
    assert 0 < len((ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8").splitlines()) <= 200
