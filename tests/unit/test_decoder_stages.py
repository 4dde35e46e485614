"""The decoder's modules under each engine, with random weights of the real shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from segment_anything.modeling import Sam
from torch import Tensor, nn

from serve_app.core.inference import DecodeJob, DecodeOptions, Embedding
from serve_app.core.settings import Compute
from serve_app.core.types import Prompt
from serve_app.engines.sam import stages_openvino
from serve_app.engines.sam.decoder import SamDecoder
from serve_app.engines.sam.model import build_sam
from serve_app.engines.sam.stages_openvino import OpenVinoStages
from serve_app.engines.sam.two_way import ImageSide, ProjectImage, TorchStages

pytestmark = pytest.mark.slow

THREADS = 2


@pytest.fixture(scope="module")
def sam() -> Sam:
    torch.manual_seed(0)
    return build_sam("vit_t", with_encoder=False)


@pytest.fixture(scope="module")
def pe(sam: Sam) -> Tensor:
    return sam.prompt_encoder.get_dense_pe()  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("graphs")


@pytest.fixture(scope="module")
def openvino(sam: Sam, pe: Tensor, graphs: Path) -> OpenVinoStages:
    return OpenVinoStages(sam.mask_decoder, pe, Compute(threads=THREADS), graphs, "weights")


@pytest.fixture
def eager(sam: Sam, pe: Tensor) -> Iterator[TorchStages]:
    with torch.inference_mode():
        yield TorchStages(sam.mask_decoder, pe)


def image(seed: int, count: int = 1) -> Tensor:
    return torch.randn(count, 256, 64, 64, generator=torch.Generator().manual_seed(seed))


def prompts(count: int, tokens: int) -> tuple[Tensor, Tensor]:
    """Random tokens; of the last prompt the last token is padding."""
    generator = torch.Generator().manual_seed(count * 10 + tokens)
    padding = torch.zeros(count, tokens)
    padding[-1, -1] = -torch.inf
    return torch.randn(count, tokens, 256, generator=generator), padding


def close(a: Tensor, b: Tensor, atol: float) -> None:
    torch.testing.assert_close(a, b, atol=atol, rtol=0)


@pytest.mark.parametrize("count", [1, 3])
def test_eager_equals_segment_anything(
    sam: Sam, pe: Tensor, eager: TorchStages, count: int
) -> None:
    embedding, (tokens, _) = image(1), prompts(count, 3)
    dense = torch.zeros(count, 256, 64, 64)
    masks, iou = sam.mask_decoder.predict_masks(embedding, pe, tokens, dense)
    ours, weights, keys = eager.attend(eager.project(embedding), tokens, torch.zeros(count, 3))
    close(ours, iou, 1e-5)
    close(eager.upscale(keys, weights[:, 1:]), masks[:, 1:], 2e-4)


@pytest.mark.parametrize(("count", "tokens"), [(1, 2), (2, 2), (3, 2), (2, 5)])
def test_openvino_equals_eager(
    openvino: OpenVinoStages, eager: TorchStages, count: int, tokens: int
) -> None:
    """The usual shapes, which have a graph of their own, and others."""
    side, (given, padding) = openvino.project(image(2)), prompts(count, tokens)
    for ours, theirs in zip(side, eager.project(image(2)), strict=True):
        close(ours, theirs, 1e-4)
    ours = [tensor.clone() for tensor in openvino.attend(side, given, padding)]
    theirs = eager.attend(side, given, padding)
    close(ours[0], theirs[0], 1e-5)
    masks = openvino.upscale(ours[2], ours[1][:, 1:])
    close(masks, eager.upscale(theirs[2], theirs[1][:, 1:]), 5e-4)


def test_bfloat16_on_a_cpu_is_near(sam: Sam, pe: Tensor, graphs: Path, eager: TorchStages) -> None:
    """A processor without it computes in float32, which is nearer."""
    compute = Compute(threads=THREADS, dtype="bfloat16")
    stages = OpenVinoStages(sam.mask_decoder, pe, compute, graphs, "weights")
    given, padding = prompts(2, 2)
    ours = [tensor.clone() for tensor in stages.attend(stages.project(image(2)), given, padding)]
    theirs = eager.attend(eager.project(image(2)), given, padding)
    masks = stages.upscale(ours[2], ours[1][:, 1:])
    wanted = eager.upscale(theirs[2], theirs[1][:, 1:])
    assert masks.dtype == torch.float32
    assert torch.cosine_similarity(masks.flatten(), wanted.flatten(), dim=0) > 0.999
    engine = SamDecoder(sam, compute, graphs, "weights")
    found = engine._stages
    assert isinstance(found, OpenVinoStages)
    assert found._attend._options["INFERENCE_PRECISION_HINT"] == "bf16"


def test_padding_changes_nothing(eager: TorchStages) -> None:
    side, (given, padding) = eager.project(image(3)), prompts(2, 3)
    together, _, _ = eager.attend(side, given, padding)
    alone, _, _ = eager.attend(side, given[1:, :2], torch.zeros(1, 2))
    close(together[1:], alone, 1e-5)


def test_prompts_of_two_images_share_a_pass(eager: TorchStages) -> None:
    first, second = eager.project(image(4)), eager.project(image(5))
    given, padding = prompts(3, 2)
    sides = ImageSide(*(torch.cat([a, b, b]) for a, b in zip(first, second, strict=True)))
    together, _, keys = eager.attend(sides, given, padding)
    for side, rows in ((first, slice(0, 1)), (second, slice(1, 3))):
        iou, _, seen = eager.attend(side, given[rows], padding[rows])
        close(together[rows], iou, 1e-5)
        close(keys[rows], seen, 1e-4)


class Counted:
    """Stages that note what they are asked, over eager ones."""

    chunk = 4

    def __init__(self, eager: TorchStages, mixes_images: bool) -> None:
        self._eager = eager
        self.mixes_images = mixes_images
        self.projected = 0
        self.passes: list[int] = []

    def project(self, dense: Tensor) -> ImageSide:
        self.projected += 1
        return self._eager.project(dense)

    def attend(self, side: ImageSide, given: Tensor, padding: Tensor) -> tuple[Tensor, ...]:
        self.passes.append(len(given))
        return self._eager.attend(side, given, padding)

    def upscale(self, keys: Tensor, weights: Tensor) -> Tensor:
        return self._eager.upscale(keys, weights)


def embedding(seed: int) -> Embedding:
    return Embedding({"image_embed": image(seed)[0].numpy()}, height=60, width=80)


def job(of: Embedding, x: float = 10.0, mask: bool = False) -> DecodeJob:
    logits = np.ones((256, 256), np.float32) if mask else None
    point = Prompt(point_coords=[[x, 9.0]], point_labels=[1], mask_input=logits)  # type: ignore[arg-type]
    return DecodeJob(of, point, DecodeOptions())


@pytest.fixture
def counted(
    sam: Sam, eager: TorchStages, monkeypatch: pytest.MonkeyPatch
) -> Callable[[bool], tuple[SamDecoder, Counted]]:
    def make(mixes_images: bool) -> tuple[SamDecoder, Counted]:
        stages = Counted(eager, mixes_images)
        monkeypatch.setattr(
            "serve_app.engines.sam.stages_openvino.OpenVinoStages", lambda *_: stages
        )
        return SamDecoder(sam, Compute(threads=THREADS)), stages

    return make


@pytest.mark.parametrize(("mixes_images", "passes"), [(True, [4, 2]), (False, [3, 1, 1, 1])])
def test_each_image_is_projected_once(
    counted: Callable[[bool], tuple[SamDecoder, Counted]], mixes_images: bool, passes: list[int]
) -> None:
    decoder, stages = counted(mixes_images)
    a, b = embedding(6), embedding(7)
    jobs = [job(a), job(b), job(a, 20.0), job(a, mask=True), job(a, 30.0), job(b, mask=True)]
    answers = decoder.decode_batch(jobs)
    assert sorted(stages.passes) == sorted(passes)
    # Two images, and two prompts whose mask makes an image of their own.
    assert stages.projected == 4
    for one, answer in zip(jobs, answers, strict=True):
        (alone,) = decoder.decode_batch([one])
        assert [m.rle for m in answer] == [m.rle for m in alone]
    assert stages.projected == 4 + 2


def test_a_mask_is_nobody_elses(counted: Callable[[bool], tuple[SamDecoder, Counted]]) -> None:
    decoder, _ = counted(True)
    one = embedding(8)
    jobs = [job(one, mask=True), job(one), job(one, 20.0)]
    together = decoder.decode_batch(jobs)
    for single, answer in zip(jobs, together, strict=True):
        (alone,) = decoder.decode_batch([single])
        assert [m.rle for m in answer] == [m.rle for m in alone]


def test_only_the_last_images_are_kept(
    counted: Callable[[bool], tuple[SamDecoder, Counted]],
) -> None:
    decoder, stages = counted(False)
    seen = [embedding(seed) for seed in range(6)]
    for one in seen:
        decoder.decode_batch([job(one)])
    assert stages.projected == 6
    decoder.decode_batch([job(seen[-1]), job(seen[2])])
    assert stages.projected == 6
    decoder.decode_batch([job(seen[0])])
    assert stages.projected == 7


# Kept graphs.


@pytest.fixture
def traced(sam: Sam, pe: Tensor, monkeypatch: pytest.MonkeyPatch) -> Callable[..., bool]:
    """Whether the graph of `ProjectImage` was traced anew, in a folder and for some weights."""
    calls: list[nn.Module] = []
    trace = stages_openvino._trace

    def counted_trace(module: nn.Module, *shapes: Any) -> Any:
        calls.append(module)
        return trace(module, *shapes)

    monkeypatch.setattr(stages_openvino, "_trace", counted_trace)

    def run(graphs: Path | None, weights_hash: str) -> bool:
        calls.clear()
        module = ProjectImage(sam.mask_decoder, pe)
        stages_openvino.traced_graph(module, [(1, 256, 64, 64)], [()], graphs, weights_hash)
        return bool(calls)

    return run


def test_a_graph_is_traced_once_for_its_weights(
    traced: Callable[..., bool], tmp_path: Path
) -> None:
    assert traced(tmp_path, "a")
    assert not traced(tmp_path, "a")
    assert traced(tmp_path, "b")
    for graph in tmp_path.glob("*/graph.xml"):
        graph.write_text("<damaged")
    assert traced(tmp_path, "a")
    assert not traced(tmp_path, "a")


def test_graphs_need_no_folder(traced: Callable[..., bool], tmp_path: Path) -> None:
    assert traced(None, "a")
    occupied = tmp_path / "file"
    occupied.write_text("")
    assert traced(occupied, "a")
    assert traced(occupied, "a")
