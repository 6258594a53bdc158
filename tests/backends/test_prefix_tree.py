"""The prefix tree against a brute-force model, and its walls between scopes."""

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from backends.prefix_tree import PrefixTree
from backends.sequence import CacheScope

PUBLIC = CacheScope(public_len=3, public="desk", private="ann")


@dataclass(frozen=True)
class Held:
    tokens: tuple[int, ...]
    scope: CacheScope
    ready: int


def _visible(scope: CacheScope, length: int) -> list[str]:
    cut = min(scope.public_len, length)
    return ["public:" + scope.public] * cut + ["private:" + scope.private] * (length - cut)


def _brute_match(held: dict[int, Held], tokens: tuple[int, ...], scope: CacheScope, *, announced: bool = False) -> int:
    best = 0
    wanted = list(zip(_visible(scope, len(tokens)), tokens, strict=True))
    for entry in held.values():
        have = list(zip(_visible(entry.scope, len(entry.tokens)), entry.tokens, strict=True))
        common = 0
        while common < min(len(have), len(wanted)) and have[common] == wanted[common]:
            common += 1
        best = max(best, common if announced else min(common, entry.ready))
    return best


TOKENS = st.lists(st.integers(0, 2), min_size=1, max_size=9).map(tuple)
SCOPES = st.builds(CacheScope, st.integers(0, 5), st.sampled_from(["desk", "key"]), st.sampled_from(["ann", "bo"]))
NAMES = st.sampled_from(["insert", "insert", "remove"])
OPERATIONS = st.lists(st.tuples(NAMES, st.integers(0, 5), TOKENS, SCOPES, st.integers(0, 9)), max_size=25)


@given(OPERATIONS, TOKENS, SCOPES)
def test_it_finds_what_a_brute_force_search_finds(operations: list, tokens: tuple[int, ...], scope: CacheScope) -> None:
    tree, held = PrefixTree(), {}
    for name, handle, path, its_scope, ready in operations:
        if name == "insert":
            tree.insert(handle, path, its_scope, ready=min(ready, len(path)))
            held[handle] = Held(path, its_scope, min(ready, len(path)))
        else:
            tree.remove(handle)
            held.pop(handle, None)
        tree.check()
    match = tree.match(tokens, scope)
    assert match.length == _brute_match(held, tokens, scope)
    assert (match.handle is None) == (match.length == 0)
    assert tree.announced(tokens, scope) == _brute_match(held, tokens, scope, announced=True)
    assert len(tree) == len(held)


def test_the_public_part_is_shared_and_the_private_part_is_not() -> None:
    tree = PrefixTree()
    tree.insert(1, (7, 7, 7, 9, 9), PUBLIC, ready=5)
    assert tree.match((7, 7, 7, 9, 9), CacheScope(3, "desk", "bo")).length == 3
    assert tree.match((7, 7, 7, 9, 9), PUBLIC).length == 5
    assert tree.match((7, 7, 7, 9, 9), CacheScope(3, "another key", "ann")).length == 0


def test_what_a_running_sequence_announces_is_not_ready_before_it_is_computed() -> None:
    tree = PrefixTree()
    tree.insert(1, (1, 2, 3, 4), CacheScope(), ready=0)
    assert tree.match((1, 2, 3, 4), CacheScope()).length == 0
    assert tree.announced((1, 2, 3, 5), CacheScope()) == 3
    tree.advance(1, 2)
    assert tree.match((1, 2, 3, 4), CacheScope()).length == 2


def test_prefixes_names_only_whole_paths() -> None:
    tree = PrefixTree()
    tree.insert(1, (1, 2), CacheScope(), ready=2)
    tree.insert(2, (1, 2, 3, 4), CacheScope(), ready=4)
    tree.insert(3, (1, 9), CacheScope(), ready=2)
    assert tree.prefixes((1, 2, 3, 4, 5), CacheScope()) == [1, 2]
    assert tree.prefixes((1, 2, 3), CacheScope()) == [1]
