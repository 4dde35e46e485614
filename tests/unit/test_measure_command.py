"""``python -m serve_app measure``: the probe on stand-in engines, its process, and the command."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from serve_app.__main__ import main
from serve_app.core.inference import DecodeJob
from serve_app.core.measurements import Agreement, MeasurementsFile, Share
from serve_app.core.rle import encode_rle
from serve_app.core.settings import Compute, GraphSettings
from serve_app.core.types import BoolArray, Mask, Prompt, RgbArray
from serve_tools.profiling import probe as probing
from serve_tools.profiling import reference_models, runner
from serve_tools.profiling.engines import unbounded
from serve_tools.profiling.parity import least_cosine, parity
from serve_tools.profiling.protocol import QUICK, Effort, ProbeEvent, ProbeRequest, ProbeResult
from serve_tools.profiling.quality import mean_iou, predict_sample, records_of
from serve_tools.profiling.reference_models import VariantReference
from serve_tools.profiling.runner import ProbeFailed, run_probe
from serve_tools.profiling.samples import Sample, load_samples

from ..fakes.engines import FakeDecoder, FakeEncoder, FakeSource
from ..fakes.masks import mask_of
from .evaluation_scenes import coco_rle, rectangle
from .ledger_entries import ledger

TINY = Effort(
    images=2, objects=2, encode_sizes=(1, 2), decode_sizes=(1, 3), repeats=2, cold_starts=2
)
SETTINGS = GraphSettings.model_validate({"variants": {"fast": {"model": "vit_t"}}})
EXACT = [rectangle(10, 10, 40, 50), rectangle(60, 60, 100, 80)]
SAMPLE = Sample(
    7, np.zeros((120, 120, 3), np.uint8), tuple(enumerate(encode_rle(m) for m in EXACT))
)


def ones(image: RgbArray) -> dict[str, np.ndarray]:
    return {"image_embed": np.ones((2, 3), np.float32)}


def masks_by_form(job: DecodeJob) -> tuple[Mask, ...]:
    """Of three masks the surest covers everything; of one, a box's is exact, a click's is empty.

    So each form of prompt has another IoU with a rectangle.
    """
    exact = np.zeros((job.embedding.height, job.embedding.width), np.bool_)
    if job.prompt.box is not None:
        x0, y0, x1, y1 = (int(v) for v in job.prompt.box)
        exact[y0:y1, x0:x1] = True
    if not job.prompt.multimask_output:
        return (mask_of(exact, 0.9, 0.5),)
    return tuple(
        mask_of(array, score, 0.5)
        for array, score in ((exact, 0.7), (np.ones_like(exact), 0.9), (exact, 0.8))
    )


def make_encoder() -> FakeEncoder:
    return FakeEncoder(tensors_of=ones)


def make_decoder() -> FakeDecoder:
    return FakeDecoder(masks_of=masks_by_form)


@dataclass(frozen=True)
class Source(FakeSource):
    encoder: FakeEncoder = field(default_factory=make_encoder)
    decoder: FakeDecoder = field(default_factory=make_decoder)


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch) -> Source:
    """The variant is its own reference model."""
    monkeypatch.setattr(probing, "PHOTO", (48, 64))
    monkeypatch.setattr(reference_models, "load_reference", VariantReference)
    return Source()


def probed(effort: Effort | None, source: Source) -> list[ProbeEvent]:
    events: list[ProbeEvent] = []
    request = ProbeRequest(settings=SETTINGS, variant="fast", effort=effort)
    probing.probe(request, events.append, source)
    return events


def test_a_probe_of_a_cold_start_ends_after_its_first_masks(
    source: Source,
) -> None:
    (event,) = probed(None, source)
    assert event.kind == "first"
    assert event.load_s is not None
    assert [*source.encoder.batches] == [*source.decoder.batches] == [1]


def test_a_probe_measures_all_that_was_asked(source: Source) -> None:
    *others, last = probed(TINY, source)
    assert [event.kind for event in others] == ["first", "progress", "progress", "progress"]
    answer = last.result
    assert answer is not None
    assert {n: len(ms) for n, ms in answer.encode_ms.items()} == {1: 2, 2: 2}
    assert {n: len(ms) for n, ms in answer.decode_ms.items()} == {1: 2, 3: 2}
    assert source.encoder.batches.count(2) == source.decoder.batches.count(3) == 3  # one to warm up
    assert answer.embedding_bytes == 24
    assert answer.memory_bytes > 2**20
    assert answer.peak_memory_bytes is not None
    assert answer.peak_memory_bytes >= answer.memory_bytes
    assert answer.gpu_memory_bytes is None
    assert (answer.data.images, answer.data.objects) == (2, 4)
    assert len(answer.records) == 2 * 2 * len(TINY.forms)
    assert answer.agreement.reference == "fast"
    assert answer.agreement.mask_iou.value == 1.0
    assert answer.agreement.embedding_cosine is not None
    assert answer.agreement.embedding_cosine.value == 1.0
    # It travels as JSON.
    assert ProbeEvent.model_validate_json(last.model_dump_json()) == last


def test_quality_counts_one_mask_of_a_box_and_the_surest_of_a_click() -> None:
    records = records_of("v", predict_sample(make_encoder(), make_decoder(), SAMPLE, TINY.forms))
    assert [r.form for r in records] == [form for form in TINY.forms for _ in EXACT]
    by_form = {(r.form, r.object): r for r in records}
    assert by_form["box-1", 1].iou == 1.0
    # The surest of a click's masks covers everything.
    assert by_form["point-3", 0].iou == pytest.approx(EXACT[0].sum() / 120**2)
    assert by_form["point-3", 0].features["log_share"] == pytest.approx(0.0, abs=1e-3)
    assert {r.image for r in records} == {7}
    assert all((r.score, r.stability) == (0.9, 0.5) for r in records)
    shares = mean_iou(records, seed=0)
    assert shares["box"].value == 1.0
    assert shares["box"].low is None  # of one image
    assert shares["point"].value == pytest.approx(
        sum(m.sum() for m in EXACT) / 2 / 120**2, abs=1e-6
    )


def test_an_object_without_a_mask_counts_as_missed() -> None:
    answered = predict_sample(make_encoder(), make_decoder(), SAMPLE, ("box-1",))
    object.__setattr__(answered, "masks", [(), answered.masks[1]])
    assert [r.iou for r in records_of("v", answered)] == [0.0, 1.0]


class Shifted:
    """A reference whose masks are the variant's, moved by half an object."""

    name = "shifted"

    def __init__(self, tensors: dict[str, Any]) -> None:
        self.tensors = tensors

    def predict(
        self, pixels: RgbArray, prompts: Sequence[Prompt]
    ) -> tuple[dict[str, Any], list[BoolArray]]:
        return self.tensors, [np.roll(mask, 15, axis=1)[None] for mask in EXACT]


def test_parity_tells_how_far_masks_and_embeddings_are() -> None:
    answered = predict_sample(make_encoder(), make_decoder(), SAMPLE, ("box-1",))
    opposite = {"image_embed": -np.ones((2, 3), np.float32)}
    found = parity([answered], Shifted(opposite), seed=0)
    # Widths 30 and 40, moved by 15: 15 of 45 and 25 of 55 columns are shared.
    assert found.mask_iou.value == pytest.approx((15 / 45 + 25 / 55) / 2, abs=1e-6)
    assert found.embedding_cosine is not None
    assert found.embedding_cosine.value == -1.0
    other_kind = {"image_embed": np.ones((3, 2), np.float32)}
    assert parity([answered], Shifted(other_kind), seed=0).embedding_cosine is None
    assert least_cosine({"a": np.ones(2)}, {"b": np.ones(2)}) is None
    mixed = {"a": np.ones(2), "b": np.array([1.0, 0.0])}
    assert least_cosine(mixed, {"a": np.ones(2), "b": np.ones(2)}) == pytest.approx(0.5**0.5)


def test_samples_are_the_same_for_every_variant_and_differ_by_seed() -> None:
    first, again, other = (
        [
            (sample.pixels.tobytes(), [rle.counts for _, rle in sample.objects])
            for sample in load_samples(TINY.model_copy(update={"seed": seed}), SETTINGS.limits)
        ]
        for seed in (0, 0, 1)
    )
    assert first == again
    assert first != other
    assert all(1 <= len(objects) <= TINY.objects for _, objects in first)


def annotate(folder: Path) -> Path:
    """Two photos with exact rectangles, and one of another size than its annotations say."""
    sizes = {"a.png": (120, 120), "b.png": (120, 120), "wrong.png": (30, 30)}
    for name, (height, width) in sizes.items():
        Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(folder / name)
    content = {
        "images": [
            {"id": i, "file_name": name, "width": 120, "height": 120}
            for i, name in enumerate(sizes)
        ],
        "categories": [{"id": 1, "name": "thing"}],
        "annotations": [
            {"id": str(i), "image_id": i % 3, "category_id": 1, "segmentation": coco_rle(mask)}
            for i, mask in enumerate([*EXACT, EXACT[0], *EXACT])
        ],
    }
    path = folder / "instances.json"
    path.write_text(json.dumps(content))
    return path


def test_annotated_images_that_do_not_fit_are_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], source: Source
) -> None:
    effort = TINY.model_copy(
        update={"images_dir": str(tmp_path), "annotations": str(annotate(tmp_path)), "images": 9}
    )
    answer = probed(effort, source)[-1].result
    assert answer is not None
    assert (answer.data.name, answer.data.images, answer.data.objects) == ("instances.json", 2, 4)
    assert answer.data.sha256 is not None
    assert mean_iou(answer.records, 0)["box"].value == 1.0
    assert "wrong.png" in capsys.readouterr().err


def test_a_probe_leaves_out_a_bound_that_is_meant_for_half_of_it() -> None:

    assert unbounded(Compute(device="cuda", memory_fraction=0.1)).memory_fraction is None


# The process, with a script in place of the probe.

ANSWER = ProbeResult(
    memory_bytes=1, peak_memory_bytes=2, gpu_memory_bytes=None, embedding_bytes=3,
    encode_ms={1: [10.0, 12.0, 11.0]}, decode_ms={1: [1.0]},
    data=ledger().data, records=(),
    agreement=Agreement(reference="segment_anything", mask_iou=Share(value=1.0)),
)  # fmt: skip
FIRST = ProbeEvent(kind="first", load_s=0.25).model_dump_json()


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    def put(code: str) -> None:
        code = f"import sys; asked = sys.stdin.read()\n{code}"
        monkeypatch.setattr(runner, "PROBE", (sys.executable, "-c", code))

    return put


def run_script(effort: Effort | None = None) -> Any:
    said: list[str] = []
    return run_probe(
        ProbeRequest(settings=SETTINGS, variant="fast", effort=effort), said.append
    ), said


def test_a_cold_start_is_timed_from_before_the_process(script: Callable[[str], None]) -> None:
    script(f"print({FIRST!r})")
    began = time.monotonic()
    seen, said = run_script()
    assert 0 < seen.cold_start_s <= time.monotonic() - began
    assert seen.load_s == 0.25
    assert len(said) == 1


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("sys.exit(3)", "ended early"),
        ("pass", "ended early"),
        (f"print({FIRST!r}); sys.exit(1)", "ended early"),
        ("print('hello')", "an invalid event"),
        ('print(\'{"kind": "failed", "text": "no weights"}\')', "no weights"),
    ],
)
def test_a_process_that_fails_is_told(script: Callable[[str], None], code: str, said: str) -> None:
    script(code)
    with pytest.raises(ProbeFailed, match=said):
        run_script()


def test_a_process_that_hangs_after_nonsense_is_ended(script: Callable[[str], None]) -> None:
    script("print('x', flush=True)\nimport time; time.sleep(600)")
    with pytest.raises(ProbeFailed, match="an invalid event"):
        run_script()


# The command, on the same script.

GOOD = (
    "import json; asked = json.loads(asked)\n"
    f"print({FIRST!r})\n"
    "if asked['effort']: "
    f"print({ProbeEvent(kind='result', result=ANSWER).model_dump_json()!r})"
)
BROKEN_ACCURATE = GOOD.replace(
    "\nprint", "\nif asked['variant'] == 'accurate': sys.exit(1)\nprint", 1
)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    variants = {"fast": {"model": "vit_t"}, "accurate": {"model": "sam2_hiera_tiny"}}
    args = {"variants": variants, "measurements": {"path": str(tmp_path / "ledger.json")}}
    path = tmp_path / "graph.yaml"
    path.write_text(yaml.safe_dump({"applications": [{"args": args}]}, sort_keys=False))
    return path


def written(config: Path, name: str = "ledger.json") -> MeasurementsFile:
    return MeasurementsFile.model_validate_json((config.parent / name).read_bytes())


def test_the_command_writes_and_prints_the_ledger(
    config: Path, script: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    script(GOOD)
    assert main(["measure", "--config", str(config), "--quick"]) == 0
    out = capsys.readouterr()
    found = written(config)
    assert list(found.entries) == ["fast", "accurate"]
    figure = found.entries["fast"].encode_ms[1]
    assert (figure.low, figure.value, figure.high) == (10.0, 11.0, 12.0)
    assert found.entries["fast"].cold_start_s.low is None  # quick: one process
    assert found.versions["torch"]
    assert "| fast | 11 (10–12) |" in out.out
    assert f"written to {config.parent / 'ledger.json'}" in out.out
    assert "accurate: measured in" in out.err


def test_a_full_run_starts_several_processes(config: Path, script: Callable[[str], None]) -> None:
    script(GOOD)
    path = config.parent / "elsewhere.json"
    assert main(["measure", "--config", str(config), "--variant", "fast", "--out", str(path)]) == 0
    found = written(config, "elsewhere.json")
    assert list(found.entries) == ["fast"]
    assert found.entries["fast"].cold_start_s.low is not None
    assert not (config.parent / "ledger.json").exists()


def test_a_variant_that_fails_does_not_cost_the_others(
    config: Path, script: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    script(BROKEN_ACCURATE)
    assert main(["measure", "--config", str(config), "--quick"]) == 1
    assert list(written(config).entries) == ["fast"]
    assert "accurate was not measured" in capsys.readouterr().err
    # Measured again alone, the other one is kept.
    script(GOOD)
    assert main(["measure", "--config", str(config), "--quick", "--variant", "accurate"]) == 0
    assert set(written(config).entries) == {"fast", "accurate"}


def test_where_nothing_could_be_measured_nothing_is_written(
    config: Path, script: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    script("sys.exit(1)")
    assert main(["measure", "--config", str(config)]) == 1
    assert "nothing is written" in capsys.readouterr().err
    assert not (config.parent / "ledger.json").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--variant", "nope"], "it has fast, accurate"),
        (["--images", "."], "go together"),
        (["--images", ".", "--annotations", "/nowhere.json"], "cannot be read"),
    ],
)
def test_what_cannot_be_measured_is_refused_at_once(
    config: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert main(["measure", "--config", str(config), *arguments]) == 1
    assert said in capsys.readouterr().err


def test_a_broken_ledger_is_written_anew(
    config: Path, script: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    (config.parent / "ledger.json").write_text("{")
    script(GOOD)
    assert main(["measure", "--config", str(config), "--quick"]) == 0
    assert "it is replaced" in capsys.readouterr().err
    assert set(written(config).entries) == {"fast", "accurate"}


def test_a_place_that_cannot_be_written_is_told(
    config: Path, script: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    script(GOOD)
    place = config / "ledger.json"  # below a file
    assert main(["measure", "--config", str(config), "--quick", "--out", str(place)]) == 1
    assert "cannot be written" in capsys.readouterr().err


def test_quick_is_a_part_of_the_full_effort() -> None:
    full = Effort()
    assert set(QUICK.encode_sizes) < set(full.encode_sizes)
    assert set(QUICK.decode_sizes) < set(full.decode_sizes)
    assert set(QUICK.forms) < set(full.forms)
    assert 1 in QUICK.encode_sizes
    assert 1 in QUICK.decode_sizes


def test_models_shows_the_figures_and_why_some_are_missing(
    config: Path, script: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    script(BROKEN_ACCURATE)
    main(["measure", "--config", str(config), "--quick"])
    capsys.readouterr()
    assert main(["models", "--config", str(config)]) == 0
    out = capsys.readouterr()
    _, table = out.out.split("\n\n")
    header, _, fast, accurate = table.splitlines()
    assert header.split()[:3] == ["variant", "encode", "ms"]
    assert fast.split()[:3] == ["fast", "11", "1"]
    assert fast.endswith("valid")
    assert accurate.endswith("ignored: not measured")
    assert "no figures for accurate" in out.err
    assert main(["models", "--json", "--config", str(config)]) == 0
    rows = {row["model"]: row for row in json.loads(capsys.readouterr().out)}
    (figures,) = rows["vit_t"]["ledger"]
    assert (figures["variant"], figures["state"]) == ("fast", "valid")
    assert figures["encode_ms"]["1"]["value"] == 11.0
    assert rows["vit_b"]["ledger"] == []
