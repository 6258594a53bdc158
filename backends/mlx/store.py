"""Kept prefixes as MLX arrays: each entry holds only what no other entry holds, so a shared prefix is kept once."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx.utils import tree_map

from backends.mlx.model import Caches
from backends.prefix_tree import Match, PrefixTree, Tokens
from backends.sequence import CacheScope

# For each layer keys and values, each one array, or three when quantized; tokens are counted along the last axis but one.
Kv = list[Any]


@dataclass(slots=True, eq=False)
class _Entry:
    """The KV of tokens `start` to `stop`; what comes before is in `parent`, of which it may use only a beginning."""

    parent: _Entry | None
    handle: int
    start: int
    stop: int
    layers: Kv
    adapter: str
    num_children: int = 0

    def head(self, count: int) -> Kv:
        """The KV of its first `count` tokens."""
        return [tree_map(lambda part: part[..., :count, :], layer) for layer in self.layers]


def cut(caches: Caches, start: int, stop: int) -> Kv:
    """Copies of the tokens from `start` to `stop`, which keep nothing else alive."""
    layers = [tree_map(lambda part: mx.contiguous(part[..., start:stop, :]), (cache.keys, cache.values)) for cache in caches]
    mx.eval(layers)
    return layers


def paste(caches: Caches, pieces: list[Kv]) -> None:
    """Empty caches now hold these pieces, one after the other."""
    for i, cache in enumerate(caches):
        joined = tree_map(lambda *parts: mx.concatenate(parts, axis=-2), *(piece[i] for piece in pieces))
        cache.keys, cache.values = (list(part) if isinstance(part, tuple | list) else part for part in joined)
        cache.offset = (cache.keys[0] if isinstance(cache.keys, list) else cache.keys).shape[-2]
    mx.eval([(cache.keys, cache.values) for cache in caches])


class PrefixStore:
    """Prefixes by tokens and scope, least recently used first out; `num_tokens` is what they hold together."""

    def __init__(self) -> None:
        self.num_tokens = 0
        self.num_evicted = 0
        self._tree = PrefixTree()
        self._entries: OrderedDict[int, _Entry] = OrderedDict()
        self._next_handle = 0

    def __len__(self) -> int:
        return len(self._entries)

    def match(self, tokens: Tokens, scope: CacheScope) -> Match:
        """The longest kept prefix of `tokens`. Changes nothing."""
        return self._tree.match(tokens, scope)

    def pieces(self, match: Match) -> list[Kv]:
        """The KV of a match, first tokens first, which counts as used."""
        entry, length = self._covering(match)
        self._touch(entry)
        pieces: list[Kv] = []
        while entry is not None:
            pieces.append(entry.head(length - entry.start))
            length, entry = entry.start, entry.parent
        return pieces[::-1]

    def keep(self, tokens: Tokens, scope: CacheScope, caches: Caches) -> None:
        """Keep the KV of `tokens`, which stand at the beginning of `caches`. The public part gets an entry of its own."""
        if 0 < scope.public_len < len(tokens):
            self._add(tokens[: scope.public_len], scope, caches)
        if tokens:
            self._add(tokens, scope, caches)

    def _add(self, tokens: Tokens, scope: CacheScope, caches: Caches) -> None:
        match = self._tree.match(tokens, scope)
        parent, length = self._covering(match)
        if length < len(tokens):
            entry = _Entry(parent, self._next_handle, length, len(tokens), cut(caches, length, len(tokens)), scope.adapter)
            if parent is not None:
                parent.num_children += 1
            self._entries[entry.handle] = parent = entry
            self._tree.insert(entry.handle, tokens, scope, ready=len(tokens))
            self._next_handle += 1
            self.num_tokens += len(tokens) - length
        self._touch(parent)

    def _covering(self, match: Match) -> tuple[_Entry | None, int]:
        """The entry that itself holds the last token of a match."""
        entry = self._entries[match.handle] if match.handle is not None else None
        while entry is not None and entry.start >= match.length:
            entry = entry.parent
        return entry, match.length

    def _touch(self, entry: _Entry | None) -> None:
        """What others build on counts as used after them."""
        while entry is not None:
            self._entries.move_to_end(entry.handle)
            entry = entry.parent

    def evict(self) -> None:
        """Drop the least recently used entry that no other builds on. There must be one."""
        self._drop(next(entry for entry in self._entries.values() if not entry.num_children))

    def forget(self, adapters: list[str]) -> None:
        """Drop whatever was computed with these adapters; nothing else builds on it."""
        for entry in [entry for entry in self._entries.values() if entry.adapter in adapters]:
            self._drop(entry)

    def _drop(self, entry: _Entry) -> None:
        del self._entries[entry.handle]
        self._tree.remove(entry.handle)
        self.num_tokens -= entry.stop - entry.start
        self.num_evicted += 1
        if entry.parent is not None:
            entry.parent.num_children -= 1
