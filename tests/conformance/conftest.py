"""Every test here runs once per engine, with the built-in model in that engine's form and in float32: answers must be equal, not alike."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from backends.protocol import Backend
from backends.registry import make_backend
from tests.conformance.desk import OPTIONS

MakeBackend = Callable[..., Backend]


@pytest.fixture(scope="session")
def model_path(exact_path: str) -> str:
    return exact_path


@pytest.fixture(scope="session")
def mlx_path(exact_mlx_path: str) -> str:
    return exact_mlx_path


@pytest.fixture(params=["llama.cpp", "mlx"])
def engine_path(request: pytest.FixtureRequest, model_path: str, mlx_path: str) -> str:
    if request.param == "llama.cpp":
        return model_path
    pytest.importorskip("mlx_lm")
    return mlx_path


@pytest.fixture
def make(engine_path: str) -> Iterator[MakeBackend]:
    """Loads the model with these options changed; closes whatever was loaded."""
    loaded: list[Backend] = []

    def load(**changes: object) -> Backend:
        options = replace(OPTIONS, path=engine_path, name=Path(engine_path).stem)
        loaded.append(make_backend(replace(options, **changes)))  # type: ignore[arg-type]
        return loaded[-1]

    yield load
    for backend in loaded:
        backend.close()


@pytest.fixture
def backend(make: MakeBackend) -> Backend:
    return make()
