"""Every error the service answers with, each with a stable code and its HTTP status.

The way of a request, with the error that can leave each step::

    key ──Unauthorized, RateLimited, Overloaded──▶
    body ──InvalidRequest, PayloadTooLarge, BodyTimeout──▶
    prompts ──InvalidPrompt, TooManyPrompts──▶
    image ──InvalidImage, ImageTooLarge, UnknownImage──▶ variant ──UnknownVariant, HintsUnmet──▶
    weights ──WeightsUnavailable──▶ model ──Overloaded, DeadlineExceeded, InternalError──▶ masks

``SamServeError`` is the only type that the interfaces turn into an answer.  Its text is
written for the caller: it never holds a path, a traceback, an address or request data other
than the offending number or name (shortened).
"""

from __future__ import annotations

from typing import Any, ClassVar


class SamServeError(Exception):
    """Base of all errors told to a caller.

    Args:
        message: one helpful sentence for the caller.
        field: the request field that is at fault, such as ``prompts[3].box``.
    """

    code: ClassVar[str] = "internal_error"
    status: ClassVar[int] = 500

    retry_after_s: int | None = None
    """Seconds to wait, set by who knows them; no argument, so that errors travel as they are."""

    def __init__(self, message: str, field: str | None = None) -> None:
        # All arguments reach Exception.args: an error that does not forward them cannot be
        # unpickled by the calling process and would arrive there as another type.
        super().__init__(message, field)
        self.message = message
        self.field = field

    def __str__(self) -> str:
        return self.message

    def at(self, prefix: str) -> SamServeError:
        """The same error, told at ``prefix`` of the request (``prompts[3]`` + ``box``)."""
        field = f"{prefix}.{self.field}" if self.field else prefix
        return type(self)(self.message, field)

    def body(self) -> dict[str, Any]:
        """The error as the ``error`` object of an answer."""
        body: dict[str, Any] = {"code": self.code, "message": self.message}
        if self.field is not None:
            body["field"] = self.field
        return body


class InvalidRequest(SamServeError):
    """The request is not of the documented form."""

    code = "invalid_request"
    status = 422


class InvalidPrompt(InvalidRequest):
    """A prompt's numbers make no sense: wrong shape, NaN, labels that do not match, outside."""

    code = "invalid_prompt"


class TooManyPrompts(InvalidRequest):
    """More prompts, points, texts or images than the limits allow."""

    code = "too_many_prompts"


class UnknownFormat(InvalidRequest):
    """``format`` is none of the mask formats."""

    code = "unknown_format"


class UnknownVariant(InvalidRequest):
    """The variant is not deployed here."""

    code = "unknown_variant"


class HintsUnmet(InvalidRequest):
    """No variant meets ``max_latency_ms`` and ``min_quality``, even without any load."""

    code = "hints_unmet"


class TextUnavailable(InvalidRequest):
    """This graph has no text scoring, or not the engine that was asked for."""

    code = "text_unavailable"


class InvalidImage(SamServeError):
    """The bytes are not an image of a supported format, or a broken one."""

    code = "invalid_image"
    status = 400


class ImageTooLarge(SamServeError):
    """The image's header promises more pixels or a longer side than the limits allow."""

    code = "image_too_large"
    status = 413


class PayloadTooLarge(SamServeError):
    """The request body is larger than the limit."""

    code = "payload_too_large"
    status = 413


class BodyTimeout(SamServeError):
    """The request body did not arrive in time."""

    code = "body_timeout"
    status = 408


class Unauthorized(SamServeError):
    """The request holds none of the service's API keys."""

    code = "unauthorized"
    status = 401


class RateLimited(SamServeError):
    """The key's requests of this minute are used up; try again later."""

    code = "rate_limited"
    status = 429


class UnknownImage(SamServeError):
    """The ``image_id`` is not, or no longer, known: send the image again."""

    code = "unknown_image"
    status = 404


class NotFound(SamServeError):
    """No such route."""

    code = "not_found"
    status = 404


class MethodNotAllowed(SamServeError):
    """The route exists, for another method."""

    code = "method_not_allowed"
    status = 405


class Overloaded(SamServeError):
    """Queues are full; try again later."""

    code = "overloaded"
    status = 503


class ReplicaLost(SamServeError):
    """A part of the service went twice during the request; it is safe to send it again."""

    code = "replica_lost"
    status = 503


class ShuttingDown(SamServeError):
    """The service is about to stop and begins nothing new."""

    code = "shutting_down"
    status = 503


class DeadlineExceeded(SamServeError):
    """The answer was not ready in time."""

    code = "deadline_exceeded"
    status = 504


class WeightsUnavailable(SamServeError):
    """A model's weights could not be found, fetched or verified."""

    code = "weights_unavailable"
    status = 503


class InternalError(SamServeError):
    """A fault of the service; the log has it under the request's id."""
