"""The catalogue's entries are whole, and their numbers are those of the cards."""

import re

import pytest

from backends.catalog import UnknownModel, catalog, find
from backends.fit import GIB, Fit, Machine, this_machine


def test_qwq_is_sampled_and_sized_as_its_card_says() -> None:
    qwq = find("QwQ-32B")
    sampling = qwq.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p, sampling.max_tokens) == (0.6, 0.95, 40, 0.0, 0)
    assert qwq.kv_bytes_per_token() == 256 * 1024
    assert qwq.weight_bytes("mlx") == pytest.approx(18.43e9, rel=0.001)
    assert qwq.weight_bytes("gguf") == pytest.approx(19.85e9, rel=0.001)


def test_every_entry_has_two_builds_and_pins_are_complete() -> None:
    assert {entry.use for entry in catalog().values()} == {"chat", "draft", "embedding"}
    for name, entry in catalog().items():
        assert entry.name == name == name.lower()
        assert entry.mlx.repo.startswith("mlx-community/") and len(entry.gguf.files) == 1
        assert bool(entry.gguf.sha256) == (entry.gguf.revision != "main")
        assert re.fullmatch("[0-9a-f]{64}|", entry.gguf.sha256) and re.fullmatch("[0-9a-f]{40}|main", entry.gguf.revision)
        assert 0.4 < entry.weight_bytes("gguf") / entry.billions / 1e9 < 1.2


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(UnknownModel, match=r"no model 'qwq'.*qwq-32b"):
        find("qwq")


@pytest.mark.parametrize(
    ("gib", "low", "high"), [(16, 0, 0), (32, 1000, 5000), (36, 8000, 17000), (48, 40_000, 60_000), (64, 90_000, 110_000)]
)
def test_how_much_qwq_fits_a_mac(gib: int, low: int, high: int) -> None:
    qwq = find("qwq-32b")
    fit = Fit(qwq.weight_bytes("mlx"), qwq.kv_bytes_per_token(), Machine(gib * GIB, is_mac=True).budget_bytes)
    assert low <= fit.num_tokens <= high
    assert fit.holds(fit.num_tokens) == (gib > 16) and not fit.holds(fit.num_tokens + 1)
    assert "18.4 GB of weights + 256 KiB a token" in str(fit)


def test_this_machine_has_memory_and_a_limit_goes_before_it() -> None:
    assert 0 < this_machine().budget_bytes < this_machine().memory_bytes
    assert this_machine(1.5).budget_bytes == 1.5 * GIB
