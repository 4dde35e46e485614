"""What the service accepts, in one place; each limit is told in its error."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Limits(BaseModel):
    """Bounds on one request.  A request beyond one gets a 4xx that names the bound."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_body_bytes: int = Field(64 * 2**20, gt=0, description="bytes of a request body")
    max_image_pixels: int = Field(64_000_000, gt=0, description="pixels of one image")
    max_image_side: int = Field(16_384, gt=0, description="pixels of an image's longer side")
    max_prompts: int = Field(1_024, gt=0, description="prompts in one request")
    max_points: int = Field(256, gt=0, description="points in one prompt")
    max_texts: int = Field(16, gt=0, description="texts in one request")
    max_text_chars: int = Field(256, gt=0, description="characters in one text")
    max_points_per_side: int = Field(64, gt=0, description="grid points a side of 'everything'")
    max_crop_layers: int = Field(2, ge=0, description="crop layers of 'everything'")
    max_batch_images: int = Field(64, gt=0, description="images in one batch call")
