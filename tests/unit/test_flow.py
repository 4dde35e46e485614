"""The flow over fakes of its ports: what is asked of whom, in which order, and what comes out."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Awaitable, Callable, Sequence

import numpy as np
import pytest
from PIL import Image

from serve_app.domain.errors import (
    DeadlineExceeded,
    InvalidImage,
    InvalidPrompt,
    InvalidRequest,
    Overloaded,
    SamServeError,
    TextUnavailable,
    TooManyPrompts,
    UnknownImage,
    UnknownVariant,
)
from serve_app.domain.image_id import image_id
from serve_app.domain.limits import Limits
from serve_app.domain.rle import encode_rle
from serve_app.domain.settings import RouterSettings
from serve_app.domain.types import (
    CacheTier,
    Candidate,
    DecodeOptions,
    Everything,
    Mask,
    Prediction,
    Prompt,
    Proposal,
    ProposalSource,
    RgbArray,
    ScorerInfo,
    SegmentRequest,
    Task,
    TextQuery,
    TextScores,
    VariantInfo,
)
from serve_app.flow import SegmentationFlow
from serve_app.steps.images import ImageStore

HEIGHT, WIDTH = 40, 60
PIXELS = np.random.default_rng(1).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
POINT = Prompt(point_coords=[[5, 5]], point_labels=[1])


def _png() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, format="PNG")
    return buffer.getvalue()


def _mask(size: tuple[int, int], box: tuple[int, int, int, int], score: float = 0.9) -> Mask:
    x, y, w, h = box
    array = np.zeros(size, np.bool_)
    array[y : y + h, x : x + w] = True
    return Mask(rle=encode_rle(array), score=score, stability_score=1, bbox=box, area=w * h)


class FakePredictor:
    """Knows the images it has seen; answers a box prompt with its box, a point with a square."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, bool, int]] = []
        self.options: list[DecodeOptions] = []
        self.known: set[str] = set()
        self.forgets = False

    async def predict(
        self,
        image_id: str,
        pixels: RgbArray | None,
        prompts: Sequence[Prompt],
        options: DecodeOptions,
    ) -> Prediction | None:
        self.calls.append((image_id, pixels is not None, len(prompts)))
        self.options.append(options)
        if self.forgets or (pixels is None and image_id not in self.known):
            return None
        tier = CacheTier.MEMORY if image_id in self.known else CacheTier.MISS
        self.known.add(image_id)
        width, height = map(int, image_id.split("-")[0].split("x"))
        masks = tuple(self._answer(prompt, (height, width)) for prompt in prompts)
        return Prediction(masks=masks, cache=tier, timings_ms={"decode_masks": 1.0})

    @staticmethod
    def _answer(prompt: Prompt, size: tuple[int, int]) -> tuple[Mask, ...]:
        if prompt.box is not None:
            x0, y0, x1, y1 = (int(v) for v in prompt.box.clip(0))
            return (_mask(size, (x0, y0, x1 - x0, y1 - y0)),)
        assert prompt.point_coords is not None
        x, y = (int(v) for v in prompt.point_coords[0])
        masks = [_mask(size, (x, y, 4, 4), 0.8), _mask(size, (x, y, 3, 3), 0.7)]
        return tuple(masks if prompt.multimask_output else masks[:1])


class FakeProposer:
    """A cat, a dog, and a box that is nothing."""

    BOXES = ((2, 3, 12, 13, "cat"), (20, 5, 40, 25, "dog"), (45, 20, 55, 35, None))

    def __init__(self) -> None:
        self.asked: list[tuple[ProposalSource, int]] = []

    async def propose(
        self,
        pixels: RgbArray | None,
        size: tuple[int, int],
        source: ProposalSource,
        points_per_side: int,
    ) -> tuple[Proposal, ...]:
        assert (pixels is None) == (source is ProposalSource.GRID)
        self.asked.append((source, points_per_side))
        if source is ProposalSource.GRID:
            points = [(10, 10), (30, 10), (10, 30)]
            prompts = [Prompt(point_coords=[p], point_labels=[1]) for p in points]
            return tuple(Proposal(prompt=p, source=source) for p in prompts)
        return tuple(
            Proposal(prompt=Prompt(box=box), source=source, objectness=0.5, label=label)
            for *box, label in self.BOXES
        )


class FakeScorer:
    """Scores by rule: 0.9 for the label, 0.3 for others; without labels by position."""

    def __init__(self, needs_masks: bool) -> None:
        self.needs_masks = needs_masks
        self.candidates: list[Candidate] = []
        self.down = False

    async def info(self) -> ScorerInfo:
        if self.down:
            raise Overloaded("no replica")
        return ScorerInfo(
            engine="open_clip" if self.needs_masks else "labels",
            model="fake",
            needs_masks=self.needs_masks,
            proposals=ProposalSource.GRID if self.needs_masks else ProposalSource.DETECTOR,
            threshold=0.5,
        )

    async def score(
        self, pixels: RgbArray, candidates: Sequence[Candidate], texts: Sequence[str]
    ) -> TextScores:
        self.candidates = list(candidates)
        scores = np.full((len(texts), len(candidates)), 0.3, np.float32)
        for row, text in enumerate(texts):
            for column, candidate in enumerate(candidates):
                if text in (candidate.label, f"at {candidate.bbox[0]}"):
                    scores[row, column] = 0.9
                elif text == "all":
                    scores[row, column] = 0.6 + 0.1 * column
        return TextScores(scores=scores, engine="fake", threshold=0.5)


class Graph:
    def __init__(
        self,
        scorer: FakeScorer | None = None,
        limits: Limits | None = None,
        timeout_s: float | None = None,
        checks: Sequence[Callable[[], Awaitable[bool]]] = (),
    ) -> None:
        limits = limits or Limits()
        self.fast, self.accurate = FakePredictor(), FakePredictor()
        self.proposer, self.scorer = FakeProposer(), scorer
        self.flow = SegmentationFlow(
            images=ImageStore(limits, 2**20),
            variants={
                name: VariantInfo(name=name, model=f"{name}_model", family="sam", description="")
                for name in ("fast", "accurate")
            },
            predictors={"fast": self.fast, "accurate": self.accurate},
            proposer=self.proposer,
            scorer=scorer,
            router=RouterSettings(),
            limits=limits,
            timeout_s=timeout_s,
            checks=checks,
        )


async def _error(graph: Graph, task: Task, image: bytes | str | RgbArray = PIXELS) -> SamServeError:
    with pytest.raises(SamServeError) as caught:
        await graph.flow.segment(SegmentRequest(image=image, task=task))
    return caught.value


async def test_a_new_image_travels_once_and_later_only_its_name() -> None:
    graph = Graph()
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
    graph = Graph()
    await graph.flow.segment(SegmentRequest(image=_png(), task=[POINT]))
    await graph.flow.segment(SegmentRequest(image=_png(), task=[POINT]))
    assert graph.fast.calls[1:] == [(image_id(PIXELS), False, 1)]


async def test_pixels_follow_where_a_variant_does_not_know_the_image() -> None:
    graph = Graph()
    first = await graph.flow.segment(SegmentRequest(image=_png(), task=[POINT]))
    request = SegmentRequest(image=first.image_id, task=[POINT], variant="accurate")
    answer = await graph.flow.segment(request)
    assert (answer.cache, answer.variant, answer.reason) == (
        CacheTier.MISS,
        "accurate",
        "asked for",
    )
    name = first.image_id
    assert graph.accurate.calls == [(name, False, 1), (name, True, 1)]


async def test_an_unknown_image_is_told_so() -> None:
    graph = Graph()
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
    graph = Graph()
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
    graph = Graph()
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
    result = await Graph().flow.segment(SegmentRequest(image=PIXELS, task=[prompt]))
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
        ([], InvalidRequest, "prompts"),
        ([POINT] * 3, TooManyPrompts, "prompts"),
        (
            [POINT, Prompt(point_coords=[[1, 1]] * 4, point_labels=[1] * 4)],
            TooManyPrompts,
            "prompts[1].point_coords",
        ),
        (TextQuery(texts=("a", "b", "c")), TooManyPrompts, "text"),
        (TextQuery(texts=("a", "b" * 6), points_per_side=4), InvalidRequest, "text"),
        (TextQuery(texts=("a",)), InvalidRequest, "points_per_side"),  # 16 by default
        (Everything(points_per_side=5), InvalidRequest, "points_per_side"),
        (Everything(points_per_side=4, crop_n_layers=2), InvalidRequest, "crop_n_layers"),
    ],
)
async def test_tasks_beyond_the_limits_are_refused_before_the_image_is_read(
    task: Task, kind: type[SamServeError], field: str
) -> None:
    graph = Graph(FakeScorer(needs_masks=False), LIMITS)
    error = await _error(graph, task, b"not an image: it would be another error")
    assert (type(error), error.field) == (kind, field)


async def test_tasks_at_the_limits_pass() -> None:
    graph = Graph(FakeScorer(needs_masks=False), LIMITS)
    for task in (
        [POINT, Prompt(point_coords=[[1, 1]] * 3, point_labels=[1] * 3)],
        TextQuery(texts=("a", "b" * 5), points_per_side=4),
        Everything(points_per_side=4, crop_n_layers=1),
    ):
        await graph.flow.segment(SegmentRequest(image=PIXELS, task=task))


async def test_text_scored_before_it_is_segmented() -> None:
    graph = Graph(FakeScorer(needs_masks=False))
    query = TextQuery(texts=("dog", "cat", "horse", "all"), max_masks=2)
    result = await graph.flow.segment(SegmentRequest(image=PIXELS, task=query))
    assert graph.proposer.asked == [(ProposalSource.DETECTOR, 16)]
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
    graph = Graph(scorer)
    query = TextQuery(texts=("at 30", "horse"), points_per_side=8)
    result = await graph.flow.segment(SegmentRequest(image=PIXELS, task=query))
    assert graph.proposer.asked == [(ProposalSource.GRID, 8)]
    found, absent = result.results
    # Each point gave squares of 4 and of 3 pixels, which are no duplicates.
    assert sorted(c.bbox for c in scorer.candidates)[:2] == [(10, 10, 3, 3), (10, 10, 4, 4)]
    assert all(c.mask is not None for c in scorer.candidates)
    assert [m.bbox for m in found.masks] == [(30, 10, 4, 4), (30, 10, 3, 3)]
    assert (absent.present, absent.masks, absent.best_score) == (False, (), pytest.approx(0.3))
    assert graph.fast.options[0].pred_iou_thresh == 0.7


async def test_the_callers_threshold_and_source_count() -> None:
    graph = Graph(FakeScorer(needs_masks=False))
    query = TextQuery(texts=("dog",), threshold=0.2, proposals=ProposalSource.CONTOURS)
    result = await graph.flow.segment(SegmentRequest(image=PIXELS, task=query))
    assert len(result.results[0].masks) == 3
    assert result.threshold == 0.2
    assert graph.proposer.asked[0][0] is ProposalSource.CONTOURS


async def test_an_absent_text_still_makes_the_image_known() -> None:
    graph = Graph(FakeScorer(needs_masks=False))
    query = TextQuery(texts=("horse",))
    result = await graph.flow.segment(SegmentRequest(image=PIXELS, task=query))
    assert (result.results[0].present, result.cache) == (False, CacheTier.MISS)
    assert image_id(PIXELS) in graph.fast.known


async def test_a_match_whose_mask_is_empty_is_not_present() -> None:
    graph = Graph(FakeScorer(needs_masks=False))
    empty = _mask((HEIGHT, WIDTH), (0, 0, 0, 0))
    graph.fast._answer = lambda prompt, size: (empty,)  # type: ignore[method-assign]
    result = await graph.flow.segment(SegmentRequest(image=PIXELS, task=TextQuery(texts=("dog",))))
    assert (result.results[0].present, result.results[0].masks) == (False, ())


async def test_without_a_scorer_text_is_unavailable() -> None:
    error = await _error(Graph(), TextQuery(texts=("dog",)))
    assert isinstance(error, TextUnavailable)
    assert error.field == "text"


async def test_everything_over_the_grid() -> None:
    graph = Graph()
    task = Everything(points_per_side=3, points_per_batch=2, pred_iou_thresh=0, box_nms_thresh=0.4)
    result = await graph.flow.segment(SegmentRequest(image=PIXELS, task=task))
    (answer,) = result.results
    # Of each point's two squares the worse overlaps the better by 4/9, as Meta measures boxes.
    assert [m.bbox for m in answer.masks] == [(10, 10, 4, 4), (30, 10, 4, 4), (10, 30, 4, 4)]
    assert [m.point_coords for m in answer.masks] == [(10, 10), (30, 10), (10, 30)]
    assert {m.crop_box for m in answer.masks} == {(0, 0, WIDTH, HEIGHT)}
    # Two prompts, then the third: the image travels with the first batch alone.
    name = image_id(PIXELS)
    assert graph.fast.calls == [(name, True, 2), (name, False, 1)]
    # A threshold of 0 is none, as Meta's.
    assert graph.fast.options[0].pred_iou_thresh is None
    assert graph.fast.options[0].stability_score_thresh == 0.95


async def test_everything_over_crops_in_the_frame_of_the_image() -> None:
    graph = Graph()
    task = Everything(points_per_side=4, crop_n_layers=1, crop_n_points_downscale_factor=2)
    await graph.flow.segment(SegmentRequest(image=PIXELS, task=task))
    sides = [side for _, side in graph.proposer.asked]
    assert sides == [4, 2, 2, 2, 2]
    sizes = [name.split("-")[0] for name, _, _ in graph.fast.calls]
    assert sizes == ["60x40", "37x27", "37x26", "36x27", "36x26"]


async def test_everything_from_the_detector_keeps_labels() -> None:
    graph = Graph()
    task = Everything(proposals=ProposalSource.DETECTOR, crop_n_layers=1)
    result = await graph.flow.segment(SegmentRequest(image=PIXELS, task=task))
    assert [m.label for m in result.results[0].masks] == ["cat", "dog", None]
    assert len(graph.proposer.asked) == 1


async def test_ready_is_false_while_a_part_is_not() -> None:
    async def loaded() -> bool:
        return True

    async def loading() -> bool:
        return False

    async def down() -> bool:
        raise Overloaded("no replica")

    async def broken() -> bool:
        raise RuntimeError

    assert await Graph().flow.ready()
    assert await Graph(checks=[loaded, loaded]).flow.ready()
    for bad in (loading, down, broken):
        assert not await Graph(checks=[loaded, bad]).flow.ready()


async def test_ready_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never() -> bool:
        return await asyncio.Event().wait()

    monkeypatch.setattr("serve_app.flow._READY_TIMEOUT_S", 0.01)
    async with asyncio.timeout(5):
        assert not await Graph(checks=[never]).flow.ready()


async def test_a_request_that_takes_too_long_is_told_so_and_stopped() -> None:
    graph = Graph(timeout_s=0.01)
    stopped = asyncio.Event()

    async def hang(*_: object) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    graph.fast.predict = hang  # type: ignore[method-assign,assignment]
    async with asyncio.timeout(5):
        assert isinstance(await _error(graph, [POINT]), DeadlineExceeded)
        assert stopped.is_set()
        with pytest.raises(DeadlineExceeded):
            await graph.flow.embed(PIXELS, "auto")


async def test_logits_do_not_go_with_everything() -> None:
    request = SegmentRequest(image=PIXELS, task=Everything(), return_logits=True)
    with pytest.raises(InvalidRequest) as caught:
        await Graph().flow.segment(request)
    assert caught.value.field == "return_logits"


async def test_models_tells_what_is_deployed() -> None:
    told = await Graph(FakeScorer(needs_masks=True)).flow.models()
    assert told["default_variant"] == "fast"
    assert told["variants"]["accurate"]["model"] == "accurate_model"
    assert told["text"]["engine"] == "open_clip"
    assert told["limits"]["max_prompts"] == Limits().max_prompts
    assert (await Graph().flow.models())["text"] is None
