"""Texts that are nearly the same, and what hangs together: character 5-grams, MinHash, union-find."""

import zlib
from collections.abc import Hashable, Iterable, Sequence
from itertools import pairwise

import numpy as np

from feedback.grams import stems

NEAR = 0.8
# 16 bands of 4: two texts of Jaccard similarity .8 share a band with probability 1 - (1 - .8^4)^16 > .999 (Broder 1997).
NUM_BANDS, BAND_ROWS = 16, 4
_PRIME = (1 << 31) - 1


def normalised(text: str) -> str:
    """What is left of a text when width, case, endings, spaces and marks do not matter."""
    return " ".join(stems(text))


def near_duplicates(texts: Sequence[str]) -> list[tuple[int, int]]:
    """Pairs of places of texts whose sets of 5-grams have a Jaccard similarity of at least .8; enough pairs to connect all that are."""
    grams = [_grams(normalised(text)) for text in texts]
    rng = np.random.Generator(np.random.PCG64(5))
    scale, shift = rng.integers(1, _PRIME, (2, NUM_BANDS * BAND_ROWS, 1), dtype=np.int64)
    bands: dict[tuple[int, bytes], list[int]] = {}
    for place, mine in enumerate(grams):
        hashes = np.fromiter((zlib.crc32(gram.encode("utf-8", "replace")) & _PRIME for gram in sorted(mine)), np.int64)
        least = ((scale * hashes + shift) % _PRIME).min(axis=1).reshape(NUM_BANDS, BAND_ROWS)
        for band, row in enumerate(least):
            bands.setdefault((band, row.tobytes()), []).append(place)
    alike = sorted({pair for places in bands.values() for pair in pairwise(places)})
    return [(a, b) for a, b in alike if len(grams[a] & grams[b]) >= NEAR * len(grams[a] | grams[b])]


def _grams(text: str) -> frozenset[str]:
    return frozenset(text[start : start + 5] for start in range(max(1, len(text) - 4)))


class Groups:
    """What hangs together. `root` is the same for all that were joined, directly or not: the smallest of them."""

    def __init__(self) -> None:
        self._parents: dict[str, str] = {}

    def join(self, names: Iterable[Hashable]) -> None:
        roots = sorted({self.root(str(name)) for name in names})
        self._parents |= dict.fromkeys(roots, roots[0])

    def root(self, name: str) -> str:
        while (parent := self._parents.setdefault(name, name)) != name:
            self._parents[name] = name = self._parents[parent]
        return name
