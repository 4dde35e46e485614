"""``quantise``: make and check an int8 version of a model's encoder."""

from __future__ import annotations

import argparse
from pathlib import Path

from serve_app.cli import CommandError, log, positive

EPILOG = """\
Variants of the configuration that use the new model are deployed from the next start on, unless its
figures miss the limits under `quantized` in the configuration.

exit status: 0 made; 1 not made, or made but outside the configuration's limits
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.description = (
        "Post-training int8 quantisation of an image encoder for CPUs, calibrated on "
        "your images and compared with the original: embedding cosine, mask IoU, mean IoU on "
        "annotated images, speed."
    )
    parser.epilog = EPILOG
    add = parser.add_argument
    add("--model", default="vit_t", metavar="NAME", help="the original (default: %(default)s)")
    add(
        "--images",
        type=Path,
        metavar="DIR",
        help="to calibrate on (default: built-in images)",
    )
    add(
        "--calibration", type=positive, default=32, metavar="N",
        help="at most N images (default: %(default)s)",
    )  # fmt: skip
    add(
        "--annotations",
        type=Path,
        metavar="FILE",
        help="COCO instances to compare on (default: synthetic images)",
    )
    add("--annotated-images", type=Path, metavar="DIR", help="their images (default: --images)")
    add("--limit-images", type=positive, metavar="N", help="compare on at most N images")
    add(
        "--threads",
        type=positive,
        default=2,
        metavar="N",
        help="of timed passes (default: %(default)s)",
    )
    add("--out", type=Path, metavar="DIR", help="default: in the weights folder, where graphs look")
    add("--config", type=Path, metavar="FILE", help="Serve config (default: configs/local.yaml)")


def run(args: argparse.Namespace) -> int:
    """Make, check and write the model; 1 if it misses the configuration's limits."""
    from serve_app.cli.configuration import load_settings
    from serve_app.core.errors import SamServeError
    from serve_app.models.factory import ModelSource
    from serve_app.models.quantized import refusal
    from serve_app.models.registry import RegistryError
    from serve_tools.evaluation.annotations import EvaluationError
    from serve_tools.profiling.protocol import Effort
    from serve_tools.workshop.quantise import (
        QuantiseError,
        default_images,
        folder_images,
        quantise,
    )

    if args.annotations is not None and (args.annotated_images or args.images) is None:
        raise CommandError("--annotations needs --annotated-images or --images")
    settings = load_settings(args.config)[0]
    source = ModelSource.of(settings)
    name = f"{args.model}_int8"
    out = args.out or source.store.root / name
    images = args.annotated_images or args.images
    effort = Effort(
        images_dir=None if args.annotations is None else str(images.resolve()),
        annotations=None if args.annotations is None else str(args.annotations.resolve()),
        images=args.limit_images or 12,
        forms=("box-1", "point-3"),
        repeats=9,
    )
    try:
        calibration = (
            default_images(args.calibration)
            if args.images is None
            else folder_images(args.images, args.calibration)
        )
        manifest = quantise(source, args.model, name, calibration, effort, args.threads, out, log)
    except (QuantiseError, RegistryError, EvaluationError, SamServeError) as exc:
        raise CommandError(str(exc)) from exc
    except OSError as exc:
        raise CommandError(f"{out} cannot be written, or a file cannot be read") from exc
    figures = manifest.figures
    print(
        f"{name}: {figures.speedup:.2f} times as fast as {args.model} "
        f"({figures.encode_ms:.0f} ms, was {figures.original_encode_ms:.0f} ms, per image)\n"
        f"embedding cosine {figures.embedding_cosine:.4f}, mask IoU {figures.mask_iou:.4f}\n"
        f"mean IoU {figures.mean_iou:.4f}, was {figures.original_mean_iou:.4f} "
        f"(loss {100 * figures.iou_loss:+.2f} points) on {figures.objects} objects "
        f"in {figures.images} images: {figures.data}\n"
        f"written to {out}"
    )
    reason = refusal(name, {name: manifest}, source.registry, settings.quantized)
    if reason is not None:
        log(f"warning: {reason}")
    return 0 if reason is None else 1
