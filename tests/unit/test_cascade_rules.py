"""Which prompts are asked again, and whose answer is kept."""

from __future__ import annotations

from math import inf

import pytest
from pydantic import ValidationError

from serve_app.core.measurements import Additive, Escalation, Point, Steps
from serve_app.core.types import Mask, Prompt
from serve_app.routing.cascade import select_for_escalation, should_replace

from ..fakes.masks import rectangle_mask as mask

BOX = Prompt(box=[10, 10, 30, 20], multimask_output=False)
POINT = Prompt(point_coords=[[5, 5]], point_labels=[1])


def of_score(*steps: tuple[float, float], beyond: float) -> Additive:
    """An estimate by the predicted IoU: ``(up to, value)``."""
    edges, values = [e for e, _ in steps], [v for _, v in steps]
    return Additive(intercept=0, steps={"score": Steps(edges=edges, values=[*values, beyond])})


GAIN = of_score((0.3, 0.4), (0.6, 0.1), beyond=-0.1)
"""0.4 is gained below a predicted IoU of 0.3, 0.1 up to 0.6, and 0.1 lost beyond."""

POINTS = (Point(threshold=0.3, share=0.2, gain=0.05), Point(threshold=0.05, share=0.5, gain=0.08))
RULE = Escalation(
    gain=GAIN,
    first=of_score((0.5, 0.4), beyond=0.8),
    second=of_score((0.5, 0.3), beyond=0.9),
    curve=POINTS,
    single=(Point(threshold=0.35, share=0.2, gain=0.05),),
    first_iou=0.7,
    second_iou=0.8,
)


def answers(*scores: float) -> list[tuple[Mask, ...]]:
    return [(mask((10, 10, 20, 10), score),) for score in scores]


def ask(
    *scores: float, share: float = 0.2, cached: bool = False, rule: Escalation = RULE
) -> list[int]:
    return select_for_escalation(
        [BOX] * len(scores), answers(*scores), {"box-1": rule}, share=share, cached=cached
    )


# The threshold.


@pytest.mark.parametrize(
    ("share", "alone", "threshold"),
    [(0.1, False, inf), (0.2, False, 0.3), (0.4, False, 0.3), (0.5, False, 0.05), (1, True, 0.35)],
)
def test_the_threshold_is_that_of_the_most_gain_within_the_share(
    share: float, alone: bool, threshold: float
) -> None:
    assert RULE.threshold(share, alone) == threshold


def test_a_curve_that_bends_down_is_not_followed() -> None:
    worse = (*POINTS, Point(threshold=-0.2, share=1, gain=0.02))
    assert RULE.model_copy(update={"curve": worse}).threshold(1, False) == 0.05


def test_there_is_none_where_nothing_was_gained() -> None:
    nothing = (Point(threshold=0.3, share=0.2, gain=0.0), Point(threshold=0.1, share=1, gain=-0.1))
    assert RULE.model_copy(update={"curve": nothing}).threshold(1, False) == inf
    equal = RULE.model_copy(update={"second_iou": RULE.first_iou})
    assert equal.threshold(1, False) == inf


# Which are asked.


def test_a_request_is_asked_if_its_prompts_gain_enough_on_average() -> None:
    assert ask(0.2, 0.2) == [0, 1]  # 0.4 on average, 0.3 is asked for
    assert ask(0.2, 0.5) == []  # 0.25
    assert ask(0.2, 0.2, 0.5) == [0, 1, 2]  # 0.3: the threshold itself suffices
    assert ask(0.2, 0.5, share=0.5) == [0, 1]
    assert ask() == []


def test_prompts_that_would_lose_count_but_are_not_asked() -> None:
    assert ask(0.2, 0.9, share=0.5) == [0]  # 0.15 on average
    assert ask(0.9, 0.5, 0.9, share=0.5) == []


def test_a_prompt_alone_has_a_threshold_of_its_own() -> None:
    assert ask(0.2) == [0]  # 0.4 of 0.35
    strict = RULE.model_copy(update={"single": (Point(threshold=0.45, share=0.2, gain=0.1),)})
    assert ask(0.2, rule=strict) == []
    assert ask(0.2, 0.2, rule=strict) == [0, 1]


def test_an_embedding_that_is_there_makes_asking_cheap() -> None:
    assert ask(0.5, 0.5) == []
    assert ask(0.5, 0.5, cached=True) == [0, 1]
    assert ask(0.9, 0.9, cached=True) == []


def test_where_nothing_is_to_be_gained_nobody_is_asked() -> None:
    hopeless = RULE.model_copy(update={"second_iou": 0.6})
    for cached in (False, True):
        assert ask(0.1, 0.1, share=1, rule=hopeless, cached=cached) == []
    assert select_for_escalation([BOX], answers(0.1), {}, share=1, cached=True) == []


def test_each_form_has_its_rule_and_other_forms_stay_as_they_are() -> None:
    prompts, masks = [BOX, POINT, BOX], answers(0.2, 0.2, 0.2)
    assert select_for_escalation(prompts, masks, {"box-1": RULE}, share=0.2, cached=False) == [0, 2]
    easy = RULE.model_copy(update={"curve": (Point(threshold=0.1, share=0.1, gain=0.1),)})
    rules = {"box-1": RULE, "point-3": easy}
    masks = answers(0.5, 0.2, 0.5)
    # 0.1 + 0.4 + 0.1 were asked to be 0.3 + 0.1 + 0.3; with one box fewer, 0.3 + 0.1.
    assert select_for_escalation(prompts, masks, rules, share=0.2, cached=False) == []
    assert select_for_escalation(prompts[:2], masks[:2], rules, share=0.2, cached=False) == [0, 1]


def test_a_prompt_without_masks_stays_as_it_is() -> None:
    masks: list[tuple[Mask, ...]] = [(), *answers(0.2)]
    assert select_for_escalation([BOX, BOX], masks, {"box-1": RULE}, share=0.2, cached=False) == [1]


# Whose answer is kept.


@pytest.mark.parametrize(
    ("first", "second", "kept"),
    [(0.4, 0.9, True), (0.4, 0.4, False), (0.9, 0.4, False), (0.9, 0.9, True)],
)
def test_each_answer_is_judged_by_its_own_features(first: float, second: float, kept: bool) -> None:
    one, other = answers(first, second)
    assert should_replace(BOX, one, other, {"box-1": RULE}) == kept


def test_equal_answers_and_empty_ones_leave_the_first() -> None:
    same = RULE.model_copy(update={"second": RULE.first})
    masks = answers(0.9)[0]
    assert not should_replace(BOX, masks, masks, {"box-1": same})
    assert not should_replace(BOX, masks, (), {"box-1": RULE})
    assert not should_replace(POINT, masks, masks, {"box-1": RULE})


# The estimates.


def test_a_step_holds_up_to_and_including_its_edge() -> None:
    steps = Steps(edges=(0.0, 1.0), values=(10.0, 20.0, 30.0))
    assert [steps(at) for at in (-1, 0, 0.5, 1, 1.001)] == [10, 10, 20, 20, 30]
    assert Steps(edges=(), values=(5.0,))(3) == 5


@pytest.mark.parametrize(
    ("edges", "values"),
    [((1.0, 0.0), (1.0, 2.0, 3.0)), ((1.0,), (1.0,)), ((inf,), (1.0, 2.0)), ((1.0,), (1.0, inf))],
)
def test_steps_that_are_none_are_refused(
    edges: tuple[float, ...], values: tuple[float, ...]
) -> None:
    with pytest.raises(ValidationError):
        Steps(edges=edges, values=values)


def test_estimates_add_up_and_a_missing_feature_counts_as_the_middle() -> None:
    one = Steps(edges=(0.0, 1.0), values=(1.0, 2.0, 4.0))
    both = Additive(intercept=100, steps={"a": one, "b": one})
    assert both({"a": -1, "b": 5, "unknown": 9}) == 105
    assert both({"a": -1}) == 103


def test_with_the_embedding_at_hand_no_prompt_vetoes_another() -> None:
    scores = [0.2, 0.9, 0.9, 0.9, 0.9, 0.9]
    assert ask(*scores) == []
    assert ask(*scores, cached=True) == [0]
