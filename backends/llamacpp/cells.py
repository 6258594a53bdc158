"""A ledger of the KV cells of a unified llama.cpp cache: which sequence ids hold them and how many are free.

llama.cpp does not tell how many cells are left; it shares cells between sequence ids (`llama_memory_seq_cp`) and frees a cell when its last
holder goes. The ledger follows the same rules, so that room is a number and not a guess.
"""


class CellLedger:
    """Cells are counted, not placed: a cell's number here is not llama.cpp's. Sequence ids are pinned while they run."""

    def __init__(self, num_cells: int) -> None:
        self.num_cells = num_cells
        self.num_pinned = 0
        self._free = list(range(num_cells))
        self._holders = [0] * num_cells
        self._pins = [0] * num_cells
        self._rows: dict[int, list[int]] = {}
        self._pinned: set[int] = set()

    @property
    def num_free(self) -> int:
        return len(self._free)

    def num_unpinned(self, seq_id: int, length: int) -> int:
        """How many of the first `length` cells of a sequence id no running sequence holds."""
        return sum(1 for cell in self._rows[seq_id][:length] if not self._pins[cell])

    def share(self, source: int, target: int, length: int) -> None:
        """`target`, which holds nothing, now holds the first `length` cells of `source` too."""
        row = self._rows[source][:length]
        self._rows[target] = row
        for cell in row:
            self._holders[cell] += 1

    def grow(self, seq_id: int, count: int) -> None:
        """Take `count` free cells for a sequence id."""
        row = self._rows.setdefault(seq_id, [])
        pin = 1 if seq_id in self._pinned else 0
        for _ in range(count):
            cell = self._free.pop()
            self._holders[cell], self._pins[cell] = 1, pin
            row.append(cell)
        self.num_pinned += pin * count

    def pin(self, seq_id: int) -> None:
        """The cells of this sequence id belong to a running sequence now."""
        self._pinned.add(seq_id)
        for cell in self._rows.get(seq_id, ()):
            self.num_pinned += self._pins[cell] == 0
            self._pins[cell] += 1

    def unpin(self, seq_id: int) -> None:
        """The sequence stopped running; its cells stay held."""
        self._pinned.discard(seq_id)
        for cell in self._rows.get(seq_id, ()):
            self._pins[cell] -= 1
            self.num_pinned -= self._pins[cell] == 0

    def trim(self, seq_id: int, length: int) -> None:
        """A sequence id keeps only its first `length` cells."""
        row = self._rows.get(seq_id, [])
        for cell in row[length:]:
            if seq_id in self._pinned:
                self._pins[cell] -= 1
                self.num_pinned -= self._pins[cell] == 0
            self._holders[cell] -= 1
            if not self._holders[cell]:
                self._free.append(cell)
        del row[length:]
        if not row:
            self._rows.pop(seq_id, None)
