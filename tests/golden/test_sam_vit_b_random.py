"""ViT-B's real shapes with random weights, from a checkpoint of our own through the registry.

Its official weights are in no package registry: what can be proven without them is that a
registry entry, a verified file and the loading code give `segment_anything`'s answers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from segment_anything import sam_model_registry
from segment_anything.modeling import Sam

from serve_app.capabilities import SegmentRequest
from serve_app.core.errors import WeightsUnavailable
from serve_app.core.settings import GraphSettings
from serve_app.core.types import CacheTier
from serve_app.local import build_local_service
from serve_app.models.factory import ModelSource

from .cases import TWO_THREADS, cases_of, check_against, photo, reference_answers

pytestmark = pytest.mark.weights

KINDS = ("point", "points_single", "box", "box_and_points", "mask_and_point", "mask")


@pytest.fixture(scope="module")
def random_sam() -> Sam:
    torch.manual_seed(20)
    with torch.no_grad():
        return sam_model_registry["vit_b"]().eval()


@pytest.fixture(scope="module")
def registry(random_sam: Sam, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry file whose only model is a checkpoint of those weights."""
    folder = tmp_path_factory.mktemp("vit_b")
    checkpoint = folder / "random_vit_b.pth"
    torch.save(random_sam.state_dict(), checkpoint)
    with checkpoint.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    model = {
        "family": "sam",
        "architecture": "vit_b",
        "title": "ViT-B with random weights",
        "license": "none",
        "origin": "this test",
        "preprocessing": "sam-1",
        "files": {
            "checkpoint": {
                "name": checkpoint.name,
                "size": checkpoint.stat().st_size,
                "sha256": digest,
                "sources": [{"local": str(checkpoint)}],
            }
        },
    }
    path = folder / "models.yaml"
    path.write_text(yaml.safe_dump({"models": {"random_b": model}}))
    return path


async def test_answers_equal_sam_predictor(
    random_sam: Sam, registry: Path, one_variant: Callable[..., GraphSettings]
) -> None:
    image = photo("chelsea")
    prompts = [c.prompt for c in cases_of("chelsea") if c.name.split("-")[1] in KINDS]
    assert len(prompts) == len(KINDS)
    service = build_local_service(one_variant("random_b", str(registry)))
    result = await service.segment(SegmentRequest(image=image, task=prompts))
    assert (result.model, result.cache) == ("random_b", CacheTier.MISS)
    references = reference_answers(random_sam, image, prompts)
    for answer, reference in zip(result.results, references, strict=True):
        check_against(answer.masks, reference)
    # Random weights answer something too, not one empty mask after another.
    assert any(0 < mask.area < image[..., 0].size for r in result.results for mask in r.masks)


def test_a_checkpoint_that_was_changed_is_refused(registry: Path, tmp_path: Path) -> None:
    content = yaml.safe_load(registry.read_text())
    file = content["models"]["random_b"]["files"]["checkpoint"]
    file["sha256"] = "0" * 64
    changed = tmp_path / "models.yaml"
    changed.write_text(yaml.safe_dump(content))
    source = ModelSource(str(changed), str(tmp_path / "weights"), offline=True)
    with pytest.raises(WeightsUnavailable) as caught:
        source.load_decoder("random_b", TWO_THREADS)
    assert str(registry.parent) not in str(caught.value)
