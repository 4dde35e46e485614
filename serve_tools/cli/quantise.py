"""``python -m serve_app quantise``: an int8 version of a model's encoder, made and checked."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from serve_app.cli import CommandError, positive

EPILOG = """\
Variants of the configuration whose model is the new one are deployed from the next start on,
unless its figures miss what `quantized` of the configuration asks for.

exit status: 0 made; 1 not made, or made but refused by the configuration
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the program's own."""
    parser = subparsers.add_parser(
        "quantise",
        help="make an int8 version of a model's encoder",
        description="Post-training int8 quantisation of an image encoder for CPUs, calibrated on "
        "images of yours and held against the original: embedding cosine, mask IoU, mean IoU on "
        "annotated images, speed.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model", default="vit_t", metavar="NAME", help="the original (default: %(default)s)")
    add("--images", type=Path, metavar="DIR", help="to calibrate on (default: photos and drawings)")
    add(
        "--calibration", type=positive, default=32, metavar="N",
        help="at most N images (default: %(default)s)",
    )  # fmt: skip
    add(
        "--annotations",
        type=Path,
        metavar="FILE",
        help="COCO instances to compare on (default: drawings)",
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
    add("--out", type=Path, metavar="DIR", help="default: beside the weights, where graphs look")
    add("--config", type=Path, metavar="FILE", help="Serve config (default: configs/local.yaml)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Make, check and write the model; 1 if the configuration would refuse it."""
    from serve_app.cli.configuration import load_settings
    from serve_app.core.errors import SamServeError
    from serve_app.models.factory import ModelSource
    from serve_app.models.quantized import refusal
    from serve_app.models.registry import RegistryError
    from serve_tools.evaluation.annotations import EvaluationError
    from serve_tools.profiling.protocol import Effort
    from serve_tools.workshop.quantise import (
        QuantiseError,
        folder_images,
        quantise,
        usual_images,
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
            usual_images(args.calibration)
            if args.images is None
            else folder_images(args.images, args.calibration)
        )
        manifest = quantise(source, args.model, name, calibration, effort, args.threads, out, _say)
    except (QuantiseError, RegistryError, EvaluationError, SamServeError) as exc:
        raise CommandError(str(exc)) from exc
    except OSError as exc:
        raise CommandError(f"{out} cannot be written, or a file cannot be read") from exc
    figures = manifest.figures
    print(
        f"{name}: {figures.speedup:.2f} times as fast as {args.model} "
        f"({figures.encode_ms:.0f} against {figures.original_encode_ms:.0f} ms an image)\n"
        f"embedding cosine {figures.embedding_cosine:.4f}, mask IoU {figures.mask_iou:.4f}\n"
        f"mean IoU {figures.mean_iou:.4f} against {figures.original_mean_iou:.4f} "
        f"(loss {100 * figures.iou_loss:+.2f} points) on {figures.objects} objects "
        f"in {figures.images} images: {figures.data}\n"
        f"written to {out}"
    )
    reason = refusal(name, {name: manifest}, source.registry, settings.quantized)
    if reason is not None:
        print(f"warning: {reason}", file=sys.stderr)
    return 0 if reason is None else 1


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
