"""What every test may use: the built-in model, an empty record, and an asyncio event loop."""

import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from feedback.database import Database
from feedback.record import Record
from tests.exact import write_floats

# Several engines on two cores starve each other when OpenMP threads spin; engines started by tests inherit this.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# What is drawn by chance is off where a test does not ask for it.
CERTAIN = {"KEFU_DESK__COMPARE_SHARE": "0"}
os.environ.update(CERTAIN)

WEIGHTS = Path(__file__).parents[1] / "backends" / "mini" / "weights"
MINI = WEIGHTS / "kefu-mini.gguf"


# `make test` says the same of the same code twice; `make soak` looks for examples that nobody has seen.
settings.register_profile("same", deadline=None, max_examples=60, derandomize=True)
settings.register_profile("new", deadline=None)


# One worker trains while the other does the rest: begun last, it would be waited for.
LONGEST = "tests/server/test_rounds.py"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not item.nodeid.startswith(LONGEST))


def pytest_configure(config: pytest.Config) -> None:
    settings.load_profile("new" if config.option.markexpr == "soak" else "same")


def has_ipv6_loopback() -> bool:
    """Does this machine have ::1?"""
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


@pytest.fixture(scope="session")
def model_path() -> str:
    """A real model: kefu-mini, or the GGUF file named by TEST_MODEL."""
    return os.environ.get("TEST_MODEL", str(MINI))


@pytest.fixture(scope="session")
def mlx_path() -> str:
    """The same model as an MLX folder, or the one named by TEST_MLX_MODEL."""
    return os.environ.get("TEST_MLX_MODEL", str(WEIGHTS / "mlx"))


@pytest.fixture(scope="session")
def exact_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The built-in model in float32, for tests that compare texts token by token."""
    return str(write_floats(tmp_path_factory.mktemp("exact") / "kefu-mini.gguf", str(MINI)))


@pytest.fixture(scope="session")
def exact_mlx_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same as an MLX folder."""
    return str(write_floats(tmp_path_factory.mktemp("exact") / "kefu-mini", str(WEIGHTS / "mlx")))


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def blank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database of the newest schema with nothing in it: making one takes ten times as long as copying it."""
    folder = tmp_path_factory.mktemp("blank")
    Database.in_folder(folder).close()
    return folder / "kefu.db"


@pytest.fixture
def data_folder(tmp_path: Path, blank: Path) -> Path:
    """A data folder with an empty database."""
    (tmp_path / "data").mkdir(exist_ok=True)
    return Path(shutil.copy(blank, tmp_path / "data")).parent


@pytest.fixture
def database(data_folder: Path) -> Iterator[Database]:
    database = Database.in_folder(data_folder)
    yield database
    database.close()


@pytest.fixture
def record(database: Database) -> Record:
    return Record(database)
