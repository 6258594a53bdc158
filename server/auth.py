"""API keys: kept only as SHA-256, compared in constant time."""

import hashlib
import hmac
import secrets
from collections.abc import Callable, Iterable

from fastapi import Request

from server.errors import Unauthorized

KEY_PREFIX = "kefu-"
OPEN_KEY_ID = "open"


def new_key() -> tuple[str, str]:
    """A fresh API key and the hash to put into the settings. The key itself is stored nowhere."""
    key = KEY_PREFIX + secrets.token_urlsafe(32)
    return key, hash_key(key)


def hash_key(key: str) -> str:
    """SHA-256 in hex. Keys are 256 random bits, so a slow hash would add nothing."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


class KeyRing:
    """The keys that open `/v1`. An empty ring lets everybody in: the settings allow that on loopback only."""

    def __init__(self, key_hashes: Iterable[str]) -> None:
        self._hashes = tuple(key_hashes)

    def identify(self, authorization: str | None) -> str:
        """A short id of the key in an Authorization header, for limits and cache scopes. Raises Unauthorized."""
        if not self._hashes:
            return OPEN_KEY_ID
        scheme, _, key = (authorization or "").partition(" ")
        presented = hash_key(key.strip())
        found = ""
        for known in self._hashes:
            if hmac.compare_digest(known, presented):
                found = known[:12]
        if scheme.lower() != "bearer" or not found:
            raise Unauthorized("this call needs a valid API key: send it as `Authorization: Bearer KEY`")
        return found


def require_key(ring: KeyRing) -> Callable[[Request], str]:
    """The dependency of every route tagged `key`; its value is the key's id."""

    def key_id(request: Request) -> str:
        return ring.identify(request.headers.get("authorization"))

    return key_id
