"""Trains a tiny OpenCLIP model on synthetic scenes: ``python -m serve_tools.workshop.tiny_clip``.

It is an ordinary `open-clip-torch` model, small enough to ship with the tests, so that the
``open_clip`` engine can be tested without a model hub.  It is trained on `scenes.all_captions`
and "background", with crops by the scorer's own `masked_crop`.  Takes some minutes on a core.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import open_clip
import torch
from safetensors.torch import save_file
from torch import Tensor

from serve_app.core.inference import Candidate
from serve_app.core.rle import encode_rle, rle_bbox
from serve_app.core.types import BoolArray, RgbArray
from serve_app.engines.open_clip.scorer import masked_crop, mean_colour
from serve_tools.synthetic.scenes import Scene, all_captions, draw_scene

ARCHITECTURE = "tiny_clip"
BACKGROUND = "background"
CONFIG: dict[str, Any] = {
    "embed_dim": 32,
    "vision_cfg": {
        "image_size": 48,
        "layers": 3,
        "width": 64,
        "head_width": 32,
        "patch_size": 8,
    },
    "text_cfg": {
        "context_length": 16,
        "vocab_size": 49408,
        "width": 32,
        "heads": 2,
        "layers": 2,
    },
}
FIRST_SCENE = 1_000_000
"""Seed of the first scene of the training: scenes with smaller seeds are new to the model."""


def _candidate(mask: BoolArray) -> Candidate:
    rle = encode_rle(mask)
    return Candidate(bbox=rle_bbox(rle), mask=rle)


def make_crops(scenes: int, seed: int) -> tuple[Tensor, Tensor]:
    """Crops of scenes ``(N, side, side, 3) uint8`` and their captions' numbers ``(N,)``.

    Masks are exact, or a little too small or too large; some crops have none.  Each scene adds
    a crop of its background, numbered after all captions.
    """
    rng = np.random.default_rng(seed)
    names = all_captions()
    crops: list[RgbArray] = []
    numbers: list[int] = []
    for i in range(scenes):
        scene = draw_scene(FIRST_SCENE + seed * 100_000 + i, objects=int(rng.integers(6, 11)))
        taken = np.any([o.mask for o in scene.objects], axis=0)
        for item in scene.objects:
            crops.append(_crop(scene, _rough(rng, item.mask), masked=rng.random() < 0.85))
            numbers.append(names.index(item.caption))
        blob = _blob(rng, taken)
        if blob is not None:
            crops.append(_crop(scene, blob, masked=True))
            numbers.append(len(names))
    return torch.from_numpy(np.stack(crops)), torch.tensor(numbers)


def _crop(scene: Scene, mask: BoolArray, masked: bool) -> RgbArray:
    candidate = _candidate(mask)
    if not masked:
        candidate = Candidate(bbox=candidate.bbox)
    side = int(CONFIG["vision_cfg"]["image_size"])
    fill = mean_colour(open_clip.OPENAI_DATASET_MEAN)
    return masked_crop(scene.pixels, candidate, side, fill)


def _rough(rng: np.random.Generator, mask: BoolArray) -> BoolArray:
    grow = int(rng.integers(-1, 3))
    kernel = np.ones((3, 3), np.uint8)
    plain = mask.astype(np.uint8)
    changed = cv2.dilate(plain, kernel, iterations=grow) if grow > 0 else plain
    if grow < 0:
        changed = cv2.erode(plain, kernel)
    return np.asarray(changed > 0, np.bool_) if changed.any() else mask


def _blob(rng: np.random.Generator, taken: BoolArray) -> BoolArray | None:
    """A piece of background: an ellipse, as far as no object covers it."""
    height, width = taken.shape
    canvas = np.zeros(taken.shape, np.uint8)
    centre = (int(rng.integers(width)), int(rng.integers(height)))
    axes = (int(rng.integers(8, 60)), int(rng.integers(8, 60)))
    cv2.ellipse(canvas, centre, axes, float(rng.uniform(0, 180)), 0, 360, 1, cv2.FILLED)
    blob = np.asarray((canvas > 0) & ~taken, np.bool_)
    return blob if blob.sum() > 100 else None


def train(scenes: int, epochs: int, seed: int) -> Any:
    """Train with the softmax of each crop over all captions, in wordings that change."""
    torch.manual_seed(seed)
    crops, numbers = make_crops(scenes, seed)
    model: Any = open_clip.CLIP(**CONFIG)
    tokenizer = open_clip.SimpleTokenizer(context_length=CONFIG["text_cfg"]["context_length"])
    names = (*all_captions(), BACKGROUND)
    tokens = [tokenizer(wording) for wording in _wordings(names)]
    with torch.no_grad():
        # Unused tokens stay zero: the file compresses, and unknown words have no effect.
        used = torch.unique(torch.cat(tokens))
        kept = model.token_embedding.weight[used].clone()
        model.token_embedding.weight.zero_()
        model.token_embedding.weight[used] = kept
    batch_size = 256
    steps = epochs * (len(crops) // batch_size)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    mean = torch.tensor(open_clip.OPENAI_DATASET_MEAN).view(1, 3, 1, 1)
    std = torch.tensor(open_clip.OPENAI_DATASET_STD).view(1, 3, 1, 1)
    step, started = 0, time.monotonic()
    for epoch in range(epochs):
        right = total = 0
        order = torch.randperm(len(crops))
        for start in range(0, len(crops) - batch_size + 1, batch_size):
            picked = order[start : start + batch_size]
            images = (crops[picked].permute(0, 3, 1, 2).float() / 255 - mean) / std
            texts = model.encode_text(tokens[step % len(tokens)], normalize=True)
            logits = model.logit_scale.exp() * model.encode_image(images, normalize=True) @ texts.T
            loss = torch.nn.functional.cross_entropy(logits, numbers[picked])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                model.logit_scale.clamp_(max=4.6)  # a temperature of 1/100, as in CLIP
            step += 1
            right += int((logits.argmax(1) == numbers[picked]).sum())
            total += len(picked)
        print(
            f"epoch {epoch + 1}/{epochs}: right {right / total:.1%}, "
            f"{time.monotonic() - started:.0f} s",
            flush=True,
        )
    return model.eval()


def _wordings(names: Sequence[str]) -> list[list[str]]:
    """Every caption in four wordings."""
    bare = [name.removeprefix("an ").removeprefix("a ") for name in names]
    return [
        list(names),
        bare,
        [f"the {name}" for name in bare],
        [f"a photo of {name}" for name in names],
    ]


def save(model: Any, directory: Path) -> None:
    """Write the architecture and the weights, as float16."""
    directory.mkdir(parents=True, exist_ok=True)
    config = json.dumps(CONFIG, indent=2) + "\n"
    (directory / f"{ARCHITECTURE}.json").write_text(config, encoding="utf-8")
    weights = {
        name: value.half().contiguous() if value.is_floating_point() else value.contiguous()
        for name, value in model.state_dict().items()
        if name != "attn_mask"
    }
    path = directory / f"{ARCHITECTURE}.safetensors"
    save_file(weights, path)
    path.chmod(0o644)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the tiny OpenCLIP model of the tests.")
    parser.add_argument("--out", type=Path, required=True, help="directory of the result")
    parser.add_argument("--scenes", type=int, default=1500)
    parser.add_argument("--epochs", type=int, default=14)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    save(train(arguments.scenes, arguments.epochs, arguments.seed), arguments.out)


if __name__ == "__main__":
    main()
