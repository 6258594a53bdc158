"""LoRA adapters of one llama.cpp model: loaded and freed between passes, one or none applied to the whole context at a time."""

from __future__ import annotations

import ctypes

import llama_cpp as lib

from backends.adapter import AdapterRegistry, file_digest
from backends.llamacpp.model import LlamaModel, log_sink
from backends.protocol import AdapterRefused


class Adapters:
    """Keys of the registry, and llama.cpp's adapters for those that are loaded."""

    def __init__(self, model: LlamaModel, registry: AdapterRegistry) -> None:
        self._model = model
        self._registry = registry
        self._loaded: dict[str, lib.llama_adapter_lora_p] = {}
        self._applied = ""

    def load(self, key: str) -> None:
        """Read the file of a key, unless it is loaded or empty. Raises AdapterRefused; llama.cpp checks that its tensors fit the model."""
        if not key or key in self._loaded:
            return
        path = self._registry.path(key)
        if not path.is_file() or file_digest(path) != path.stem:
            raise AdapterRefused(f"the file of adapter {key} is missing or broken")
        log = log_sink()
        log.errors.clear()
        adapter = lib.llama_adapter_lora_init(self._model.pointer, str(path).encode())
        if not adapter:
            raise AdapterRefused(f"adapter {key} could not be loaded: {log.why}")
        self._loaded[key] = adapter

    def apply(self, key: str) -> None:
        """From the next pass on, every row is computed with this adapter; with none for the empty key."""
        if key == self._applied:
            return
        count = 1 if key else 0
        adapters = (lib.llama_adapter_lora_p_ctypes * 1)(self._loaded[key]) if key else None
        lib.llama_set_adapters_lora(self._model.context, adapters, count, (ctypes.c_float * 1)(1.0))
        self._applied = key

    def unload_removed(self, busy: set[str]) -> list[str]:
        """Free the adapters that the registry has no more or has replaced, but none that is `busy`; returns their keys."""
        gone = list(self._loaded.keys() - busy - {*self._registry.all().values()}) if self._loaded else []
        for key in gone:
            if key == self._applied:
                self.apply("")
            lib.llama_adapter_lora_free(self._loaded.pop(key))
        return gone
