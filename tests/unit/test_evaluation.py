from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serve_app import client
from serve_app.capabilities import Prompts, TextQuery
from serve_app.core.errors import InternalError, InvalidImage, UnknownImage, UnknownVariant
from serve_app.core.types import BoolArray, PromptResult
from serve_tools.cli.evaluate import add_arguments, run
from serve_tools.evaluation.annotations import (
    Dataset,
)
from serve_tools.evaluation.kinds import Multimask, PromptKind
from serve_tools.evaluation.records import Evaluation, EvaluationPlan
from serve_tools.evaluation.report import markdown
from serve_tools.evaluation.runner import evaluate
from serve_tools.evaluation.summary import summarise

from ..fakes.masks import mask_of
from .evaluation_scenes import (
    SCENE,
    SIDE,
    SceneService,
    coco_rle,
    left_half,
    load,
    plan,
    rectangle,
    write_dataset,
)


def iou_row(summary: Mapping[str, Any], **which: str) -> dict[str, Any]:
    wanted = {"prompt": "box", "variant": "fast", "size": "all", **which}
    row: dict[str, Any]
    (row,) = [r for r in summary["iou"] if {k: r[k] for k in wanted} == wanted]
    return row


async def summary_of(
    service: SceneService, dataset: Dataset, plan: EvaluationPlan
) -> tuple[Evaluation, dict[str, Any]]:
    evaluation = await evaluate(service, dataset, plan)
    return evaluation, summarise(evaluation, await service.models(), in_process=True)


class TestEvaluation:
    async def test_known_masks_give_known_figures(self, tmp_path: Path) -> None:
        def answer(variant: str, mask: BoolArray) -> list[tuple[BoolArray, float]]:
            good = mask if variant == "accurate" else left_half(mask)
            return [(good, 0.8)]

        both = plan(PromptKind.BOX, PromptKind.POINT, variants=("fast", "accurate"))
        _, summary = await summary_of(SceneService(SCENE, answer), load(tmp_path, SCENE), both)
        for prompt in ("box", "point"):
            for variant, expected in (("fast", 0.5), ("accurate", 1.0)):
                row = iou_row(summary, prompt=prompt, variant=variant)
                assert row["iou"]["mean"] == pytest.approx(expected)
                assert (row["iou"]["items"], row["iou"]["images"]) == (3, 2)
        sizes = [iou_row(summary, size=s)["iou"]["items"] for s in ("small", "medium", "large")]
        assert sizes == [1, 1, 1]
        for row in summary["differences"]:
            assert (row["variant"], row["minus"]) == ("accurate", "fast")
            assert row["difference"]["mean"] == pytest.approx(0.5)
        gaps = {(c["variant"]): c["gap"]["mean"] for c in summary["calibration"]}
        assert gaps == pytest.approx({"fast": 0.3, "accurate": -0.2})
        assert summary["models"] == {"fast": "model-fast", "accurate": "model-accurate"}
        assert summary["service"]["variants"] == {"fast": {"weights_hash": "abc"}}

    async def test_difference_is_paired(self, tmp_path: Path) -> None:
        """Hard and easy images, one variant always a little better: a narrow interval."""
        rng = np.random.default_rng(0)
        scenes = {f"{i}.png": [rectangle(10, 10, 110, 110)] for i in range(30)}
        widths = {name: int(w) for name, w in zip(scenes, rng.integers(20, 90, 30), strict=True)}
        service = SceneService(scenes)

        def answer(variant: str, mask: BoolArray) -> list[tuple[BoolArray, float]]:
            asked = service.requests[-1].image
            name = asked if isinstance(asked, str) else bytes(asked).decode()
            width = widths[name] + (5 if variant == "accurate" else 0)
            return [(rectangle(10, 10, 10 + width, 110), 0.9)]

        service.answer = answer
        both = plan(variants=("fast", "accurate"))
        _, summary = await summary_of(service, load(tmp_path, scenes), both)
        difference = summary["differences"][0]["difference"]
        assert difference["mean"] == pytest.approx(0.05)
        assert difference["high"] - difference["low"] < 1e-6
        own = iou_row(summary)["iou"]
        assert own["high"] - own["low"] > 0.1

    @pytest.mark.parametrize(
        ("multimask", "counted", "oracle"),
        [
            (None, 0.5, 1.0),
            (Multimask.BEST_SCORE, 0.5, 1.0),
            (Multimask.ORACLE, 1.0, 1.0),
            (Multimask.SINGLE, 0.0, None),
        ],
    )
    async def test_which_of_three_masks_counts(
        self, tmp_path: Path, multimask: Multimask | None, counted: float, oracle: float | None
    ) -> None:
        nothing = np.zeros((SIDE, SIDE), np.bool_)
        service = SceneService(
            SCENE, lambda _, mask: [(nothing, 0.2), (left_half(mask), 0.9), (mask, 0.8)]
        )
        asked = plan(PromptKind.POINT, multimask=multimask)
        _, summary = await summary_of(service, load(tmp_path, SCENE), asked)
        row = iou_row(summary, prompt="point")
        assert row["iou"]["mean"] == pytest.approx(counted)
        assert (row["oracle_iou"] and row["oracle_iou"]["mean"]) == oracle

    async def test_box_asks_for_one_mask_and_point_for_three(self, tmp_path: Path) -> None:
        service = SceneService(SCENE)
        await evaluate(
            service, load(tmp_path, SCENE), plan(PromptKind.BOX, PromptKind.POINT)
        )  # fmt: skip
        asked = {
            (p.box is not None, p.multimask_output)
            for r in service.requests
            if isinstance(r.task, Prompts)
            for p in r.task.prompts
        }
        assert asked == {(True, False), (False, True)}

    async def test_image_is_sent_once_and_again_if_forgotten(self, tmp_path: Path) -> None:
        scene = {"a.png": [rectangle(i, i, i + 9, i + 9) for i in range(5)]}
        dataset, small = load(tmp_path, scene), plan(chunk=2)
        service = SceneService(scene)
        await evaluate(service, dataset, small)
        assert [r.image for r in service.requests] == [b"a.png", "a-png", "a-png"]
        forgetful = SceneService(scene)
        forgetful.forgets = True
        evaluation = await evaluate(forgetful, dataset, small)
        assert [r.image for r in forgetful.requests] == [b"a.png", *["a-png", b"a.png"] * 2]
        assert [o.iou for o in evaluation.objects] == [1.0] * 5

    async def test_max_objects_takes_the_same_of_each_image(self, tmp_path: Path) -> None:
        scene = {"a.png": [rectangle(i, i, i + 9, i + 9) for i in range(50)]}
        drawn = plan(
            PromptKind.BOX, PromptKind.POINT, variants=("fast", "slow"), max_objects=7, seed=3
        )
        service = SceneService(scene)
        service.answer = lambda variant, mask: [(mask, 1.0)]
        evaluation = await evaluate(service, load(tmp_path, scene), drawn)
        by = {
            (kind, variant): [
                o.annotation_id
                for o in evaluation.objects
                if (o.prompt, o.variant) == (kind, variant)
            ]
            for kind in drawn.prompts
            for variant in drawn.variants
        }
        assert len({tuple(ids) for ids in by.values()}) == 1
        assert all(len(ids) == 7 for ids in by.values())

    async def test_a_failing_image_is_left_out_for_all_and_told(self, tmp_path: Path) -> None:
        service = SceneService(SCENE)
        service.fails["a.png"] = InvalidImage("the file is broken")
        both = plan(variants=("fast", "accurate"))
        evaluation, summary = await summary_of(service, load(tmp_path, SCENE), both)
        assert {o.image for o in evaluation.objects} == {1}
        assert summary["dataset"]["images"] == 1
        assert "- invalid_image (1): a.png: the file is broken" in markdown(summary)

    async def test_an_image_of_another_size_is_left_out(self, tmp_path: Path) -> None:
        service = SceneService(SCENE)
        service.size = (SIDE, SIDE + 1)
        evaluation = await evaluate(service, load(tmp_path, SCENE), plan())
        assert not evaluation.objects
        assert "120 x 121" in evaluation.failures[0].message

    async def test_masks_of_another_size_are_not_measured(self, tmp_path: Path) -> None:
        service = SceneService(SCENE, lambda variant, mask: [(mask[:-1], 0.9)])
        evaluation = await evaluate(service, load(tmp_path, SCENE), plan())
        assert [f.message for f in evaluation.failures] == ["a mask is not of the image's size"] * 2

    async def test_an_image_unknown_right_after_it_was_sent_fails_alone(
        self, tmp_path: Path
    ) -> None:
        service = SceneService(SCENE)
        service.fails["a.png"] = UnknownImage("gone")
        evaluation = await evaluate(service, load(tmp_path, SCENE), plan())
        assert [f.kind for f in evaluation.failures] == ["unknown_image"]
        assert len(evaluation.objects) == 1

    async def test_an_error_that_all_would_meet_stops(self, tmp_path: Path) -> None:
        service = SceneService(SCENE)
        service.fails["a.png"] = UnknownVariant("no such variant")
        with pytest.raises(UnknownVariant):
            await evaluate(service, load(tmp_path, SCENE), plan())

    async def test_no_mask_counts_as_zero(self, tmp_path: Path) -> None:
        service = SceneService(SCENE, lambda variant, mask: [])
        _, summary = await summary_of(service, load(tmp_path, SCENE), plan())
        assert iou_row(summary)["iou"]["mean"] == 0
        assert summary["calibration"] == []

    async def test_times_are_per_image_and_per_prompt(self, tmp_path: Path) -> None:
        both = plan(PromptKind.POINT, PromptKind.BOX, chunk=1)
        _, summary = await summary_of(SceneService(SCENE), load(tmp_path, SCENE), both)
        assert len(summary["timing"]) == 2
        for timing in summary["timing"]:
            # The first request of an image alone embeds it: 100 ms, for three objects 10 each.
            assert timing["embed_ms_per_image"] == 100
            assert timing["decode_ms_per_prompt"] == 10
        whole = await summary_of(SceneService(SCENE), load(tmp_path, SCENE), plan())
        assert whole[1]["timing"][0]["decode_ms_per_prompt"] == 10


class TestText:
    names = ("dog", "cat", "cow", "owl")

    def dataset(self, folder: Path, **changes: Any) -> Dataset:
        categories = {"a.png": ["dog", "dog"], "b.png": ["cat"]}
        return load(folder, SCENE, categories=categories, names=self.names, **changes)

    async def test_masks_are_matched_to_the_objects_of_the_name(self, tmp_path: Path) -> None:
        first, second = SCENE["a.png"]
        stray = rectangle(100, 0, 119, 19)

        def text(name: str, query: str) -> PromptResult:
            masks: list[BoolArray] = []
            if (name, query) == ("a.png", "dog"):
                masks = [stray, left_half(second), first]
            elif query == "owl":
                masks = [stray]
            return PromptResult(
                masks=tuple(map(mask_of, masks)), text=query, present=bool(masks), best_score=0.5
            )

        service = SceneService(SCENE, text=text)
        asked = plan(PromptKind.TEXT, absent_texts=10)
        evaluation, summary = await summary_of(service, self.dataset(tmp_path), asked)
        by_object = {(o.image, o.annotation_id): o.iou for o in evaluation.objects}
        assert by_object == pytest.approx({(0, 0): 1.0, (0, 1): 0.5, (1, 2): 0.0})
        (row,) = summary["text"]
        assert row["found_objects"]["mean"] == pytest.approx(2 / 3)
        assert row["unmatched_masks"]["mean"] == pytest.approx(1 / 3)
        assert row["missed_texts"]["mean"] == 0.5
        # Asked of a: cat, cow, owl; of b: dog, cow, owl.  Only the owls were "present".
        assert row["false_present"]["items"] == 6
        assert row["false_present"]["mean"] == pytest.approx(1 / 3)
        assert iou_row(summary, prompt="text")["iou"]["mean"] == pytest.approx(0.5)
        assert "33.3% of 6" in markdown(summary)

    async def test_crowds_are_neither_found_nor_wrong_nor_absent(self, tmp_path: Path) -> None:
        crowd = rectangle(0, 90, 120, 120)
        dataset = self.dataset(
            tmp_path,
            annotations=[
                {"id": i, "image_id": 0, "category_id": self.names.index(name), "iscrowd": 1}
                | {"segmentation": coco_rle(crowd)}
                for i, name in ((80, "dog"), (81, "owl"))
            ],
        )
        asked: list[tuple[str, str]] = []

        def text(name: str, query: str) -> PromptResult:
            asked.append((name, query))
            masks = (mask_of(rectangle(10, 95, 20, 110)),) if query == "dog" else ()
            return PromptResult(masks=masks, text=query, present=bool(masks))

        evaluation = await evaluate(
            SceneService(SCENE, text=text), dataset, plan(PromptKind.TEXT, absent_texts=10)
        )
        answers = {(a.image, a.text): a for a in evaluation.texts}
        assert (answers[0, "dog"].found, answers[0, "dog"].unmatched) == (0, 0)
        assert ("a.png", "owl") not in asked
        assert ("b.png", "owl") in asked

    async def test_a_name_with_an_unreadable_object_is_not_asked(self, tmp_path: Path) -> None:
        broken = {"id": 80, "image_id": 0, "category_id": 0, "segmentation": [[1]]}
        service = SceneService(SCENE, text=lambda _, query: PromptResult(masks=(), present=False))
        evaluation = await evaluate(
            service, self.dataset(tmp_path, annotations=[broken]), plan(PromptKind.TEXT)
        )
        assert (0, "dog") not in {(a.image, a.text) for a in evaluation.texts}
        assert (1, "cat") in {(a.image, a.text) for a in evaluation.texts}

    async def test_there_is_room_for_a_mask_of_every_object(self, tmp_path: Path) -> None:
        scene = {"a.png": [rectangle(i, i, i + 9, i + 9) for i in range(50)]}
        service = SceneService(scene, text=lambda _, query: PromptResult(masks=(), present=False))
        await evaluate(service, load(tmp_path, scene), plan(PromptKind.TEXT))
        assert all(isinstance(r.task, TextQuery) for r in service.requests)
        assert [r.task.max_masks for r in service.requests if isinstance(r.task, TextQuery)] > [50]

    async def test_texts_are_asked_in_groups(self, tmp_path: Path) -> None:
        names = tuple(f"kind {i}" for i in range(40))
        dataset = load(tmp_path, SCENE, names=names)
        service = SceneService(SCENE, text=lambda _, query: PromptResult(masks=(), present=False))
        await evaluate(service, dataset, plan(PromptKind.TEXT, absent_texts=39))
        sizes = [len(r.task.text) for r in service.requests if isinstance(r.task, TextQuery)]
        assert sizes == [16, 16, 8] * 2


class TestCommand:
    def run(self, monkeypatch: pytest.MonkeyPatch, service: SceneService, *argv: str) -> int:
        class Connected:
            def __init__(self, url: str) -> None:
                assert url == "http://sam"

            async def __aenter__(self) -> SceneService:
                return service

            async def __aexit__(self, *error: object) -> None:
                return None

        monkeypatch.setattr(client, "HttpService", Connected)
        parser = argparse.ArgumentParser()
        add_arguments(parser)
        return run(parser.parse_args(["--url", "http://sam", *argv]))

    def paths(self, folder: Path) -> list[str]:
        path = write_dataset(folder, SCENE)
        return ["--images", str(folder), "--annotations", str(path)]

    def test_prints_tables_and_writes_json(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        out = tmp_path / "figures.json"
        argv = [*self.paths(tmp_path), "--variant", "fast", "--variant", "slow", "--json", str(out)]
        assert self.run(monkeypatch, SceneService(SCENE), *argv) == 0
        printed = capsys.readouterr().out
        assert "| box | fast | all | 3 | 2 | 1.000 | 1.000 to 1.000 | – |" in printed
        assert "| point | slow − fast | all | 3 | 2 | +0.000 | +0.000 to +0.000 |" in printed
        figures = json.loads(out.read_bytes())
        assert figures["plan"]["variants"] == ["fast", "slow"]
        assert len(figures["dataset"]["annotations_sha256"]) == 64
        assert str(tmp_path) not in out.read_text()

    def test_rows_have_as_many_cells_as_their_head(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        service = SceneService(SCENE, text=lambda _, q: PromptResult(masks=(), present=False))
        prompts = [a for p in PromptKind for a in ("--prompt", p)]
        argv = [*self.paths(tmp_path), *prompts, "--variant", "fast", "--variant", "slow"]
        self.run(monkeypatch, service, *argv)
        tables = [
            block.splitlines()
            for block in capsys.readouterr().out.split("\n\n")
            if block.startswith("|")
        ]
        assert len(tables) == 4
        for table in tables:
            assert len({line.count("|") for line in table}) == 1

    def test_exit_status_tells_of_failures(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        service = SceneService(SCENE)
        service.fails["a.png"] = InternalError("a fault")
        assert self.run(monkeypatch, service, *self.paths(tmp_path)) == 1
        service.fails["b.png"] = InternalError("a fault")
        assert self.run(monkeypatch, service, *self.paths(tmp_path)) == 2
        assert "every image failed; a.png: a fault" in capsys.readouterr().err
        nowhere = ["--images", str(tmp_path), "--annotations", str(tmp_path / "none.json")]
        assert self.run(monkeypatch, service, *nowhere) == 2

    def test_a_service_that_is_not_ready_is_not_asked(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        service = SceneService(SCENE)
        service.is_ready = False
        assert self.run(monkeypatch, service, *self.paths(tmp_path)) == 2
        assert not service.requests
        assert "is not ready" in capsys.readouterr().err

    @pytest.mark.parametrize(
        "wrong", [["--limit-images", "0"], ["--seed", "-1"], ["--prompt", "x"], ["--seed", "x"]]
    )
    def test_wrong_arguments_are_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: list[str]
    ) -> None:
        with pytest.raises(SystemExit):
            self.run(monkeypatch, SceneService(SCENE), *self.paths(tmp_path), *wrong)
