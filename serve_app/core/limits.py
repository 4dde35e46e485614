"""The limits on requests, in one place; an error names the limit that was exceeded.

Queue lengths behind the ingress are settings of each deployment: `Replicas.max_ongoing_requests`
and `max_queued_requests` (`serve_app.core.settings`).  Rate limits are settings of each API key
(`SecuritySettings`).
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Limits(BaseModel):
    """Limits on requests.  A request over a limit gets a 4xx or 503 that names it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_body_bytes: int = Field(64 * 2**20, gt=0, description="bytes of a request body")
    linger_seconds: float = Field(
        5.0,
        ge=0,
        description="seconds for which the rest of a body is read and dropped after an early "
        "response: otherwise clients that are still sending would see a connection reset",
    )
    max_body_seconds: float = Field(60, gt=0, description="seconds in which a body must arrive")
    body_grace_seconds: float = Field(
        10, gt=0, description="seconds in which a body may arrive at any rate"
    )
    min_body_bytes_per_second: int = Field(
        4_096, gt=0, description="minimum average rate of a body that takes longer"
    )
    answer_grace_seconds: float = Field(
        20, gt=0, description="seconds in which a client may read nothing of the response"
    )
    min_answer_bytes_per_second: int = Field(
        16_384, gt=0, description="minimum average rate of reading a chunk that takes longer"
    )
    max_concurrent_requests: int = Field(
        64,
        gt=0,
        description="POST requests processed at once by one ingress replica; more are rejected",
    )
    max_arriving_requests: int = Field(
        128,
        gt=0,
        description="POST requests with bodies still being uploaded to it, not counted as "
        "processed; more are rejected",
    )
    max_lingering_requests: int = Field(
        16, ge=0, description="bodies read and dropped at once after an early response"
    )
    max_image_pixels: int = Field(64_000_000, gt=0, description="pixels of one image")
    max_image_side: int = Field(16_384, gt=0, description="pixels of an image's longer side")
    max_prompts: int = Field(1_024, gt=0, description="prompts for one image")
    max_points: int = Field(256, gt=0, description="points in one prompt")
    max_total_prompts: int = Field(
        4_096, gt=0, description="prompts and texts in one call, over all images of a batch"
    )
    max_total_points: int = Field(
        10_000, gt=0, description="points in one call, over all prompts and images"
    )
    max_texts: int = Field(16, gt=0, description="texts in one request")
    max_text_chars: int = Field(256, gt=0, description="characters in one text")
    max_points_per_side: int = Field(64, gt=0, description="grid points per side of 'everything'")
    max_crop_layers: int = Field(2, ge=0, description="crop layers of 'everything'")
    max_batch_images: int = Field(64, gt=0, description="images in one batch call")
    batch_concurrency: int = Field(
        8,
        gt=0,
        description="images of one batch call processed at once: enough to fill the encoder",
    )
    max_json_depth: int = Field(16, gt=0, description="nesting depth of lists and objects in JSON")
    max_json_values: int = Field(
        300_000, gt=0, description="values in one JSON text, or in all fields of a form"
    )
    max_json_containers: int = Field(
        50_000,
        gt=0,
        description="lists and objects among them: each costs as much as ten numbers; the worst "
        "text that passes blocks the event loop for 0.2 s (on one CPU core)",
    )
    max_json_members: int = Field(
        64, gt=0, description="members of one JSON object; each unknown one would be reported"
    )
    max_form_fields: int = Field(128, gt=0, description="fields of a form, without files")
    max_field_bytes: int = Field(
        16 * 2**20, gt=0, description="bytes of a form field that is not a file"
    )

    @property
    def most_requests(self) -> int:
        """POST requests that one ingress replica may hold at once, in any state."""
        return (
            self.max_concurrent_requests + self.max_arriving_requests + self.max_lingering_requests
        )
