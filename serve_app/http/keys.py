"""API keys: who asks, or 401."""

from __future__ import annotations

import hashlib
import hmac

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from serve_app.core.errors import Unauthorized
from serve_app.core.settings import SecuritySettings
from serve_app.http.refusals import refuse
from serve_app.http.tally import PROBES, tally_of

KEY_HEADER = "x-api-key"
_SCHEME = "bearer "


class Keys:
    """Lets those with a key pass, and everybody to the probes; without keys, everybody.

    The configuration holds SHA-256 hashes.  A key has 256 random bits, so there is nothing that
    a slow, salted hash could protect from guessing, as it does for passwords.
    """

    def __init__(self, app: ASGIApp, *, security: SecuritySettings) -> None:
        self._app = app
        self._names = [(bytes.fromhex(key.sha256), key.name) for key in security.api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not self._names:
            await self._app(scope, receive, send)
            return
        tally = tally_of(scope)
        if tally.route not in PROBES:
            name = self._name_of(Headers(scope=scope))
            if name is None:
                error = Unauthorized(
                    "send an API key: authorization: Bearer KEY, or x-api-key: KEY"
                )
                challenge = {"www-authenticate": "Bearer"}
                await refuse(error, "key", scope, receive, send, challenge)
                return
            tally.key = name
        await self._app(scope, receive, send)

    def _name_of(self, headers: Headers) -> str | None:
        key = _key_in(headers)
        if not key:
            return None  # whatever the configuration says of the empty text's hash
        digest = hashlib.sha256(key.encode("latin-1")).digest()
        found = None
        # All are compared, each in constant time: the time tells nothing of which came close.
        for known, name in self._names:
            if hmac.compare_digest(digest, known):
                found = name
        return found


def _key_in(headers: Headers) -> str:
    """The key that a request holds; empty: none."""
    given = headers.get("authorization", "")
    if given[: len(_SCHEME)].lower() == _SCHEME:
        return given[len(_SCHEME) :].strip()
    return headers.get(KEY_HEADER, "").strip()
