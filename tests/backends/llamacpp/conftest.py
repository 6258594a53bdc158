"""Texts are compared token by token here, so the built-in model is in float32."""

import pytest


@pytest.fixture(scope="session")
def model_path(exact_path: str) -> str:
    return exact_path
