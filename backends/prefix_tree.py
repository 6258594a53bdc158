"""Radix tree from token prefixes to the handles whose KV covers them, split by cache scope."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from backends.sequence import CacheScope

Tokens = tuple[int, ...]
Key = tuple[str, int]


@dataclass(slots=True, eq=False)
class _Node:
    """One edge and its end. `holders` are all handles whose path contains the whole edge."""

    edge: Tokens
    namespace: str
    parent: "_Node | None"
    start: int
    children: dict[Key, "_Node"] = field(default_factory=dict)
    holders: dict[int, None] = field(default_factory=dict)

    @property
    def end(self) -> int:
        return self.start + len(self.edge)


@dataclass(frozen=True, slots=True)
class Match:
    """The first `length` tokens have KV under `handle` (None when nothing matches)."""

    length: int
    handle: int | None


def _segments(tokens: Tokens, scope: CacheScope) -> Iterator[tuple[str, int, int]]:
    """Namespaces and their token ranges: the public part first, the private rest after it."""
    cut = min(scope.public_len, len(tokens))
    if cut:
        yield f"{scope.adapter}/public:{scope.public}", 0, cut
    if cut < len(tokens):
        yield f"{scope.adapter}/private:{scope.private}", cut, len(tokens)


def _common_len(edge: Tokens, tokens: Tokens, at: int, stop: int) -> int:
    """How many tokens of `edge` stand in `tokens[at:stop]`."""
    limit = min(len(edge), stop - at)
    if edge[:limit] == tokens[at : at + limit]:
        return limit
    low, high = 0, limit
    while high - low > 1:
        middle = (low + high) // 2
        if edge[low:middle] == tokens[at + low : at + middle]:
            low = middle
        else:
            high = middle
    return low


class PrefixTree:
    """Which handle holds the KV of which token prefix.

    A handle is held for one path. Its first `ready` tokens have KV; the rest is announced: a running sequence will compute it.
    Tokens in different namespaces never match each other, so a private token is invisible outside its own scope.
    """

    def __init__(self) -> None:
        self._root = _Node((), "", None, 0)
        self._tips: dict[int, _Node] = {}
        self._ready: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._tips)

    def insert(self, handle: int, tokens: Tokens, scope: CacheScope, ready: int) -> None:
        """Hold `tokens` under `handle`, replacing what it held before."""
        self.remove(handle)
        node = self._root
        for namespace, start, stop in _segments(tokens, scope):
            node = self._descend_making(node, namespace, tokens, start, stop)
        self._tips[handle] = node
        self._ready[handle] = ready
        while node.parent is not None:
            node.holders[handle] = None
            node = node.parent

    def _descend_making(self, node: _Node, namespace: str, tokens: Tokens, at: int, stop: int) -> _Node:
        while at < stop:
            child = node.children.get((namespace, tokens[at]))
            if child is None:
                child = _Node(tokens[at:stop], namespace, node, at)
                node.children[namespace, tokens[at]] = child
                return child
            common = _common_len(child.edge, tokens, at, stop)
            node = child if common == len(child.edge) else self._split(child, common)
            at += common
        return node

    def _split(self, node: _Node, length: int) -> _Node:
        """Put a node after the first `length` tokens of `node`'s edge and return it."""
        parent = node.parent
        assert parent is not None
        upper = _Node(node.edge[:length], node.namespace, parent, node.start, holders=dict(node.holders))
        parent.children[node.namespace, node.edge[0]] = upper
        node.edge, node.start, node.parent = node.edge[length:], node.start + length, upper
        upper.children[node.namespace, node.edge[0]] = node
        return upper

    def advance(self, handle: int, ready: int) -> None:
        """More of this handle's announced tokens have KV now."""
        self._ready[handle] = ready

    def remove(self, handle: int) -> None:
        """Forget a handle and every branch that only it held."""
        node = self._tips.pop(handle, None)
        self._ready.pop(handle, None)
        while node is not None and node.parent is not None:
            parent = node.parent
            del node.holders[handle]
            if not node.holders:
                del parent.children[node.namespace, node.edge[0]]
            else:
                self._merge_into_only_child(node)
            node = parent

    def _merge_into_only_child(self, node: _Node) -> None:
        """Undo a split that nothing needs any more."""
        if len(node.children) != 1 or node.parent is None:
            return
        (child,) = node.children.values()
        if child.namespace != node.namespace or len(child.holders) != len(node.holders):
            return
        child.edge, child.start, child.parent = node.edge + child.edge, node.start, node.parent
        node.parent.children[node.namespace, child.edge[0]] = child

    def _path(self, tokens: Tokens, scope: CacheScope) -> Iterator[tuple[_Node, int]]:
        """Nodes along `tokens` with the depth matched inside each; the last one may be matched in part."""
        node = self._root
        for namespace, start, stop in _segments(tokens, scope):
            at = start
            while at < stop:
                child = node.children.get((namespace, tokens[at]))
                if child is None:
                    return
                common = _common_len(child.edge, tokens, at, stop)
                at += common
                yield child, at
                if common < len(child.edge):
                    return
                node = child

    def match(self, tokens: Tokens, scope: CacheScope) -> Match:
        """The longest prefix of `tokens` that has KV now. Changes nothing."""
        best = Match(0, None)
        for node, depth in self._path(tokens, scope):
            for handle in reversed(node.holders):
                length = min(depth, self._ready[handle])
                if length > best.length:
                    best = Match(length, handle)
                if length == depth:
                    break
        return best

    def announced(self, tokens: Tokens, scope: CacheScope) -> int:
        """The longest prefix of `tokens` that has KV now or will have it once running sequences have computed their prompts."""
        return max((depth for _, depth in self._path(tokens, scope)), default=0)

    def prefixes(self, tokens: Tokens, scope: CacheScope) -> list[int]:
        """Handles whose whole path is a prefix of `tokens`, shortest first."""
        return [h for node, depth in self._path(tokens, scope) for h in node.holders if self._tips[h] is node and node.end <= depth]

    def check(self) -> None:
        """Assert the invariants: holders of a node are the tips in it and the holders of its children. For tests and idle moments."""
        stack = [self._root]
        while stack:
            node = stack.pop()
            below = {h for child in node.children.values() for h in child.holders}
            tips = {h for h, tip in self._tips.items() if tip is node}
            assert node is self._root or set(node.holders) == below | tips, "a node's holders are not those below it"
            assert all(child.start == node.end and child.parent is node for child in node.children.values())
            stack.extend(node.children.values())
