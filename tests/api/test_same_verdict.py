"""HTTP and the Python types accept and refuse the same values, with the same code and field.

Each request has one odd value: of several faults either side may report another one first.
"""

from __future__ import annotations

import pickle
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from serve_app.capabilities import Everything, Prompt, Prompts, SegmentRequest, TextQuery
from serve_app.client import HttpService
from serve_app.core.errors import InvalidPrompt, SamServeError
from serve_app.core.limits import Limits
from serve_app.core.ports import SegmentationService
from serve_app.flow.flow import SegmentationFlow
from serve_app.http.app import create_app

from ..fakes.flow import FakeGraph
from ..fakes.service import FakeService

pytestmark = pytest.mark.slow

LIMITS = Limits(
    max_prompts=3, max_points=2, max_texts=2, max_text_chars=8, max_points_per_side=8,
    max_total_points=3, linger_seconds=0,
)  # fmt: skip
VALID_BOX = [1, 2, 3, 4]
NUMBERS = st.sampled_from(
    [
        *(0, 1, -1, 2, 3, 8, 9, 64, 65, 4096, 4097, 10**6, 10**9, 2**31 - 1, 2**31, 2**40),
        *(0.0, -0.0, 0.5, 1.0, 1.5, -0.001, 1.001, 1e-300, 1e9, 1e10, 1e300),
    ]
)
ODD = st.sampled_from([True, False, "", "1", "x", [], [1], {}, [[1, 2]], "fast", "grid"])
VALUES = NUMBERS | ODD
Verdict = tuple[str, str | None] | None


def one_of(
    names: Any, values: st.SearchStrategy[Any] = VALUES
) -> st.SearchStrategy[dict[str, Any]]:
    """One field with any value."""
    return st.dictionaries(st.sampled_from(sorted(names)), VALUES, min_size=1, max_size=1)


def _points(count: int) -> dict[str, Any]:
    return {"point_coords": [[1, 2]] * count, "point_labels": [1] * count}


PROMPT = st.one_of(
    st.fixed_dictionaries({"box": st.lists(NUMBERS, min_size=3, max_size=5) | VALUES}),
    st.fixed_dictionaries({"mask_input": VALUES | st.just("AAAA")}),
    st.integers(0, 3).map(_points),
    st.lists(st.lists(NUMBERS | ODD, min_size=1, max_size=3), min_size=1, max_size=2).map(
        lambda points: {"point_coords": points, "point_labels": [1] * len(points)}
    ),
    st.lists(st.sampled_from([0, 1, 2, -1, 0.5, 1.0, True, "1"]), max_size=2).map(
        lambda labels: {"point_coords": [[1, 2]] * 2, "point_labels": labels}
    ),
    st.just({"point_labels": [1]}),
    st.just({"point_coords": [[1, 2]]}),
    st.booleans().map(lambda multimask: {"box": VALID_BOX, "multimask_output": multimask}),
    one_of(["color", "boxes"]),
)
TEXTS = st.sampled_from(["dog", "", "  ", "a long text", ["a"], ["a", "b"], ["a", "b", "c"], [], 7])


async def over_http(members: dict[str, Any]) -> Verdict:
    app = create_app(FakeService(), LIMITS, metrics=None, version="1")  # type: ignore[arg-type]
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://sam") as client:
        response = await client.post("/v1/segment", json={"image_id": "a", **members})
    if response.status_code == 200:
        return None
    assert response.status_code == 422, response.text
    error = response.json()["error"]
    return error["code"], error.get("field")


def in_python(build: Any, **options: Any) -> Verdict:
    try:
        SegmentRequest(image="a", task=build(), **options).within(LIMITS)
    except SamServeError as exc:
        return exc.code, exc.field
    return None


CASES = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None
)


@given(parameters=one_of(Everything.model_fields))
@CASES
async def test_everything(parameters: dict[str, Any]) -> None:
    verdict = await over_http({"everything": parameters})
    assert in_python(lambda: Everything(**parameters)) == verdict


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("points_per_batch", 10**9),
        ("stability_score_offset", 1e300),
        ("crop_n_points_downscale_factor", 10**6),
        ("min_mask_region_area", 2**40),
    ],
)
async def test_everything_as_it_once_differed(name: str, value: float) -> None:
    refused = ("invalid_request", f"everything.{name}")
    assert await over_http({"everything": {name: value}}) == refused
    assert in_python(lambda: Everything(**{name: value})) == refused


@given(text=TEXTS)
@CASES
async def test_text(text: Any) -> None:
    assert in_python(lambda: TextQuery(text=text)) == await over_http({"text": text})


@given(parameters=one_of(set(TextQuery.model_fields) - {"text"}))
@CASES
async def test_parameters_of_text(parameters: dict[str, Any]) -> None:
    verdict = await over_http({"text": "dog", **parameters})
    assert in_python(lambda: TextQuery(text="dog", **parameters)) == verdict


@given(prompt=PROMPT, before=st.integers(0, 2))
@CASES
async def test_prompts(prompt: dict[str, Any], before: int) -> None:
    prompts = [{"box": VALID_BOX}] * before + [prompt]
    verdict = await over_http({"prompts": prompts})
    assert in_python(lambda: Prompts(prompts=prompts)) == verdict  # type: ignore[arg-type]


@pytest.mark.parametrize("prompts", [[{"box": VALID_BOX}] * 4, [_points(2)] * 2, [], 7, [7]])
async def test_lists_of_prompts(prompts: Any) -> None:
    verdict = await over_http({"prompts": prompts})
    assert verdict is not None
    assert in_python(lambda: Prompts(prompts=prompts)) == verdict


@given(prompt=PROMPT.filter(lambda p: not {"color", "boxes"} & p.keys()))
@CASES
async def test_a_prompt_alone(prompt: dict[str, Any]) -> None:
    verdict = await over_http(prompt)
    python = in_python(lambda: [Prompt(**prompt)])
    if python is not None and python[0] == "too_many_prompts" and python[1] is not None:
        # The limits are checked in the request, where the prompt stands in a list.
        python = (python[0], python[1].removeprefix("prompts[0]."))
    assert python == verdict


@given(options=one_of(["max_latency_ms", "min_quality", "return_logits", "variant"]))
@CASES
async def test_options(options: dict[str, Any]) -> None:
    verdict = await over_http({"box": VALID_BOX, **options})
    assert in_python(lambda: [Prompt(box=VALID_BOX)], **options) == verdict


IMAGES = [
    *(b"", bytearray(), bytearray(b"no image"), b"no image", memoryview(b"no image")),
    *("", "x.png", "https://example.com/x.png", "a", "a" * 129, "9x9-" + "0" * 64),
    *(None, 7, Path("x.png"), Image.new("L", (9, 9)), [[1, 2]]),
    *(np.zeros(shape, np.uint8) for shape in [(9, 9, 3), (9, 9), (9, 9, 1), (9, 9, 4)]),
    *(np.zeros(shape, np.uint8) for shape in [(9, 9, 2), (3, 9, 9), (1, 9, 9, 3), (0, 9), (9,)]),
    *(np.zeros((9, 9, 3), dtype) for dtype in (np.float32, np.uint16, np.bool_)),
    np.zeros((9, 99, 3), np.uint8),
]


@pytest.mark.parametrize("image", IMAGES, ids=range(len(IMAGES)))
async def test_images(image: Any) -> None:
    """The client, handles and the service in this process: one verdict, and one picture."""
    limits = LIMITS.model_copy(update={"max_image_side": 50})
    prompts = [Prompt(box=VALID_BOX)]

    async def over_handle(service: SegmentationFlow) -> str:
        sent = pickle.dumps(SegmentRequest(image=image, task=prompts))
        return (await service.segment(pickle.loads(sent))).image_id  # noqa: S301

    async def embedded(service: SegmentationService) -> str:
        return (await service.embed(image, "auto")).image_id

    async def by_client(service: SegmentationService) -> str:
        return (await service.segment(SegmentRequest(image=image, task=prompts))).image_id

    async def verdict(call: Callable[[Any], Awaitable[str]], client: bool) -> tuple[str, str]:
        flow = FakeGraph(limits=limits).flow
        app = create_app(flow, limits, metrics=None, version="1")  # type: ignore[arg-type]
        try:
            if not client:
                return "ok", await call(flow)
            async with HttpService("http://sam", transport=httpx.ASGITransport(app)) as service:
                return "ok", await call(service)
        except SamServeError as exc:
            return exc.code, exc.message

    wanted = await verdict(over_handle, client=False)
    assert await verdict(embedded, client=False) == wanted
    assert await verdict(by_client, client=True) == wanted
    assert await verdict(embedded, client=True) == wanted
    assert wanted[0] != "internal_error"


def test_arrays_of_other_libraries_and_of_booleans_are_taken() -> None:
    torch = pytest.importorskip("torch")
    prompt = Prompt(
        point_coords=torch.tensor([[1.0, 2.0]]),
        point_labels=np.array([True]),
        box=torch.tensor([1, 2, 3, 4]),
    )
    assert prompt.point_labels.tolist() == [1]
    assert prompt.box.tolist() == VALID_BOX


def test_labels_of_any_number_are_checked() -> None:
    with pytest.raises(InvalidPrompt) as caught:
        Prompt(point_coords=np.zeros((5000, 2)), point_labels=np.full(5000, 7.5))
    assert caught.value.field == "point_labels"


def test_a_pickled_prompt_stays_read_only() -> None:
    prompt = pickle.loads(pickle.dumps(Prompt(box=VALID_BOX)))  # noqa: S301
    with pytest.raises(ValueError, match="read-only"):
        prompt.box[0] = 5
