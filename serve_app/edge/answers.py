"""What the front answers by itself, in the service's error envelope (`serve_app.http.errors`)."""

from __future__ import annotations

import json
from dataclasses import dataclass

RETRY_AFTER_S = 1

REQUEST_ID_PATTERN = r"^[A-Za-z0-9._:-]{1,64}$"
"""A client's own request id that is kept; the same rule as in `serve_app.http.middleware`."""

REQUEST_ID = "%[var(txn.request_id)]"
"""HAProxy's name for the id of the request that it is answering."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An error of the front: HTTP status, stable code, and one sentence."""

    status: int
    code: str
    message: str

    def body(self, request_id: str) -> str:
        """The envelope as JSON text."""
        error = {"code": self.code, "message": self.message, "request_id": request_id}
        return json.dumps({"error": error}, separators=(",", ":"))

    @property
    def headers(self) -> dict[str, str]:
        retry = {"retry-after": str(RETRY_AFTER_S)} if self.status in (429, 503) else {}
        # After chunks: a connection on which nobody need agree where they end.
        close = {"connection": "close"} if self.status == 411 else {}
        return {"cache-control": "no-store", **retry, **close}


MALFORMED = Answer(400, "malformed_request", "this is not a request of HTTP/1.1")
CONTROL = Answer(400, "malformed_request", "the path holds a control character")
DENIED = Answer(404, "not_found", "there is no such route; /docs lists them")
METHOD = Answer(405, "method_not_allowed", "this method is not served")
TOO_SLOW = Answer(408, "request_timeout", "the request took too long to arrive")
NO_LENGTH = Answer(411, "length_required", "a body needs a content-length; chunks are not taken")
TOO_MANY = Answer(429, "too_many_requests", "too many requests at once from this address")
FAILED = Answer(500, "internal_error", "the service failed")
BAD_ANSWER = Answer(502, "bad_gateway", "the service broke off its answer")
FULL = Answer(503, "overloaded", "the service is full or not ready; try again")
NO_TIME = Answer(504, "deadline_exceeded", "the service did not answer in time")


def too_large(max_bytes: int) -> Answer:
    """The answer to a body over the service's own limit, in the service's own words."""
    return Answer(413, "payload_too_large", f"the request body is larger than {max_bytes} bytes")


OF_HAPROXY = (MALFORMED, TOO_SLOW, TOO_MANY, FAILED, BAD_ANSWER, FULL, NO_TIME)
"""Answers that stand in for HAProxy's own pages of the same status."""
