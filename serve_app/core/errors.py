"""Every error that the service returns, each with a stable code and an HTTP status.

The steps of a request, each with the errors that it can raise::

    key ──Unauthorized, RateLimited, Overloaded──▶
    body ──InvalidRequest, PayloadTooLarge, BodyTimeout──▶
    prompts ──InvalidPrompt, TooManyPrompts──▶
    image ──InvalidImage, ImageTooLarge, UnknownImage──▶ variant ──UnknownVariant, HintsUnmet──▶
    weights ──WeightsUnavailable──▶ model ──Overloaded, DeadlineExceeded, InternalError──▶ masks

``SamServeError`` is the only type that the interfaces turn into an error response.  Its message is
written for the caller: it never contains a path, a traceback, an address or request data other
than the offending number or name (shortened).
"""

from __future__ import annotations

from typing import Any, ClassVar


class SamServeError(Exception):
    """Base of all errors that callers see.

    Args:
        message: one sentence that says what is wrong and what to do.
        field: the invalid request field, such as ``prompts[3].box``.
    """

    code: ClassVar[str] = "internal_error"
    status: ClassVar[int] = 500

    retry_after_s: int | None = None
    """Seconds to wait before a retry, if known.  No argument, so that errors survive pickling."""

    def __init_subclass__(cls, code: str | None = None, status: int | None = None) -> None:
        cls.code, cls.status = code or cls.code, status or cls.status

    def __init__(self, message: str, field: str | None = None) -> None:
        # Pass all arguments to Exception.args: otherwise the calling process could not unpickle
        # the error and would see another type.
        super().__init__(message, field)
        self.message = message
        self.field = field

    def __str__(self) -> str:
        return self.message

    def at(self, prefix: str) -> SamServeError:
        """Return the same error with ``prefix`` before its field (``prompts[3]`` + ``box``)."""
        field = f"{prefix}.{self.field}" if self.field else prefix
        return type(self)(self.message, field)

    def body(self) -> dict[str, Any]:
        """Return the ``error`` object of the response."""
        body: dict[str, Any] = {"code": self.code, "message": self.message}
        if self.field is not None:
            body["field"] = self.field
        return body


class InvalidRequest(SamServeError, code="invalid_request", status=422):
    """The request does not match the documented schema."""


class InvalidPrompt(InvalidRequest, code="invalid_prompt"):
    """A prompt is invalid: wrong shape, NaN, labels that do not match, or outside the image."""


class TooManyPrompts(InvalidRequest, code="too_many_prompts"):
    """More prompts, points, texts or images than the limits allow."""


class UnknownFormat(InvalidRequest, code="unknown_format"):
    """``format`` is not one of the mask formats."""


class UnknownVariant(InvalidRequest, code="unknown_variant"):
    """The variant is not deployed here."""


class HintsUnmet(InvalidRequest, code="hints_unmet"):
    """No variant meets ``max_latency_ms`` and ``min_quality``, even without load."""


class TextUnavailable(InvalidRequest, code="text_unavailable"):
    """Text scoring, or the requested text engine, is not deployed here."""


class InvalidImage(SamServeError, code="invalid_image", status=400):
    """The bytes are not an image in a supported format, or the image is damaged."""


class ImageTooLarge(SamServeError, code="image_too_large", status=413):
    """The image has more pixels or a longer side than the limits allow."""


class PayloadTooLarge(SamServeError, code="payload_too_large", status=413):
    """The request body is larger than the limit."""


class BodyTimeout(SamServeError, code="body_timeout", status=408):
    """The request body did not arrive in time."""


class Unauthorized(SamServeError, code="unauthorized", status=401):
    """The API key is missing or unknown."""


class RateLimited(SamServeError, code="rate_limited", status=429):
    """The API key's rate limit is exceeded; retry later."""


class UnknownImage(SamServeError, code="unknown_image", status=404):
    """The ``image_id`` is not, or no longer, known; send the image again."""


class NotFound(SamServeError, code="not_found", status=404):
    """There is no such route."""


class MethodNotAllowed(SamServeError, code="method_not_allowed", status=405):
    """The route does not support this method."""


class Overloaded(SamServeError, code="overloaded", status=503):
    """The service is at capacity, or too busy for ``max_latency_ms``; retry later."""


class ReplicaLost(SamServeError, code="replica_lost", status=503):
    """A backend failed twice during the request; it is safe to retry."""


class ShuttingDown(SamServeError, code="shutting_down", status=503):
    """The service is shutting down and rejects new requests; retry later."""


class DeadlineExceeded(SamServeError, code="deadline_exceeded", status=504):
    """The response was not ready within the service's or the caller's timeout."""


class WeightsUnavailable(SamServeError, code="weights_unavailable", status=503):
    """A model's weights could not be loaded, or a deployment could not start."""


class InternalError(SamServeError):
    """Internal error; the service's log has the cause under the request id."""
