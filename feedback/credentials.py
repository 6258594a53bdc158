"""How an agent proves who they are: passwords, one-time passwords, session tokens. Nothing here needs the database."""

import hashlib
import hmac
import secrets
import unicodedata
from typing import Literal

Role = Literal["agent", "editor", "admin"]
# One of the equally strong settings of OWASP's Password Storage Cheat Sheet: the one that takes 16 MiB, beside a model that wants them all.
SCRYPT = {"n": 2**14, "r": 8, "p": 5}
MIN_PASSWORD_CHARS, MAX_PASSWORD_CHARS = 12, 200
# What the password of a name that does not exist is compared with.
NOBODYS_HASH = ":".join(["scrypt", *(str(value) for value in SCRYPT.values()), "00" * 16, "00" * 64])
# Letters and digits that nobody confuses when reading them out.
ALPHABET = "abcdefghjkmnpqrstuvwxyz23456789"


class AccountError(Exception):
    """Base of what accounts refuse: no such agent, a name that is taken or cannot be, and BadPassword."""


class BadPassword(AccountError):
    """Too short, too long, or the name itself."""


class WrongPassword(Exception):
    """No agent has this name and this password; which of the two is wrong is not told."""


def fold(name: str) -> str:
    """A name as it is compared."""
    return unicodedata.normalize("NFKC", name).strip().casefold()


def one_time_password() -> str:
    """79 random bits, to be typed once."""
    return "-".join("".join(secrets.choice(ALPHABET) for _ in range(4)) for _ in range(4))


def hash_password(password: str) -> str:
    """scrypt with a salt of its own; its settings stand before it, so that they can be raised. Takes some tenths of a second."""
    salt = secrets.token_bytes(16)
    return ":".join(["scrypt", *(str(value) for value in SCRYPT.values()), salt.hex(), _scrypt(password, salt, **SCRYPT).hex()])


def is_password(password: str, password_hash: str) -> bool:
    """Compared in constant time."""
    _, n, r, p, salt, wanted = password_hash.split(":")
    presented = _scrypt(password, bytes.fromhex(salt), int(n), int(r), int(p))
    return hmac.compare_digest(bytes.fromhex(wanted), presented)


def hash_token(token: str) -> str:
    """SHA-256 in hex. Tokens are 256 random bits, so a slow hash would add nothing."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def _scrypt(password: str, salt: bytes, n: int, r: int, p: int) -> bytes:
    typed = unicodedata.normalize("NFKC", password).encode("utf-8", "surrogatepass")
    return hashlib.scrypt(typed, salt=salt, n=n, r=r, p=p, maxmem=256 * n * r)
