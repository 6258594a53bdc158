"""The adapters that an engine has loaded, and whose turn it is: a pass is computed with one of them, or with none."""

from collections.abc import Iterable
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from backends.adapter import AdapterRegistry, file_digest
from backends.protocol import AdapterRefused
from backends.sequence import Sequence

# Changing the adapter makes llama.cpp lay out its graphs anew, which costs about as much as a pass of a small model.
TURN_PASSES = 4

Weights = TypeVar("Weights")


class Host(Protocol[Weights]):
    """A model that adapters are applied to, between passes."""

    def load_adapter(self, path: Path) -> Weights:
        """Raises AdapterRefused or a built-in error of reading, with nothing loaded, for one that does not fit. None is applied now."""

    def apply_adapter(self, weights: Weights | None) -> None: ...

    def free_adapter(self, weights: Weights) -> None: ...


class LoadedAdapters(Generic[Weights]):
    """Keys of the registry, and the engine's own weights for those that are loaded."""

    def __init__(self, host: Host[Weights], data_dir: str) -> None:
        self._host = host
        self._registry = AdapterRegistry(Path(data_dir) / "adapters")
        self._loaded: dict[str, Weights] = {}
        self._applied = ""
        self._turn, self._num_turn_passes = "", 0

    def load(self, key: str) -> None:
        """Read the file of a key, unless it is loaded or empty. Raises AdapterRefused, also when its tensors do not fit the model."""
        if not key or key in self._loaded:
            return
        path = self._registry.path(key)
        if not path.is_file() or file_digest(path) != path.stem:
            raise AdapterRefused(f"the file of adapter {key} is missing or broken")
        self.apply("")
        try:
            self._loaded[key] = self._host.load_adapter(path)
        except (AdapterRefused, ArithmeticError, OSError, TypeError, ValueError) as error:
            raise AdapterRefused(f"adapter {key} could not be loaded: {error}") from error

    def take_turn(self, sequences: Iterable[Sequence]) -> str:
        """The adapter of the next pass, which can have only one: those with work take turns of TURN_PASSES, in a fixed order."""
        wanted = sorted({seq.scope.adapter for seq in sequences if seq.num_uncomputed})
        if self._turn not in wanted or self._num_turn_passes >= TURN_PASSES:
            later = [adapter for adapter in wanted if adapter > self._turn]
            self._turn, self._num_turn_passes = next(iter(later or wanted), ""), 0
        self._num_turn_passes += 1
        return self._turn

    def apply(self, key: str) -> None:
        """From the next pass on, every row is computed with this adapter; with none for the empty key."""
        if key != self._applied:
            self._host.apply_adapter(self._loaded[key] if key else None)
            self._applied = key

    def unload_removed(self, busy: set[str]) -> list[str]:
        """Free the adapters that the registry has no more or has replaced, but none that is `busy`; returns their keys."""
        gone = list(self._loaded.keys() - busy - {*self._registry.all().values()}) if self._loaded else []
        for key in gone:
            if key == self._applied:
                self.apply("")
            self._host.free_adapter(self._loaded.pop(key))
        return gone
