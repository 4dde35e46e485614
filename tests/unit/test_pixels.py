"""What is taken as an image, and that nothing of the caller's is shared with the request."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from serve_app.capabilities import EmbedRequest, Everything, Prompt, SegmentRequest, TextQuery
from serve_app.core.errors import (
    InvalidImage,
    InvalidPrompt,
    InvalidRequest,
    SamServeError,
    UnknownImage,
)
from serve_app.core.limits import Limits
from serve_app.core.pixels import own_image
from serve_app.images.decode import decode_image

RGB = np.random.default_rng(2).integers(0, 256, (6, 8, 3), np.uint8)
GRAY = RGB[..., 0]
RGBA = np.random.default_rng(3).integers(0, 256, (6, 8, 4), np.uint8)
BOX = [Prompt(box=[1, 1, 4, 4])]


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("array", [RGB, GRAY, GRAY[..., None], RGBA], ids=lambda a: str(a.shape))
def test_an_array_is_the_picture_that_its_file_is(array: np.ndarray) -> None:
    wanted = decode_image(png(array.squeeze()), Limits())
    pixels = own_image(array)
    np.testing.assert_array_equal(pixels, wanted)
    np.testing.assert_array_equal(own_image(array[:, ::-1]), wanted[:, ::-1])
    assert isinstance(pixels, np.ndarray)
    assert pixels.flags.c_contiguous
    assert not pixels.flags.writeable


def test_every_transparent_colour_is_composited_as_pillow_does() -> None:
    values, alphas = np.meshgrid(np.arange(256), np.arange(256))
    array = np.stack([values, values, values, alphas], axis=-1).astype(np.uint8)
    np.testing.assert_array_equal(own_image(array), decode_image(png(array), Limits()))


def test_a_matrix_is_a_gray_picture() -> None:
    np.testing.assert_array_equal(own_image(np.asmatrix(GRAY)), own_image(GRAY))


@pytest.mark.parametrize("form", [bytes, bytearray, memoryview])
def test_the_bytes_of_a_file_in_any_form(form: Callable[[bytes], Any]) -> None:
    found = own_image(form(b"a file"))
    assert (type(found), found) == (bytes, b"a file")
    with pytest.raises(InvalidImage, match="empty"):
        own_image(form(b""))


REFUSED = [
    (None, "None"),
    (Path("x.png"), r"read_bytes\(\)"),
    (Image.fromarray(RGB), "PIL"),
    (io.BytesIO(b"x"), r"read\(\)"),
    (RGB.tolist(), r"np.asarray\(image\)$"),
    (RGB * 1.0, r"image.astype\(np.uint8\) if its values are 0 to 255"),
    (RGB.astype(">u2"), "257"),
    (7, "int"),
    (RGB / 255, r"image \* 255"),
    (RGB.astype(np.float16), "float16"),
    (RGB.astype(np.uint16), "257"),
    (RGB.astype(np.int64), "int64"),
    (GRAY > 9, r"\* 255"),
    (np.array([[object()]]), "object"),
    (np.array([["a"]]), "str"),
    (RGB.transpose(2, 0, 1), "transpose"),
    (RGBA.transpose(2, 0, 1), "transpose"),
    (RGB[None], "one by one"),
    (np.zeros((4, 5, 2), np.uint8), "4 x 5 x 2"),
    (np.zeros((4, 5, 5), np.uint8), "4 x 5 x 5"),
    (np.zeros(4, np.uint8), "not 4"),
    (np.zeros((), np.uint8), "scalar"),
    (np.zeros((0, 5, 3), np.uint8), "no pixels"),
    (np.zeros((5, 0), np.uint8), "no pixels"),
    (memoryview(RGB), "memoryview"),
    (memoryview(np.zeros(4, np.float32)), "memoryview"),
]


@pytest.mark.parametrize(("value", "hint"), REFUSED, ids=range(len(REFUSED)))
def test_what_is_no_image_is_refused_with_a_hint(value: Any, hint: str) -> None:
    for build in (
        lambda: SegmentRequest(image=value, task=BOX),
        lambda: EmbedRequest(image=value),
        lambda: EmbedRequest.of(value, "auto"),
    ):
        with pytest.raises(InvalidImage, match=hint) as caught:
            build()
        assert caught.value.field == "image"


@pytest.mark.parametrize(
    "text",
    [
        "x.png",
        "/data/x",
        "C:\\x",
        "https://example.com/x",
        "example.com",
        "a b",
        "iVBOR+w==",
        "a\n",
    ],
)
def test_a_text_that_is_no_image_id_is_told_apart(text: str) -> None:
    with pytest.raises(UnknownImage, match="no path and no URL is opened"):
        SegmentRequest(image=text, task=BOX)


@given(
    st.one_of(st.none(), st.integers(), st.floats(), st.text(), st.binary(), st.lists(st.text()))
)
def test_no_value_raises_another_error(value: Any) -> None:
    with suppress(SamServeError):
        own_image(value)


class LateHandle:
    """As Serve's: a call returns at once, and its arguments are pickled later."""

    def __init__(self) -> None:
        self._calls: list[tuple[Any, ...]] = []

    def remote(self, *given: Any) -> None:
        self._calls.append(given)

    def arrived(self) -> list[Any]:
        return [pickle.loads(pickle.dumps(given[0])) for given in self._calls]  # noqa: S301


def test_a_camera_may_reuse_its_buffer() -> None:
    """Frames, files, coordinates and masks arrive as they were when the call was made."""
    handle = LateHandle()
    frame, file = np.zeros((6, 8, 3), np.uint8), bytearray(9)
    corners, points, labels = np.zeros(4), np.zeros((1, 2)), np.zeros(1, int)
    mask, prompts = np.zeros((256, 256), np.float32), []
    for i in range(1, 6):
        for buffer in (frame, points, mask):
            buffer[:] = i
        file[:] = bytes([i]) * 9
        corners[:] = (i, i, i + 1, i + 1)
        labels[:] = i % 2
        prompt = Prompt(box=corners, point_coords=points, point_labels=labels, mask_input=mask)
        prompts[:] = [prompt]
        handle.remote(SegmentRequest(image=frame, task=prompts))
        handle.remote(SegmentRequest(image=file, task=prompts))
        handle.remote(SegmentRequest(image=memoryview(file), task=prompts))
        handle.remote(EmbedRequest(image=frame))
    for buffer in (frame, corners, points, labels, mask):
        buffer[:] = 99
    file[:] = bytes(9)
    prompts.clear()
    arrived = handle.arrived()
    for i, (of_array, of_file, of_view, embedded) in enumerate(
        zip(*(arrived[start::4] for start in range(4)), strict=True), start=1
    ):
        assert (of_array.image == i).all()
        assert (embedded.image == i).all()
        assert of_file.image == of_view.image == bytes([i]) * 9
        (prompt,) = of_array.task.prompts
        assert prompt.box.tolist() == [i, i, i + 1, i + 1]
        assert prompt.point_coords.tolist() == [[i, i]]
        assert prompt.point_labels.tolist() == [i % 2]
        assert (prompt.mask_input == i).all()


def test_what_a_request_holds_cannot_be_written_to() -> None:
    request = SegmentRequest(image=RGB, task=BOX)
    for sent in (request, pickle.loads(pickle.dumps(request))):  # noqa: S301
        with pytest.raises(ValueError, match="read-only"):
            sent.image[0] = 1
    assert RGB.flags.writeable


# Tasks.


@pytest.mark.parametrize(
    "task",
    [
        Prompt(box=[1, 1, 4, 4]),
        [Prompt(box=[1, 1, 4, 4])],
        ({"box": [1, 1, 4, 4]},),
        {"box": [1, 1, 4, 4]},
        {"box": np.array([1, 1, 4, 4])},
        {"prompts": [{"box": (1, 1, 4, 4)}]},
        {"box": [1, 1, 4, 4], "text": None},
    ],
)
def test_what_is_plainly_a_task_is_one(task: Any) -> None:
    (prompt,) = SegmentRequest(image="a", task=task).task.prompts
    assert prompt.box.tolist() == [1, 1, 4, 4]
    assert prompt.multimask_output


def test_other_tasks_as_their_members() -> None:
    found = SegmentRequest(image="a", task={"text": "cat", "max_masks": 3}).task
    assert found == TextQuery(text="cat", max_masks=3)
    assert SegmentRequest(image="a", task={"everything": True}).task == Everything()


@pytest.mark.parametrize(
    ("task", "hint"),
    [
        ("cat", "TextQuery"),
        (Everything, r"Everything\(\.\.\.\)"),
        (Prompt, r"Prompt\(\.\.\.\)"),
        (None, "task must be"),
        (7, "task must be"),
        (np.zeros(4), "task must be"),
        ({}, "one task"),
        ({"bbox": [1, 2, 3, 4]}, "one task"),
        ({"box": [1, 2, 3, 4], "text": "cat"}, "one task"),
        ({"text": "cat", "variant": "fast"}, "one task"),
        ({7: 8}, "one task"),
        ({"box": [1, 2, 3]}, "4 or more items"),
        (["cat"], "Prompts alone"),
        ([1, 2, 30, 40], "Prompts alone"),
        ([*BOX, TextQuery(text="cat")], "Prompts alone"),
        ([], "at least one"),
    ],
)
def test_what_is_no_task_is_refused_at_once(task: Any, hint: str) -> None:
    with pytest.raises(InvalidRequest, match=hint):
        SegmentRequest(image="a", task=task)


def test_a_mask_is_not_taken_for_logits() -> None:
    with pytest.raises(InvalidPrompt, match="mask_input must hold numbers only, not bool"):
        Prompt(mask_input=np.ones((256, 256), np.bool_))


def test_one_text_is_one_text_or_an_error() -> None:
    assert TextQuery(text="cat").text == ("cat",)
    assert TextQuery(text=np.array(["cat", "dog"])).text == ("cat", "dog")
    for members in ({"texts": "cat"}, {"text": b"cat"}, {"text": {"cat"}}, {"text": iter("cat")}):
        with pytest.raises(InvalidRequest):
            TextQuery(**members)


def test_no_answer_to_multimask_output_is_the_default() -> None:
    assert Prompt(box=[1, 2, 3, 4], multimask_output=None).multimask_output is True  # type: ignore[arg-type]
    of_members = SegmentRequest(
        image="a",
        task={
            "prompts": [{"box": [1, 2, 3, 4], "multimask_output": value} for value in (None, True)],
            "multimask_output": False,
        },
    )
    assert [p.multimask_output for p in of_members.task.prompts] == [False, True]


def test_a_tensor_that_is_not_to_be_read_is_a_typed_error() -> None:
    torch = pytest.importorskip("torch")
    with pytest.raises(InvalidRequest):
        Prompt(box=torch.tensor([1.0, 2, 3, 4], requires_grad=True))
