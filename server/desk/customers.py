"""Known customers: the site's own server signs a JWT (RFC 7519) that says who is on its page. HS256, and nothing else."""

import base64
import hashlib
import hmac
import logging
import re
import time
from collections.abc import Callable, Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from server.body import parse_body
from server.errors import InvalidRequest, Unauthorized
from server.settings import SiteSettings

log = logging.getLogger("kefu.customers")

MAX_TOKEN_CHARS = 4096
MAX_LIFETIME_S = 10 * 60
CLOCK_SKEW_S = 5
PARTS = re.compile(r"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]{43})")


class CustomerRefused(Unauthorized):
    """The token does not name a customer of this site; the log says why, the caller is not told."""

    def __init__(self) -> None:
        super().__init__("this does not name a customer of this site", param="customer", code="customer_refused")


class _Refusal(Exception):
    """Why, for the log."""


class _Header(BaseModel):
    model_config = ConfigDict(strict=True)
    alg: Literal["HS256"]
    kid: str
    crit: None = None


class _Claims(BaseModel):
    model_config = ConfigDict(strict=True)
    sub: Annotated[str, Field(min_length=1, max_length=200)]
    aud: str
    iat: int
    exp: int
    jti: Annotated[str, Field(min_length=8, max_length=100)]


class Customers:
    """Reads each token once: what was used, or may have been used before this process began, is refused."""

    def __init__(self, sites: Mapping[str, SiteSettings], clock: Callable[[], float] = time.time) -> None:
        self._sites = sites
        self._clock = clock
        self._began_s = clock()
        self._used: dict[tuple[str, str], int] = {}

    def customer_id(self, site: str, token: str) -> str:
        """The customer whom this token names, the `sub` that the site gave it. Raises CustomerRefused."""
        try:
            claims = self._claims(site, token)
            self._use(site, claims)
        except (_Refusal, InvalidRequest) as refusal:
            log.warning("a customer token for site %s was refused: %s", site, refusal)
            raise CustomerRefused from None
        return claims.sub

    def _claims(self, site: str, token: str) -> _Claims:
        parts = PARTS.fullmatch(token) if len(token) <= MAX_TOKEN_CHARS else None
        if parts is None:
            raise _Refusal("it is no signed JWT")
        header = parse_body(_decode(parts[1]), _Header)
        key = self._sites[site].keys.get(header.kid) if site in self._sites else None
        if key is None:
            raise _Refusal("its kid is not a key of this site")
        expected = hmac.digest(key.get_secret_value().encode(), f"{parts[1]}.{parts[2]}".encode(), hashlib.sha256)
        if not hmac.compare_digest(expected, _decode(parts[3])):
            raise _Refusal("its signature is wrong")
        return parse_body(_decode(parts[2]), _Claims)

    def _use(self, site: str, claims: _Claims) -> None:
        now = self._clock()
        if claims.aud != site:
            raise _Refusal("its aud is not this site")
        if claims.exp <= now or claims.exp - claims.iat > MAX_LIFETIME_S:
            raise _Refusal(f"it is expired, or valid for more than {MAX_LIFETIME_S} s")
        if claims.iat > now + CLOCK_SKEW_S:
            raise _Refusal("its iat lies in the future")
        self._used = {used: exp for used, exp in self._used.items() if exp > now}
        if (site, claims.jti) in self._used or claims.iat < self._began_s:
            raise _Refusal("its jti was used before, or may have been before the last start")
        self._used[site, claims.jti] = claims.exp


def _decode(part: str) -> bytes:
    """Base64url as JWS has it: without padding, and spelled in the one way that encoding gives."""
    try:
        raw = base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))
    except ValueError:
        raise _Refusal("it is not base64url") from None
    if base64.urlsafe_b64encode(raw).decode().rstrip("=") != part:
        raise _Refusal("it is not base64url")
    return raw
