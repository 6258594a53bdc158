"""The cell ledger against sets of cells."""

from hypothesis import given
from hypothesis import strategies as st

from backends.llamacpp.cells import CellLedger

NAMES = st.sampled_from(["grow", "share", "pin", "unpin", "trim"])
STEPS = st.lists(st.tuples(NAMES, st.integers(0, 3), st.integers(0, 3), st.integers(0, 6)), max_size=40)


@given(STEPS)
def test_free_and_pinned_counts_follow_the_cells_really_held(steps: list[tuple[str, int, int, int]]) -> None:
    ledger = CellLedger(30)
    rows: dict[int, list[int]] = {}
    pinned: set[int] = set()
    fresh = iter(range(10_000))
    for name, a, b, n in steps:
        held = {cell for row in rows.values() for cell in row}
        if name == "grow" and n <= 30 - len(held):
            ledger.grow(a, n)
            rows.setdefault(a, []).extend(next(fresh) for _ in range(n))
        elif name == "share" and rows.get(a) and not rows.get(b) and a != b and b not in pinned:
            ledger.share(a, b, n)
            rows[b] = rows[a][:n]
        elif name == "pin" and a not in pinned:
            ledger.pin(a)
            pinned.add(a)
        elif name == "unpin" and a in pinned:
            ledger.unpin(a)
            pinned.discard(a)
        elif name == "trim" and a not in pinned:
            ledger.trim(a, n)
            rows[a] = rows.get(a, [])[:n]
        held = {cell for row in rows.values() for cell in row}
        assert ledger.num_free == 30 - len(held)
        assert ledger.num_pinned == len({cell for seq_id in pinned for cell in rows.get(seq_id, [])})
