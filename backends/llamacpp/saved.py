"""Public prefixes on disk: the KV of system prompts, which the next engine then need not compute again."""

import hashlib
from itertools import accumulate
from pathlib import Path

from backends.adapter import file_digest
from backends.llamacpp.model import LlamaModel
from backends.prefix_tree import Tokens
from backends.sequence import CacheScope

MAX_BYTES = 4 * 1024**3
MIN_TOKENS = 64


class SavedPrefixes:
    """Files `<base>-<key>-<digest>.kv`: by model, engine and layout; by adapter, scope and exact tokens; by content."""

    def __init__(self, model: LlamaModel, folder: Path) -> None:
        """Removes what another model or engine version left in `folder`."""
        self._model = model
        self._folder = folder
        self._base = _sha(model.spec.sha256, model.spec.engine_version, model.layout)
        for path in folder.glob("*.kv*"):
            if not path.match(f"{self._base}-*-*.kv"):
                path.unlink()

    def save(self, handle: int, tokens: Tokens, scope: CacheScope) -> None:
        """Keep the KV under `handle`, which holds exactly these public tokens; the oldest files go when there are more than MAX_BYTES."""
        stem = self._stem(tokens, scope)
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = self._folder / f"{stem}.kv-new"
        if kept := next(self._folder.glob(f"{stem}-*.kv"), None):
            kept.touch()
        elif self._model.state_bytes(handle) <= MAX_BYTES and self._model.save_state(handle, tokens, path):
            path.rename(self._folder / f"{stem}-{file_digest(path)}.kv")
        files = sorted(self._folder.glob("*.kv"), key=lambda path: -path.stat().st_mtime)
        for path, total in zip(files, accumulate(path.stat().st_size for path in files), strict=True):
            if total > MAX_BYTES:
                path.unlink()

    def load(self, handle: int, tokens: Tokens, scope: CacheScope) -> bool:
        """Put the KV of these public tokens under `handle`, which holds nothing. A broken file is removed, and nothing is loaded."""
        for path in self._folder.glob(f"{self._stem(tokens, scope)}-*.kv"):
            if path.stem.endswith(file_digest(path)) and self._model.load_state(handle, tokens, path):
                return True
            path.unlink()
        return False

    def _stem(self, tokens: Tokens, scope: CacheScope) -> str:
        return f"{self._base}-{_sha(scope.adapter, scope.public, str(tokens))}"


def _sha(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
