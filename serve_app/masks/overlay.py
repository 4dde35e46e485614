"""Draws results: coloured masks over the image, with prompts and a caption."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from serve_app.core.types import Mask, Prompt, RgbArray

_GOLDEN_RATIO = 0.618034
_OPACITY = 0.5
_CAPTION_HEIGHT = 26


def draw_overlay(
    pixels: RgbArray, masks: Sequence[Mask], caption: str, prompts: Sequence[Prompt] = ()
) -> Image.Image:
    """Draw masks over a darkened copy of the image, the largest at the bottom.

    Args:
        pixels: upright ``(H, W, 3) uint8`` RGB.
        masks: masks of that image.
        caption: one line of text above the picture.
        prompts: drawn as crosses (green on the object, red off it) and boxes.
    """
    canvas = pixels.astype(np.float32) * 0.75
    for i, mask in enumerate(sorted(masks, key=lambda m: -m.area)):
        colour = np.array(colorsys.hsv_to_rgb(i * _GOLDEN_RATIO % 1, 0.85, 1.0)) * 255
        array = mask.array
        canvas[array] = (1 - _OPACITY) * pixels[array] + _OPACITY * colour
        canvas[_outline(array)] = 255
    height, width = pixels.shape[:2]
    picture = Image.new("RGB", (width, height + _CAPTION_HEIGHT), "black")
    picture.paste(Image.fromarray(canvas.astype(np.uint8)), (0, _CAPTION_HEIGHT))
    draw = ImageDraw.Draw(picture)
    draw.text((6, 4), caption, fill="white", font=ImageFont.load_default(17))
    for prompt in prompts:
        _draw_prompt(draw, prompt)
    return picture


def side_by_side(pictures: Sequence[Image.Image], height: int) -> Image.Image:
    """Return the pictures in a row, scaled to one height in pixels."""
    scaled = [p.resize((round(p.width * height / p.height), height)) for p in pictures]
    row = Image.new("RGB", (sum(p.width for p in scaled), height), "white")
    x = 0
    for picture in scaled:
        row.paste(picture, (x, 0))
        x += picture.width
    return row


def _outline(mask: np.ndarray) -> np.ndarray:
    """Return the pixels of the mask that have a neighbour outside it."""
    padded = np.pad(mask, 1)
    inside = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    outline: np.ndarray = mask & ~inside
    return outline


def _draw_prompt(draw: ImageDraw.ImageDraw, prompt: Prompt) -> None:
    if prompt.box is not None:
        x0, y0, x1, y1 = prompt.box.tolist()
        draw.rectangle(
            (x0, y0 + _CAPTION_HEIGHT, x1, y1 + _CAPTION_HEIGHT), outline="lime", width=2
        )
    if prompt.point_coords is not None and prompt.point_labels is not None:
        for (x, y), label in zip(
            prompt.point_coords.tolist(), prompt.point_labels.tolist(), strict=True
        ):
            y += _CAPTION_HEIGHT
            for colour, size, line in (("black", 8, 5), ("lime" if label else "red", 7, 3)):
                draw.line((x - size, y, x + size, y), fill=colour, width=line)
                draw.line((x, y - size, x, y + size), fill=colour, width=line)
