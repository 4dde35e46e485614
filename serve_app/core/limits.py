"""What the service accepts, in one place; each limit is told in its error.

How many requests may wait at each hop behind the ingress is said with the deployment that they
wait for: `Replicas.max_ongoing_requests` and `max_queued_requests` (`serve_app.core.settings`).
What one key may ask is said with the key (`SecuritySettings`).
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Limits(BaseModel):
    """Bounds on one request.  A request beyond one gets a 4xx or 503 that names the bound."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_body_bytes: int = Field(64 * 2**20, gt=0, description="bytes of a request body")
    linger_seconds: float = Field(
        5.0,
        ge=0,
        description="for which the rest of a body is read over after an early answer: clients "
        "that send before they read would be reset instead of told",
    )
    max_body_seconds: float = Field(60, gt=0, description="seconds in which a body must arrive")
    body_grace_seconds: float = Field(
        10, gt=0, description="seconds in which a body may come as slowly as it likes"
    )
    min_body_bytes_per_second: int = Field(
        4_096, gt=0, description="what must have come, on average, of a body that takes longer"
    )
    answer_grace_seconds: float = Field(
        20, gt=0, description="seconds in which a client may take nothing of its answer"
    )
    min_answer_bytes_per_second: int = Field(
        16_384, gt=0, description="what must be taken, on average, of a piece that needs longer"
    )
    max_concurrent_requests: int = Field(
        64, gt=0, description="POST requests in work in one ingress replica; beyond: overloaded"
    )
    max_arriving_requests: int = Field(
        128,
        gt=0,
        description="POST requests whose bodies are on their way to it: slow ones take no place "
        "from those in work; beyond: overloaded",
    )
    max_lingering_requests: int = Field(
        16, ge=0, description="bodies read over at once after an early answer"
    )
    max_image_pixels: int = Field(64_000_000, gt=0, description="pixels of one image")
    max_image_side: int = Field(16_384, gt=0, description="pixels of an image's longer side")
    max_prompts: int = Field(1_024, gt=0, description="prompts for one image")
    max_points: int = Field(256, gt=0, description="points in one prompt")
    max_total_prompts: int = Field(
        4_096, gt=0, description="prompts in one call, those of all images of a batch together"
    )
    max_total_points: int = Field(
        10_000, gt=0, description="points in one call, those of all prompts and images together"
    )
    max_texts: int = Field(16, gt=0, description="texts in one request")
    max_text_chars: int = Field(256, gt=0, description="characters in one text")
    max_points_per_side: int = Field(64, gt=0, description="grid points a side of 'everything'")
    max_crop_layers: int = Field(2, ge=0, description="crop layers of 'everything'")
    max_batch_images: int = Field(64, gt=0, description="images in one batch call")
    batch_concurrency: int = Field(
        8,
        gt=0,
        description="images of one batch call under way at once: enough to fill the encoder",
    )
    max_json_depth: int = Field(16, gt=0, description="levels of lists and objects in JSON")
    max_json_values: int = Field(
        300_000,
        gt=0,
        description="values in one JSON text, or in all of a form together",
    )
    max_json_containers: int = Field(
        50_000,
        gt=0,
        description="lists and objects among them: each takes as long as ten numbers, and all "
        "together hold the event loop for 0.2 s (the worst text that passes, on one CPU core)",
    )
    max_json_members: int = Field(
        64, gt=0, description="members of one JSON object; each unknown one is a fault to tell"
    )
    max_form_fields: int = Field(128, gt=0, description="fields of a form, files apart")
    max_field_bytes: int = Field(16 * 2**20, gt=0, description="bytes of a form field, not a file")

    @property
    def most_requests(self) -> int:
        """POST requests that one ingress replica may hold at once, in whatever state."""
        return (
            self.max_concurrent_requests + self.max_arriving_requests + self.max_lingering_requests
        )
