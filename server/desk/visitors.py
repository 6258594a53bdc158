"""Visitors: a customer is whoever holds a token we signed for this site; no id that a client sends is ever adopted."""

import base64
import hashlib
import hmac
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from itsdangerous import BadSignature, URLSafeTimedSerializer

from feedback.record import new_id
from server.errors import Unauthorized

TOKEN_LIFETIME_S = 30 * 60
RENEWABLE_S = 30 * 24 * 3600
PURPOSE = "kefu.desk.visitor"
KNOWN = "cus_"
MAX_KNOWN = 10_000


class InvalidToken(Unauthorized):
    """The token is missing, forged, expired or was signed for something else: which of these is not told."""

    def __init__(self) -> None:
        super().__init__("this call needs a valid visitor token: send it as `Authorization: Bearer TOKEN`", code="invalid_token")


@dataclass(frozen=True, slots=True)
class VisitorPass:
    visitor_id: str
    token: str
    expires_in_s: int = TOKEN_LIFETIME_S


class Visitors:
    """Issues and reads visitor tokens.

    The key file holds one key per line. The last one signs, every one verifies: add a line to rotate, delete a line to revoke.
    The file is read again when it changes. A site is "" for the chat page itself; a token for one site is none for another.
    """

    def __init__(self, key_file: Path) -> None:
        self._key_file = key_file
        self._read_at_ns = -1
        self._signer = URLSafeTimedSerializer("", salt=PURPOSE)
        self._known: dict[str, tuple[str, str]] = {}
        self._customer_key_file = key_file.with_name("customer.key")
        for file in (key_file, self._customer_key_file):
            if not file.exists():
                _write_new_key(file)

    def admit(self, site: str = "") -> VisitorPass:
        """A new visitor."""
        return self._pass(new_id("vis"), site)

    def know(self, site: str, customer_id: str) -> VisitorPass:
        """The visitor that this customer of the site always is. Of `customer_id` only a keyed hash is kept; the token carries it."""
        key = self._customer_key_file.read_bytes()
        digest = hmac.digest(key, f"{site}\0{customer_id}".encode(), hashlib.sha256)
        return self._pass(KNOWN + base64.b32encode(digest).decode().lower()[:20], f"{site}@{customer_id}")

    def hashed(self, text: str) -> str:
        """16 hex digits that only this server can make of `text`: they stay the same and tell nothing of it."""
        return hmac.digest(self._customer_key_file.read_bytes(), text.encode(), hashlib.sha256).hex()[:16]

    def renew(self, token: str, site: str = "") -> VisitorPass:
        """A fresh token for the same visitor, within 30 days of the last one; a known customer is named anew. Raises InvalidToken."""
        visitor_id = self._read(token, site, RENEWABLE_S)
        if visitor_id.startswith(KNOWN):
            raise InvalidToken
        return self._pass(visitor_id, site)

    def visitor_id(self, token: str, site: str = "") -> str:
        """Who holds this token. Raises InvalidToken."""
        return self._read(token, site, TOKEN_LIFETIME_S)

    def customer_of(self, visitor_id: str) -> tuple[str, str]:
        """Site and customer id of a known visitor who has shown a valid token lately; empty ones for anybody else."""
        return self._known.get(visitor_id, ("", ""))

    def _pass(self, visitor_id: str, site: str) -> VisitorPass:
        return VisitorPass(visitor_id, self._current_signer().dumps(f"{visitor_id}@{site}" if site else visitor_id))

    def _read(self, token: str, site: str, max_age_s: int) -> str:
        try:
            visitor_id, _, rest = str(self._current_signer().loads(token, max_age=max_age_s)).partition("@")
        except (BadSignature, UnicodeError) as error:
            raise InvalidToken from error
        signed_for, _, customer_id = rest.partition("@")
        if signed_for != site:
            raise InvalidToken
        if visitor_id.startswith(KNOWN) and customer_id:
            self._known.pop(visitor_id, None)
            self._known[visitor_id] = site, customer_id
            if len(self._known) > MAX_KNOWN:
                del self._known[next(iter(self._known))]
        return visitor_id

    def _current_signer(self) -> URLSafeTimedSerializer:
        changed_at_ns = self._key_file.stat().st_mtime_ns
        if changed_at_ns != self._read_at_ns:
            keys = self._key_file.read_text(encoding="ascii").split()
            if not keys:
                raise ValueError(f"{self._key_file} holds no key; delete it to have a new one made")
            self._signer, self._read_at_ns = URLSafeTimedSerializer(keys, salt=PURPOSE), changed_at_ns
        return self._signer


def _write_new_key(key_file: Path) -> None:
    descriptor = os.open(key_file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(secrets.token_urlsafe(32) + "\n")
