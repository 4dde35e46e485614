"""A checked body and its file → the domain's request."""

from __future__ import annotations

import numpy as np

from serve_app.core.errors import InvalidPrompt, InvalidRequest, SamServeError
from serve_app.core.limits import Limits
from serve_app.core.types import (
    LOW_RES,
    Everything,
    EverythingMode,
    Float32Array,
    Prompt,
    ProposalSource,
    SegmentRequest,
    Task,
    TextQuery,
)
from serve_app.http.body import image_file
from serve_app.http.parsing import decode_base64
from serve_app.http.schemas import EverythingBody, ImageBody, PromptBody, SegmentBody


def image_of(body: ImageBody, file: bytes | None) -> bytes | str:
    """The image: a file's bytes, or the ``image_id`` of one that is known.

    Raises:
        InvalidRequest: none or several images, or not base64.
        InvalidImage: an empty file.
    """
    given = [value for value in (file, body.image, body.image_id) if value is not None]
    if len(given) != 1:
        raise InvalidRequest("give exactly one image: a file, image (base64) or image_id", "image")
    if file is not None:
        return image_file(file, "file")
    if body.image_id is not None:
        return body.image_id
    return image_file(_decode_image(body.image or ""), "image")


def _decode_image(text: str) -> bytes:
    if text[:5].lower() == "data:":
        head, comma, text = text.partition(",")
        if not comma or not head.lower().endswith(";base64"):
            raise InvalidRequest("a data: URL must be of the form data:image/…;base64,…", "image")
    elif text[:8].lower().startswith(("http://", "https://")):
        raise InvalidRequest("image must be base64; URLs are not fetched", "image")
    return decode_base64(text, "image")


def segment_request(
    body: SegmentBody, file: bytes | None, limits: Limits, timeout_s: float | None = None
) -> SegmentRequest:
    """The domain's request.

    Args:
        timeout_s: how long the caller waits, as its header says.

    Raises:
        SamServeError: what the domain finds wrong, told at the field of the body.
    """
    return SegmentRequest(
        image=image_of(body, file),
        task=_task(body, limits),
        variant=body.variant,
        return_logits=body.return_logits,
        max_latency_ms=body.max_latency_ms,
        min_quality=body.min_quality,
        timeout_s=timeout_s,
    )


def _task(body: SegmentBody, limits: Limits) -> Task:
    if body.text is not None:
        return TextQuery(
            texts=(body.text,) if isinstance(body.text, str) else tuple(body.text),
            threshold=body.text_threshold,
            max_masks=16 if body.max_masks is None else body.max_masks,
            points_per_side=16 if body.points_per_side is None else body.points_per_side,
            proposals=None if body.proposals is None else ProposalSource(body.proposals),
        )
    if body.everything:
        given = EverythingBody() if body.everything is True else body.everything
        parameters = given.model_dump()
        if "points_per_side" not in given.model_fields_set:
            # Meta's default may be more than this service allows.
            parameters["points_per_side"] = min(given.points_per_side, limits.max_points_per_side)
        try:
            return Everything(
                **{
                    **parameters,
                    "proposals": ProposalSource(given.proposals),
                    "mode": EverythingMode(given.mode),
                }
            )
        except SamServeError as exc:
            raise exc.at("everything") from None
    multimask = True if body.multimask_output is None else body.multimask_output
    if body.prompts is None:
        return (_prompt(body, multimask),)
    prompts = []
    for index, prompt in enumerate(body.prompts):
        own = prompt.multimask_output
        try:
            prompts.append(_prompt(prompt, multimask if own is None else own))
        except SamServeError as exc:
            raise exc.at(f"prompts[{index}]") from None
    return tuple(prompts)


def _prompt(body: PromptBody | SegmentBody, multimask_output: bool) -> Prompt:
    return Prompt(
        point_coords=body.point_coords,  # type: ignore[arg-type]  # Prompt makes arrays of lists
        point_labels=body.point_labels,  # type: ignore[arg-type]
        box=body.box,  # type: ignore[arg-type]
        mask_input=_logits(body.mask_input),
        multimask_output=multimask_output,
    )


def _logits(value: str | list[list[float]] | None) -> Float32Array | None:
    """``(256, 256) float32`` logits from nested lists or base64."""
    if value is None:
        return None
    if not isinstance(value, str):
        return np.asarray(value)  # its range is checked by Prompt
    raw = decode_base64(value, "mask_input")
    cells = LOW_RES * LOW_RES
    dtype = {cells * 2: "<f2", cells * 4: "<f4"}.get(len(raw))
    if dtype is None:
        raise InvalidPrompt(
            f"mask_input must be {LOW_RES} x {LOW_RES} float16 or float32 numbers", "mask_input"
        )
    return np.frombuffer(raw, dtype=dtype).reshape(LOW_RES, LOW_RES).astype(np.float32)
