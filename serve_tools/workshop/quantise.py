"""Makes an int8 encoder of a registry model: calibrates, compares with the original, stores.

Post-training quantisation by NNCF: weights by channel, activations by their ranges on the
calibration images, with the transformer scheme (SmoothQuant) and bias correction.  The mask
decoder is not quantised.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np

from serve_app.core.errors import SamServeError
from serve_app.core.host import this_host
from serve_app.core.limits import Limits
from serve_app.core.settings import Compute
from serve_app.core.types import RgbArray
from serve_app.engines.openvino import ov, telemetry_hidden
from serve_app.engines.sam.encoder_openvino import OpenVinoEncoder, tiny_vit_from
from serve_app.engines.sam.frame import model_input
from serve_app.images.decode import decode_image
from serve_app.models.factory import ModelSource
from serve_app.models.quantized import MANIFEST, Figures, Manifest
from serve_app.models.registry import ModelSpec, WeightFile
from serve_tools.profiling.parity import least_cosine, mean_overlap
from serve_tools.profiling.protocol import Effort
from serve_tools.profiling.quality import Prediction, mean_iou, predict_sample, records_of
from serve_tools.profiling.samples import load_samples
from serve_tools.profiling.timing import interleaved
from serve_tools.references.families import family_tools
from serve_tools.synthetic.cells import draw_cells
from serve_tools.synthetic.scenes import draw_scene

_GRAPH = "encoder.xml"
_WEIGHTS = "encoder.bin"
_DEFAULT = "photographs of scikit-image, synthetic shapes and cells"
_SEED = 77_000_000  # apart from the scenes that the result is evaluated on
_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"})

Say = Callable[[str], None]


class QuantiseError(Exception):
    """The model cannot be made; the text is the reason."""


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """Upright ``(H, W, 3) uint8`` images like those of later requests.

    Attributes:
        name: description of the images.
    """

    name: str
    images: Sequence[RgbArray]


def folder_images(folder: Path, count: int) -> Calibration:
    """At most ``count`` images of a folder, evenly from all.

    Raises:
        QuantiseError: no image can be read.
    """
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in _SUFFIXES)
    chosen = np.unique(np.linspace(0, len(paths) - 1, min(count, len(paths))).astype(int))
    images = []
    for path in (paths[i] for i in chosen):
        try:
            images.append(decode_image(path.read_bytes(), Limits()))
        except (OSError, SamServeError):
            continue
    if not images:
        raise QuantiseError("the folder has no image that can be read")
    return Calibration(f"{len(images)} of {len(paths)} images of a folder", images)


def default_images(count: int) -> Calibration:
    """Photographs of scikit-image, and alternating synthetic shapes and cells."""
    import skimage

    folder = Path(skimage.__file__).parent / "data"
    photos = [
        decode_image((folder / name).read_bytes(), Limits())
        for name in ("astronaut.png", "chelsea.png", "coffee.png")
        if (folder / name).is_file()
    ]

    def drawn() -> Iterator[RgbArray]:
        for seed in range(_SEED, _SEED + count):
            yield draw_cells(seed).pixels if seed % 2 else draw_scene(seed).pixels

    return Calibration(_DEFAULT, [*photos, *drawn()][:count])


def quantise(
    source: ModelSource, original: str, name: str, calibration: Calibration,
    effort: Effort, threads: int, out: Path, say: Say,
) -> Manifest:  # fmt: skip
    """Make an int8 model and compare it with its original.

    Args:
        original: registry name; of the architecture ``vit_t``.
        name: the new model's.
        effort: on which annotated images the two are compared, and how often they are timed.
        threads: CPU threads of the passes that are timed.
        out: the folder to be written, new or of an earlier model, which is replaced whole.

    Raises:
        QuantiseError: of another architecture, or ``out`` holds other things.
    """
    if out.exists() and not (out / MANIFEST).is_file():
        raise QuantiseError(
            "the folder to write to exists and contains no model made by this command"
        )
    spec = source.spec(original)
    if spec.quantized or spec.architecture not in family_tools(spec.family).quantizable:
        raise QuantiseError(f"there is no way to quantize {original}")
    checkpoint = source.weights(original).paths["checkpoint"]
    graph = tiny_vit_from(checkpoint)
    say(f"calibrating on {len(calibration.images)} images ...")
    made = quantised_graph(graph, calibration.images)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".making-", dir=out.parent) as scratch:
        folder = Path(scratch) / name
        folder.mkdir()
        ov.save_model(made, folder / _GRAPH, compress_to_fp16=False)
        shutil.copyfile(checkpoint, folder / spec.files["checkpoint"].name)
        say("comparing with the original ...")
        compute = Compute(threads=threads)
        encoders = OpenVinoEncoder(graph, compute), OpenVinoEncoder(folder / _GRAPH, compute)
        figures = _compare(source, original, encoders, effort, compute)
        manifest = Manifest(
            spec=_spec(spec, folder, original),
            original=original,
            original_weights=spec.weights_hash,
            calibration=calibration.name,
            calibration_images=len(calibration.images),
            figures=figures,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            cpu=this_host(gpus=False).cpu,
            versions={package: version(package) for package in ("openvino", "nncf")},
        )
        (folder / MANIFEST).write_text(manifest.model_dump_json(indent=2), encoding="utf-8")
        if out.exists():  # running replicas keep its files open
            out.replace(Path(scratch) / "old")
        folder.replace(out)
    return manifest


def quantised_graph(graph: ov.Model, images: Sequence[RgbArray]) -> ov.Model:
    """A graph of one image input with int8 weights and activations."""
    with telemetry_hidden():
        import nncf

    made: ov.Model = nncf.quantize(
        graph,
        nncf.Dataset(list(images), partial(model_input, resize_mode="pad")),
        preset=nncf.QuantizationPreset.MIXED,
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(images),
    )
    return made


def _spec(original: ModelSpec, folder: Path, name: str) -> ModelSpec:
    """The registry entry of the model in a folder."""
    files = {"checkpoint": original.files["checkpoint"].model_copy(update={"sources": ()})}
    for key, file in (("encoder", _GRAPH), ("encoder_weights", _WEIGHTS)):
        files[key] = _pinned(folder / file)
    return ModelSpec(
        family=original.family,
        architecture=original.architecture,
        title=f"{original.title}, int8 encoder",
        license=original.license,
        origin=f"{name} of {original.origin}; quantised on this machine",
        preprocessing=original.preprocessing,
        engines=("openvino",),
        files=files,
    )


def _pinned(path: Path) -> WeightFile:
    import hashlib

    with path.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    return WeightFile(name=path.name, size=path.stat().st_size, sha256=digest)


def _compare(
    source: ModelSource, original: str, encoders: tuple[OpenVinoEncoder, OpenVinoEncoder],
    effort: Effort, compute: Compute,
) -> Figures:  # fmt: skip
    """Compare both encoders, with the original's decoder, on the same images."""
    decoder = source.load_decoder(original, compute)
    samples = load_samples(effort, Limits())
    predictions: tuple[list[Prediction], list[Prediction]] = ([], [])
    for sample in samples:
        if sample.objects:
            for encoder, predicted in zip(encoders, predictions, strict=True):
                predicted.append(predict_sample(encoder, decoder, sample, effort.forms))
    if not predictions[0]:
        raise QuantiseError("none of the annotated images can be used")
    cosines, overlaps = [], []
    for first, second in zip(*predictions, strict=True):
        cosines.append(least_cosine(first.embedding.tensors, second.embedding.tensors) or 0.0)
        for masks, others in zip(first.masks, second.masks, strict=True):
            pair = [mask.array for mask in masks], [mask.array for mask in others]
            overlaps.append(mean_overlap(*pair))
    quality = [
        mean_iou([r for one in predicted for r in records_of("", one)], effort.seed)
        for predicted in predictions
    ]
    means = [float(np.mean([share.value for share in kinds.values()])) for kinds in quality]
    photo = predictions[0][0].pixels
    times = interleaved(
        {i: partial(encoder.encode_batch, [photo]) for i, encoder in enumerate(encoders)},
        repeats=effort.repeats, budget_s=effort.budget_s, seed=effort.seed,
    )  # fmt: skip
    ratios = [a / b for a, b in zip(times[0], times[1], strict=False)]
    return Figures(
        embedding_cosine=float(np.mean(cosines)),
        mask_iou=float(np.mean(overlaps)),
        mean_iou=means[1],
        original_mean_iou=means[0],
        encode_ms=float(np.median(times[1])),
        original_encode_ms=float(np.median(times[0])),
        speedup=float(np.median(ratios)),
        images=len(cosines),
        objects=sum(len(one.sample.objects) for one in predictions[0]),
        data=samples.name,
    )
