"""The flow over fakes of its ports: what is asked of whom, in which order, and what comes out."""

from __future__ import annotations

import asyncio
import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from serve_app.capabilities import (
    EmbedRequest,
    Everything,
    EverythingMode,
    SegmentRequest,
    TextQuery,
)
from serve_app.core.errors import (
    DeadlineExceeded,
    HintsUnmet,
    InvalidImage,
    InvalidPrompt,
    InvalidRequest,
    Overloaded,
    SamServeError,
    TextUnavailable,
    TooManyPrompts,
    UnknownImage,
    UnknownVariant,
    WeightsUnavailable,
)
from serve_app.core.inference import Prediction
from serve_app.core.limits import Limits
from serve_app.core.measurements import Additive, Escalation, Measurements, Point, Profile, Steps
from serve_app.core.request import Task, image_id
from serve_app.core.settings import RouterSettings
from serve_app.core.types import CacheTier, Mask, Prompt, ProposalSource, RgbArray, dumped
from serve_app.flow.flow import _minus_network_margin, _respond_by

from ..clocks import VirtualTime
from ..fakes.flow import FakeGraph
from ..fakes.masks import rectangle_mask
from ..fakes.ports import FakePredictor, FakeScorer, prompted_masks

# No figure here is this machine's: what takes time does so on the virtual clock.
pytestmark = pytest.mark.usefixtures("virtual_time")

HEIGHT, WIDTH = 40, 60
PIXELS = np.random.default_rng(1).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
POINT = Prompt(point_coords=[[5, 5]], point_labels=[1])


def _png() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, format="PNG")
    return buffer.getvalue()


def _hang(predictor: FakePredictor) -> asyncio.Event:
    """Let a predictor answer no more; the event is set when its caller has given up."""
    stopped = asyncio.Event()

    async def hang(*_: object) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    predictor.predict = hang  # type: ignore[method-assign,assignment]
    return stopped


async def _error(
    graph: FakeGraph, task: Task, image: bytes | str | RgbArray = PIXELS
) -> SamServeError:
    with pytest.raises(SamServeError) as caught:
        await graph.flow.segment(SegmentRequest(image=image, task=task))
    return caught.value


async def test_a_new_image_travels_once_and_later_only_its_name() -> None:
    graph = FakeGraph()
    first = await graph.flow.segment(SegmentRequest(image=_png(), task=[POINT]))
    assert (first.image_id, first.width, first.height) == (image_id(PIXELS), WIDTH, HEIGHT)
    assert (first.cache, first.variant, first.model) == (CacheTier.MISS, "fast", "fast_model")
    assert {"open_image", "predict", "decode_masks"} <= first.timings_ms.keys()
    again = await graph.flow.segment(SegmentRequest(image=first.image_id, task=[POINT, POINT]))
    assert again.cache is CacheTier.MEMORY
    assert [len(r.masks) for r in again.results] == [2, 2]
    name = first.image_id
    assert graph.fast.calls == [(name, True, 1), (name, False, 2)]


async def test_the_file_sent_again_is_asked_for_by_name_first() -> None:
    graph = FakeGraph()
    await graph.flow.segment(SegmentRequest(image=_png(), task=[POINT]))
    await graph.flow.segment(SegmentRequest(image=_png(), task=[POINT]))
    assert graph.fast.calls[1:] == [(image_id(PIXELS), False, 1)]


async def test_pixels_follow_where_a_variant_does_not_know_the_image() -> None:
    graph = FakeGraph()
    first = await graph.flow.segment(SegmentRequest(image=_png(), task=[POINT]))
    request = SegmentRequest(image=first.image_id, task=[POINT], variant="accurate")
    answer = await graph.flow.segment(request)
    assert (answer.cache, answer.variant, answer.reason) == (
        CacheTier.MISS,
        "accurate",
        "requested",
    )
    name = first.image_id
    assert graph.accurate.calls == [(name, False, 1), (name, True, 1)]


async def test_an_unknown_image_is_told_so() -> None:
    graph = FakeGraph()
    error = await _error(graph, [POINT], image_id(PIXELS))
    assert isinstance(error, UnknownImage)
    assert (error.status, error.field) == (404, "image_id")
    # One that the decoder still knows needs no file.
    graph.fast.known.add(image_id(PIXELS))
    request = SegmentRequest(image=image_id(PIXELS), task=[POINT])
    assert (await graph.flow.segment(request)).cache is CacheTier.MEMORY
    # Nor does a decoder that cannot embed answer for ever.
    graph.fast.forgets = True
    assert isinstance(await _error(graph, [POINT]), UnknownImage)


async def test_embedding_makes_an_image_known() -> None:
    graph = FakeGraph()
    embedded = await graph.flow.embed(_png(), "auto")
    assert (embedded.image_id, embedded.cache, embedded.model) == (
        image_id(PIXELS),
        CacheTier.MISS,
        "fast_model",
    )
    assert (await graph.flow.embed(embedded.image_id, "fast")).cache is CacheTier.MEMORY
    with pytest.raises(UnknownVariant):
        await graph.flow.embed(_png(), "none")


async def test_errors_name_the_field_at_fault() -> None:
    graph = FakeGraph()
    outside = Prompt(point_coords=[[WIDTH + 1, 3]], point_labels=[1])
    error = await _error(graph, [POINT, outside])
    assert isinstance(error, InvalidPrompt)
    assert error.field == "prompts[1].point_coords"
    beside = Prompt(box=[WIDTH, 0, WIDTH + 5, 5])
    assert (await _error(graph, [beside])).field == "prompts[0].box"
    assert isinstance(await _error(graph, [POINT], b"nonsense"), InvalidImage)
    with pytest.raises(UnknownVariant):
        await graph.flow.segment(SegmentRequest(image=PIXELS, task=[POINT], variant="x"))
    assert graph.fast.calls == []  # nothing of this reached a model


@pytest.mark.parametrize(
    "prompt",
    [
        Prompt(point_coords=[[0, 0], [WIDTH, HEIGHT]], point_labels=[1, 0]),
        Prompt(box=[-9, -9, WIDTH + 9, HEIGHT + 9]),
    ],
    ids=["border", "over"],
)
async def test_points_on_the_border_and_boxes_over_it_are_answered(prompt: Prompt) -> None:
    result = await FakeGraph().flow.segment(SegmentRequest(image=PIXELS, task=[prompt]))
    assert result.results[0].masks


LIMITS = Limits(
    max_prompts=2,
    max_points=3,
    max_texts=2,
    max_text_chars=5,
    max_points_per_side=4,
    max_crop_layers=1,
)


@pytest.mark.parametrize(
    ("task", "kind", "field"),
    [
        ([], InvalidPrompt, "prompts"),
        ([POINT] * 3, TooManyPrompts, "prompts"),
        (
            [POINT, Prompt(point_coords=[[1, 1]] * 4, point_labels=[1] * 4)],
            TooManyPrompts,
            "prompts[1].point_coords",
        ),
        (TextQuery(text=("a", "b", "c")), TooManyPrompts, "text"),
        (TextQuery(text=("a", "b" * 6), points_per_side=4), TooManyPrompts, "text"),
        (TextQuery(text=("a",), points_per_side=5), TooManyPrompts, "points_per_side"),
        (Everything(points_per_side=5), TooManyPrompts, "everything.points_per_side"),
        (
            Everything(points_per_side=4, crop_n_layers=2),
            TooManyPrompts,
            "everything.crop_n_layers",
        ),
    ],
)
async def test_tasks_beyond_the_limits_are_refused_before_the_image_is_read(
    task: Task, kind: type[SamServeError], field: str
) -> None:
    graph = FakeGraph(FakeScorer(needs_masks=False), LIMITS)
    error = await _error(graph, task, b"not an image: it would be another error")
    assert (type(error), error.field) == (kind, field)


async def test_a_warning_counts_the_prompts_that_it_is_about() -> None:
    background = Prompt(point_coords=[[1, 1]], point_labels=[0])
    with_box = Prompt(point_coords=[[1, 1]], point_labels=[0], box=[2, 2, 8, 8])
    result = await FakeGraph().flow.segment(
        SegmentRequest(image=PIXELS, task=[with_box, background, POINT, background])
    )
    (warning,) = result.warnings
    assert warning.code == "background_points_only"
    assert (warning.field, warning.count) == ("prompts[1]", 2)
    usual = await FakeGraph().flow.segment(SegmentRequest(image=PIXELS, task=[POINT]))
    assert usual.warnings == ()
    assert "warnings" not in dumped(usual)
    assert dumped(result)["warnings"][0]["count"] == 2


async def test_tasks_at_the_limits_pass() -> None:
    graph = FakeGraph(FakeScorer(needs_masks=False), LIMITS)
    for task in (
        [POINT, Prompt(point_coords=[[1, 1]] * 3, point_labels=[1] * 3)],
        TextQuery(text=("a", "b" * 5), points_per_side=4),
        Everything(points_per_side=4, crop_n_layers=1),
    ):
        await graph.flow.segment(SegmentRequest(image=PIXELS, task=task))


async def test_text_scored_before_it_is_segmented() -> None:
    graph = FakeGraph(FakeScorer(needs_masks=False))
    query = TextQuery(text=("dog", "cat", "horse", "all"), max_masks=2)
    result = await graph.flow.segment(SegmentRequest(image=PIXELS, task=query))
    assert graph.proposer.calls == [(ProposalSource.DETECTOR, 16)]
    dog, cat, horse, everything = result.results
    assert (dog.text, dog.present, dog.masks[0].bbox) == ("dog", True, (20, 5, 20, 20))
    assert (dog.masks[0].label, dog.masks[0].text_score) == ("dog", pytest.approx(0.9))
    assert (cat.text, [m.bbox for m in cat.masks]) == ("cat", [(2, 3, 10, 10)])
    assert (horse.present, horse.masks, horse.best_score) == (False, (), pytest.approx(0.3))
    # The best two of three, best first.
    assert [m.text_score for m in everything.masks] == pytest.approx([0.8, 0.7])
    assert [m.bbox[0] for m in everything.masks] == [45, 20]
    assert (result.text_engine, result.threshold) == ("fake", 0.5)
    # A region that matches two texts is segmented once, with one mask each.
    assert graph.fast.calls == [(image_id(PIXELS), True, 3)]


async def test_text_segmented_before_it_is_scored() -> None:
    scorer = FakeScorer(needs_masks=True)
    graph = FakeGraph(scorer)
    query = TextQuery(text=("at 30", "horse"), points_per_side=8)
    result = await graph.flow.segment(SegmentRequest(image=PIXELS, task=query))
    assert graph.proposer.calls == [(ProposalSource.GRID, 8)]
    found, absent = result.results
    # Each point gave squares of 4 and of 3 pixels, which are no duplicates.
    assert sorted(c.bbox for c in scorer.candidates)[:2] == [(10, 10, 3, 3), (10, 10, 4, 4)]
    assert all(c.mask is not None for c in scorer.candidates)
    assert [m.bbox for m in found.masks] == [(30, 10, 4, 4), (30, 10, 3, 3)]
    assert (absent.present, absent.masks, absent.best_score) == (False, (), pytest.approx(0.3))
    assert graph.fast.options[0].pred_iou_thresh == 0.7


async def test_the_callers_threshold_and_source_count() -> None:
    graph = FakeGraph(FakeScorer(needs_masks=False))
    query = TextQuery(text=("dog",), text_threshold=0.2, proposals=ProposalSource.CONTOURS)
    result = await graph.flow.segment(SegmentRequest(image=PIXELS, task=query))
    assert len(result.results[0].masks) == 3
    assert result.threshold == 0.2
    assert graph.proposer.calls[0][0] is ProposalSource.CONTOURS


@pytest.mark.parametrize("needs_masks", [False, True])
async def test_each_text_has_a_verdict_of_its_own(needs_masks: bool) -> None:
    scorer = FakeScorer(needs_masks=needs_masks)
    graph = FakeGraph(scorer)
    query = TextQuery(text=("no cat", "all", "no dog", "horse"))
    result = await graph.flow.segment(SegmentRequest(image=PIXELS, task=query))
    assert [r.text for r in result.results] == list(query.text)
    assert [r.present for r in result.results] == [None, True, None, False]
    assert [r.unknown and r.unknown.reason for r in result.results] == [
        *("negation", None),
        *("negation", None),
    ]
    assert result.results[0].best_score is None


@pytest.mark.parametrize("needs_masks", [False, True])
async def test_unknown_texts_cost_no_segmentation(needs_masks: bool) -> None:
    graph = FakeGraph(FakeScorer(needs_masks=needs_masks))
    query = TextQuery(text=("no cat", "no dog"), text_threshold=0.25)
    result = await graph.flow.segment(SegmentRequest(image=PIXELS, task=query))
    assert (graph.proposer.calls, graph.fast.calls) == ([], [])
    assert [r.present for r in result.results] == [None, None]
    assert result.threshold == 0.25
    assert dumped(result.results[0]) == {
        "masks": [],
        "text": "no cat",
        "present": None,
        "unknown": {"reason": "negation", "message": "negation is not understood"},
    }


async def test_regions_without_labels_say_nothing_about_a_closed_vocabulary() -> None:
    scorer = FakeScorer(needs_masks=False)
    scorer.vocabulary = ("cat", "dog")
    graph = FakeGraph(scorer)
    for source in (ProposalSource.GRID, ProposalSource.CONTOURS):
        query = TextQuery(text=("cat",), proposals=source)
        result = await graph.flow.segment(SegmentRequest(image=PIXELS, task=query))
        assert result.results[0].present is None
        assert result.results[0].unknown.reason == "proposals"
    assert graph.proposer.calls == []
    query = TextQuery(text=("cat",), proposals=ProposalSource.DETECTOR)
    result = await graph.flow.segment(SegmentRequest(image=PIXELS, task=query))
    assert result.results[0].present is True


async def test_only_texts_have_a_presence() -> None:
    result = await FakeGraph().flow.segment(SegmentRequest(image=PIXELS, task=[POINT]))
    assert result.results[0].present is None
    assert {"present", "unknown"}.isdisjoint(dumped(result.results[0]))


async def test_an_absent_text_still_makes_the_image_known() -> None:
    graph = FakeGraph(FakeScorer(needs_masks=False))
    query = TextQuery(text=("horse",))
    result = await graph.flow.segment(SegmentRequest(image=PIXELS, task=query))
    assert (result.results[0].present, result.cache) == (False, CacheTier.MISS)
    assert image_id(PIXELS) in graph.fast.known


async def test_a_match_whose_mask_is_empty_is_not_present() -> None:
    graph = FakeGraph(FakeScorer(needs_masks=False))
    empty = rectangle_mask((0, 0, 0, 0), size=(HEIGHT, WIDTH))
    graph.fast.masks_of = lambda prompt, size: (empty,)
    result = await graph.flow.segment(SegmentRequest(image=PIXELS, task=TextQuery(text=("dog",))))
    assert (result.results[0].present, result.results[0].masks) == (False, ())


async def test_without_a_scorer_text_is_unavailable() -> None:
    error = await _error(FakeGraph(), TextQuery(text=("dog",)))
    assert isinstance(error, TextUnavailable)
    assert error.field == "text"


async def test_everything_over_the_grid() -> None:
    graph = FakeGraph()
    task = Everything(points_per_side=3, points_per_batch=2, pred_iou_thresh=0, box_nms_thresh=0.4)
    result = await graph.flow.segment(SegmentRequest(image=PIXELS, task=task))
    (answer,) = result.results
    # Of each point's two squares the worse overlaps the better by 4/9, as Meta measures boxes.
    assert [m.bbox for m in answer.masks] == [(10, 10, 4, 4), (30, 10, 4, 4), (10, 30, 4, 4)]
    assert [m.point_coords for m in answer.masks] == [((10, 10),), ((30, 10),), ((10, 30),)]
    assert {m.crop_box for m in answer.masks} == {(0, 0, WIDTH, HEIGHT)}
    # All points in one call: what is done of them at a time is the decoder's business.
    assert graph.fast.calls == [(image_id(PIXELS), True, 3)]
    (options,) = graph.fast.options
    assert (options.prompts_at_once, options.box_nms_thresh) == (2, 0.4)
    # A threshold of 0 is none, as Meta's.
    assert options.pred_iou_thresh is None
    assert options.stability_score_thresh == 0.95


async def test_everything_thins_out_the_grid_alone_and_only_in_the_fast_mode() -> None:
    most = {}
    for mode in EverythingMode:
        for source in (ProposalSource.GRID, ProposalSource.DETECTOR):
            graph = FakeGraph()
            task = Everything(mode=mode, proposals=source)
            await graph.flow.segment(SegmentRequest(image=PIXELS, task=task))
            most[mode, source] = graph.fast.options[0].most_points
    assert most.pop((EverythingMode.FAST, ProposalSource.GRID)) == 384
    assert set(most.values()) == {None}
    assert [Everything().prompts_of_grid(side) for side in (1, 16, 20, 64)] == [1, 256, 256, 1536]
    assert Everything(mode=EverythingMode.EXACT).prompts_of_grid(20) == 400


async def test_everything_over_crops_in_the_frame_of_the_image() -> None:
    graph = FakeGraph()
    task = Everything(points_per_side=4, crop_n_layers=1, crop_n_points_downscale_factor=2)
    await graph.flow.segment(SegmentRequest(image=PIXELS, task=task))
    sides = [side for _, side in graph.proposer.calls]
    assert sides == [4, 2, 2, 2, 2]
    # What a crop cuts off must not win over others before that is seen.
    thresholds = [options.box_nms_thresh for options in graph.fast.options]
    assert thresholds == [0.7, None, None, None, None]
    sizes = [name.split("-")[0] for name, _, _ in graph.fast.calls]
    assert sizes == ["60x40", "37x27", "37x26", "36x27", "36x26"]


async def test_everything_from_the_detector_keeps_labels() -> None:
    graph = FakeGraph()
    task = Everything(proposals=ProposalSource.DETECTOR, crop_n_layers=1)
    result = await graph.flow.segment(SegmentRequest(image=PIXELS, task=task))
    assert [m.label for m in result.results[0].masks] == ["cat", "dog", None]
    assert len(graph.proposer.calls) == 1


async def test_a_request_that_takes_too_long_is_told_so_and_stopped() -> None:
    graph = FakeGraph(timeout_s=0.01)
    stopped = _hang(graph.fast)
    async with asyncio.timeout(60):
        assert isinstance(await _error(graph, [POINT]), DeadlineExceeded)
        assert stopped.is_set()
        with pytest.raises(DeadlineExceeded):
            await graph.flow.embed(PIXELS, "auto")


async def test_logits_do_not_go_with_everything() -> None:
    request = SegmentRequest(image=PIXELS, task=Everything(), return_logits=True)
    with pytest.raises(InvalidRequest) as caught:
        await FakeGraph().flow.segment(request)
    assert caught.value.field == "return_logits"


async def test_models_tells_what_is_deployed() -> None:
    told = await FakeGraph(FakeScorer(needs_masks=True)).flow.models()
    assert (told["default_variant"], told["cascade_to"]) == ("fast", None)
    assert told["variants"]["accurate"]["model"] == "accurate_model"
    assert told["text"]["engine"] == "open_clip"
    assert told["limits"]["max_prompts"] == Limits().max_prompts
    assert (await FakeGraph().flow.models())["text"] is None


# Hints.

FAST = Profile({1: 20.0}, {1: 5.0}, {"box": 0.8, "point": 0.6})
ACCURATE = Profile({1: 900.0}, {1: 10.0}, {"box": 0.9, "point": 0.8})
MEASURED = Measurements({"fast": FAST, "accurate": ACCURATE})
BOX = Prompt(box=[5, 5, 25, 15], multimask_output=False)
OTHER = Prompt(box=[30, 5, 50, 15], multimask_output=False)


def _request(task: Task = (BOX,), **more: object) -> SegmentRequest:
    return SegmentRequest(image=PIXELS, task=task, **more)  # type: ignore[arg-type]


async def test_hints_reach_the_router_and_the_answer_tells_what_it_expected() -> None:
    graph = FakeGraph(measurements=MEASURED)
    quick = await graph.flow.segment(_request(max_latency_ms=100))
    assert (quick.variant, quick.expected_ms, quick.degraded) == ("fast", 25, False)
    good = await graph.flow.segment(_request(min_quality=0.85))
    assert (good.variant, good.expected_ms) == ("accurate", 910)
    assert "min_quality 0.85" in good.reason
    with pytest.raises(HintsUnmet):
        await graph.flow.segment(_request([POINT], min_quality=0.85))
    # What it was asked for is now in the cache of the other variant, too.
    near = await graph.flow.segment(_request(max_latency_ms=12))
    assert near.variant == "accurate"


async def test_requests_under_way_are_load_for_those_that_come() -> None:
    graph = FakeGraph(measurements=MEASURED)
    image = await graph.flow.embed(PIXELS, "fast")
    arrived, go_on = asyncio.Event(), asyncio.Event()
    predict = graph.fast.predict

    async def hang(*given: object) -> Prediction | None:
        arrived.set()
        await go_on.wait()
        return await predict(*given)  # type: ignore[arg-type]

    graph.fast.predict = hang  # type: ignore[method-assign,assignment]
    async with asyncio.timeout(60):
        first = asyncio.create_task(graph.flow.segment(_request([POINT] * 40)))
        await arrived.wait()
        assert graph.dispatcher.variant_state("fast", image.image_id).prompts == 40
        with pytest.raises(Overloaded):
            await graph.flow.segment(_request(max_latency_ms=8))
        go_on.set()
        await first
    assert graph.dispatcher.variant_state("fast", image.image_id).prompts == 0


async def test_a_request_that_fails_is_no_load_any_more() -> None:
    graph = FakeGraph(measurements=MEASURED)
    graph.fast.failure = Overloaded("full")
    with pytest.raises(Overloaded):
        await graph.flow.segment(_request([POINT], variant="fast"))
    now = graph.dispatcher.variant_state("fast", image_id(PIXELS))
    assert (now.prompts, now.images, now.cached) == (0, 0, False)


async def test_an_image_that_a_variant_has_lost_is_not_resident() -> None:
    graph = FakeGraph(measurements=MEASURED)
    await graph.flow.segment(_request())
    assert graph.dispatcher.variant_state("fast", image_id(PIXELS)).cached
    graph.fast.forgets = True
    await _error(graph, [POINT])
    assert not graph.dispatcher.variant_state("fast", image_id(PIXELS)).cached


# The caller's deadline.


@pytest.mark.parametrize(
    ("service_s", "asked_s", "whose"),
    [
        (None, 0.2, "the caller's timeout"),
        (60.0, 0.2, "the caller's timeout"),
        (0.2, 60.0, r"the service's timeout of 0\.2 s"),
    ],
)
async def test_the_sooner_of_the_callers_and_the_services_time_ends_a_request(
    service_s: float | None, asked_s: float, whose: str
) -> None:
    graph = FakeGraph(timeout_s=service_s)
    stopped = _hang(graph.fast)
    async with asyncio.timeout(60):
        with pytest.raises(DeadlineExceeded, match=f"within {whose}$"):
            await graph.flow.segment(_request(timeout_s=asked_s))
        assert stopped.is_set()
        stopped.clear()
        with pytest.raises(DeadlineExceeded, match=f"within {whose}$"):
            await graph.flow.embed(EmbedRequest(image=PIXELS, timeout_s=asked_s))
        assert stopped.is_set()


async def test_whoever_works_for_a_request_is_told_how_long_it_waits() -> None:
    graph = FakeGraph(timeout_s=60)
    await graph.flow.segment(_request())
    await graph.flow.segment(_request(timeout_s=20))
    service_s, caller_s = (seconds or 0 for seconds in graph.fast.times_left)
    assert service_s == 60
    assert 0 < caller_s < 20
    free = FakeGraph()
    await free.flow.segment(_request())
    assert free.fast.times_left == [None]


# The cascade.

SURE = Additive(intercept=0, steps={"score": Steps(edges=(0.5,), values=(0.3, 0.9))})
"""What both variants' answers are worth, by the predicted IoU."""

RULE = Escalation(
    gain=Additive(intercept=0, steps={"score": Steps(edges=(0.5,), values=(0.4, -0.02))}),
    first=SURE,
    second=SURE,
    curve=(Point(threshold=0.1, share=0.3, gain=0.1),),
    single=(Point(threshold=0.1, share=0.3, gain=0.1),),
    first_iou=0.8,
    second_iou=0.9,
)
CASCADE = RouterSettings(cascade_to="accurate")


def _cascade(
    router: RouterSettings = CASCADE,
    accurate: Profile = ACCURATE,
    timeout_s: float | None = None,
) -> FakeGraph:
    """The fast variant is unsure of boxes on the left, and the accurate one sure of all."""
    profiles = {"fast": FAST, "accurate": accurate}
    measurements = Measurements(profiles, {"fast>accurate": {"box-1": RULE}})
    graph = FakeGraph(router=router, measurements=measurements, timeout_s=timeout_s)

    def unsure(prompt: Prompt, size: tuple[int, int]) -> tuple[Mask, ...]:
        (mask,) = prompted_masks(prompt, size)[:1]
        return (replace(mask, score=0.2 if mask.bbox[0] < 30 else 0.9),)

    graph.fast.masks_of = unsure
    graph.accurate.sure = 0.95
    return graph


async def test_only_what_is_worth_it_is_asked_again_and_better_answers_are_kept() -> None:
    graph = _cascade()
    result = await graph.flow.segment(_request([OTHER, BOX, OTHER]))
    assert graph.fast.calls == [(image_id(PIXELS), True, 3)]
    # The other variant did not know the image, either: its pixels go along.
    assert graph.accurate.calls == [(image_id(PIXELS), True, 1)]
    assert [r.masks[0].score for r in result.results] == [0.9, 0.95, 0.9]
    assert [r.masks[0].bbox[0] for r in result.results] == [30, 5, 30]
    assert [r.variant for r in result.results] == [None, "accurate", None]
    assert (result.variant, result.model, result.escalated) == ("fast", "fast_model", 1)
    assert result.reason == (
        "auto: the default variant; "
        "unsure of 1 of 3 prompts, escalated to accurate, 1 of its masks kept"
    )
    assert not result.degraded
    assert result.timings_ms["decode_masks"] == 2  # of both


async def test_the_second_variant_gets_the_prompt_clipped_to_the_image_too() -> None:
    graph = _cascade()
    seen: list[list[float]] = []

    def masks(prompt: Prompt, size: tuple[int, int]) -> tuple[Mask, ...]:
        assert prompt.box is not None
        seen.append(prompt.box.tolist())
        return prompted_masks(prompt, size, 0.95)

    graph.accurate.masks_of = masks
    over = Prompt(box=[-90, -20, 25, 15], multimask_output=False)
    result = await graph.flow.segment(_request([over]))
    assert (result.escalated, seen) == (1, [[0, 0, 25, 15]])


async def test_a_sure_answer_is_final() -> None:
    graph = _cascade()
    result = await graph.flow.segment(_request([OTHER, OTHER]))
    assert graph.accurate.calls == []
    assert (result.escalated, result.reason) == (0, "auto: the default variant")


async def test_a_second_answer_that_is_no_better_is_not_kept() -> None:
    graph = _cascade()
    graph.accurate.sure = 0.3
    result = await graph.flow.segment(_request())
    assert (result.escalated, result.results[0].variant) == (1, None)
    assert result.results[0].masks[0].score == 0.2
    assert "0 of its masks kept" in result.reason


async def test_logits_of_an_escalated_answer_are_the_second_ones() -> None:
    graph = _cascade()
    await graph.flow.segment(_request(return_logits=True))
    assert [o.return_logits for o in (*graph.fast.options, *graph.accurate.options)] == [True, True]


@pytest.mark.parametrize("hints", [{"variant": "fast"}, {"min_quality": 0.5}])
async def test_who_names_a_variant_or_a_quality_has_said_what_suffices(
    hints: dict[str, object],
) -> None:
    graph = _cascade()
    result = await graph.flow.segment(_request(**hints))
    assert (result.variant, result.escalated) == ("fast", 0)
    assert graph.accurate.calls == []


async def test_without_a_second_variant_or_for_other_tasks_there_is_no_cascade() -> None:
    graph = _cascade(RouterSettings())
    await graph.flow.segment(_request())
    everything = Everything(proposals=ProposalSource.DETECTOR)
    other = _cascade()
    result = await other.flow.segment(_request(everything))
    assert graph.accurate.calls == other.accurate.calls == []
    assert result.escalated == 0


async def test_prompts_of_a_form_without_rules_stay_as_they_are() -> None:
    graph = _cascade()
    result = await graph.flow.segment(_request([POINT, BOX]))
    assert [r.variant for r in result.results] == [None, "accurate"]
    assert graph.accurate.calls == [(image_id(PIXELS), True, 1)]


@pytest.mark.parametrize("failure", [Overloaded("full"), RuntimeError("broken")])
async def test_a_second_variant_that_fails_loses_nothing(failure: Exception) -> None:
    graph = _cascade()
    graph.accurate.failure = failure
    result = await graph.flow.segment(_request([BOX, OTHER]))
    assert [r.masks[0].score for r in result.results] == [0.2, 0.9]
    assert [r.variant for r in result.results] == [None, None]
    assert (result.degraded, result.escalated) == (True, 1)
    assert "unsure of 1 of 2 prompts, but accurate did not respond in time" in result.reason


@pytest.mark.parametrize(
    ("limit", "more"),
    [
        ({"cascade_max_ms": 30}, {}),
        ({}, {"max_latency_ms": 500}),
        ({}, {"timeout_s": 0.5}),
    ],
    ids=["max_ms", "latency", "deadline"],
)
async def test_a_second_variant_that_hangs_loses_nothing(
    limit: dict[str, float], more: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Far before the deadline, however busy this machine is.
    monkeypatch.setattr("serve_app.flow.flow._USABLE", 0.3)
    quick = Profile({1: 1.0}, {1: 1.0}, {"box": 0.75})
    graph = _cascade(CASCADE.model_copy(update=limit), quick)
    stopped = _hang(graph.accurate)
    async with asyncio.timeout(60):
        result = await graph.flow.segment(_request(**more))
    assert stopped.is_set()
    assert (result.results[0].masks[0].score, result.degraded) == (0.2, True)


@pytest.mark.parametrize("seconds", [0.01, 0.5, 1.0, 60.0])
def test_a_second_answer_must_come_before_the_request_ends(
    seconds: float, virtual_time: VirtualTime
) -> None:
    end = _minus_network_margin(seconds)
    assert end is not None
    assert end < seconds
    now = virtual_time.now
    by_caller = _respond_by(_request(timeout_s=seconds), now, None, 1.0)
    by_service = _respond_by(_request(), now, seconds, 900.0)
    by_hint = _respond_by(_request(max_latency_ms=seconds * 1e3, timeout_s=90.0), now, 90.0, 1.0)
    assert by_caller - now <= 0.95 * end
    assert by_service == by_hint == pytest.approx(now + 0.9 * seconds)


def test_who_says_nothing_waits_for_a_second_answer_as_long_as_configured(
    virtual_time: VirtualTime,
) -> None:
    started = virtual_time.now - 5.0  # the first answer took that long
    assert _respond_by(_request(), started, None, 2.0) == started + 7.0
    # Who allows more has it.
    assert _respond_by(_request(max_latency_ms=60_000), started, None, 2.0) == started + 54.0


@pytest.mark.parametrize("failure", [Overloaded("full"), WeightsUnavailable("none")])
async def test_a_full_variant_is_answered_for_by_another(failure: Exception) -> None:
    graph = FakeGraph(measurements=MEASURED)
    graph.accurate.failure = failure
    hinted = await graph.flow.segment(_request(max_latency_ms=5000))
    assert (hinted.variant, hinted.degraded) == ("fast", True)
    assert hinted.reason.startswith("accurate is unavailable")
    for asked in ({"variant": "accurate"}, {"min_quality": 0.9}):
        with pytest.raises(type(failure)):
            await graph.flow.segment(_request(**asked))


async def test_the_services_own_time_does_not_lose_the_first_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("serve_app.flow.flow._USABLE", 0.3)
    quick = Profile({1: 1.0}, {1: 1.0}, {"box": 0.75})
    graph = _cascade(accurate=quick, timeout_s=0.5)

    async def hang(*_: object) -> None:
        await asyncio.Event().wait()

    graph.accurate.predict = hang  # type: ignore[method-assign,assignment]
    async with asyncio.timeout(60):
        assert (await graph.flow.segment(_request())).degraded


@pytest.mark.parametrize(
    ("limit", "more"),
    [({"cascade_max_ms": 500}, {}), ({}, {"max_latency_ms": 600}), ({}, {"timeout_s": 0.6})],
    ids=["max_ms", "latency", "deadline"],
)
async def test_where_there_is_no_time_nobody_is_asked_again(
    limit: dict[str, float], more: dict[str, object]
) -> None:
    graph = _cascade(CASCADE.model_copy(update=limit))
    result = await graph.flow.segment(_request(**more))
    assert graph.accurate.calls == []
    assert (result.variant, result.degraded, result.escalated) == ("fast", True, 0)
    assert "unsure of 1 of 1 prompts, but accurate would take 910 ms more" in result.reason
    assert graph.accurate.scaled == 0  # it does not sleep


async def test_within_the_callers_time_a_second_answer_is_worth_it() -> None:
    # By its own quality it would not be chosen at once.
    graph = _cascade(accurate=replace(ACCURATE, quality={"box": 0.75}))
    for more in ({"max_latency_ms": 2000}, {"timeout_s": 2.0}):
        assert (await graph.flow.segment(_request(**more))).escalated == 1
        # The second variant's time is what the cascade gives it.
        assert 0 < (graph.accurate.times_left[-1] or 0) < 2


@pytest.mark.parametrize("wakes", [True, False])
async def test_a_sleeping_second_variant_is_woken_not_waited_for(wakes: bool) -> None:
    graph = _cascade(CASCADE.model_copy(update={"cascade_scales_from_zero": wakes}))
    graph.dispatcher.load_tracker.replicas("accurate", 0, 0)
    graph.accurate.failure = AssertionError("asked while asleep")
    # Its cold start takes 10 s, which is all that a second answer may.
    result = await graph.flow.segment(_request())
    await asyncio.sleep(0)
    assert (result.degraded, result.escalated) == (True, 0)
    assert "accurate would take 10910 ms more" in result.reason
    assert graph.accurate.scaled == int(wakes)
    assert graph.accurate.calls == []


async def test_where_the_second_has_the_image_asking_costs_no_encoder_pass() -> None:
    strict = CASCADE.model_copy(update={"cascade_max_ms": 100})
    graph = _cascade(strict, replace(ACCURATE, quality={"box": 0.75}))
    assert (await graph.flow.segment(_request())).degraded
    await graph.flow.embed(PIXELS, "accurate")
    result = await graph.flow.segment(_request())
    assert (result.escalated, result.degraded) == (1, False)
