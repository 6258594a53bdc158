"""A key opens, everything else does not, and no key is kept."""

import ast
import inspect

import pytest

from server import auth
from server.auth import OPEN_KEY_ID, KeyRing, hash_key, new_key
from server.errors import Unauthorized


def test_a_new_key_opens_the_ring_that_holds_its_hash() -> None:
    key, key_hash = new_key()
    other, other_hash = new_key()
    ring = KeyRing([other_hash, key_hash])
    assert ring.identify(f"Bearer {key}") == ring.identify(f"bearer  {key}") == key_hash[:12]
    assert ring.identify(f"Bearer {other}") != key_hash[:12]
    assert key not in repr(vars(ring))


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer ", "Bearer wrong", "Basic KEY", "' OR 1=1--", "Bearer " + "x" * 10_000, "Bearer é\udcff"]
)
def test_anything_else_is_unauthorized(header: str | None) -> None:
    key, key_hash = new_key()
    with pytest.raises(Unauthorized):
        KeyRing([key_hash]).identify(header and header.replace("KEY", key))
    with pytest.raises(Unauthorized):
        KeyRing([key_hash]).identify(f"Bearer {key_hash}")


def test_an_empty_ring_is_open() -> None:
    assert KeyRing([]).identify(None) == KeyRing([]).identify("Bearer anything") == OPEN_KEY_ID


def test_hashes_are_compared_in_constant_time() -> None:
    tree = ast.parse(inspect.getsource(auth))
    compared = [node for node in ast.walk(tree) if isinstance(node, ast.Compare) and "presented" in ast.unparse(node)]
    assert compared == []
    assert "compare_digest(known, presented)" in ast.unparse(tree)
    assert len(hash_key("x")) == 64
