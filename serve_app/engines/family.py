"""Descriptions of model families for the rest of the project.

Each family describes itself in ``family.py`` of its folder and is listed in
`serve_app.models.families`.  Code outside the folder must not depend on a model's family.
These descriptions are read by processes that load no model, so they import libraries such as
torch only inside their functions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from serve_app.core.geometry import ResizeMode
from serve_app.core.ports import DecoderEngine, DetectorEngine, EncoderEngine, TextScoringEngine
from serve_app.core.settings import Compute, EngineName, TextSettings
from serve_app.core.types import BoolArray, Prompt, RgbArray

Tensors = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Weights:
    """A registry model with its verified files, the input of its family's loaders.

    Attributes:
        architecture: from the registry; None if the family has only one.
        hash: SHA-256 over the hashes of the files.
        paths: the files by key.
        graphs: folder for graphs that are derived from the weights.
    """

    architecture: str | None
    hash: str
    paths: Mapping[str, Path]
    graphs: Path


class ReferenceModel(Protocol):
    """Another implementation of a segmentation model, with which a variant is compared."""

    name: str

    def predict(
        self, pixels: RgbArray, prompts: Sequence[Prompt]
    ) -> tuple[Tensors, list[BoolArray]]:
        """The embedding's tensors, and ``(M, H, W)`` masks for each prompt."""
        ...


def _one_image(engine: EngineName, most: int) -> tuple[int, ...]:
    return (1,)


@dataclass(frozen=True, kw_only=True)
class Segmentation:
    """A family of models that segment images by prompts.

    Attributes:
        engines: from an architecture, and whether its encoder is quantized, to the engines that
            can run the encoder, the default first.
        resize_mode: how images become the square input.
        embedding_shapes: shapes of an embedding's tensors by name; float32.
        load_encoder: onto its device, for an engine.
        load_decoder: prompt encoder and mask decoder onto their device.
        load_reference: the model by its authors' library or a plain runtime, on a torch device.
        load_original: the same as an object of its authors' library (`segment_anything`), for
            tools that compare with it; None: there is none.
        libraries: modules that both loaders import, so that a loading time can exclude imports.
        warm_up_sizes: from an engine and the largest batch in use to the batch sizes that an
            encoder should run once before its first request.
        dtypes: those its engines compute in; empty: all.
        memory_fraction: whether its engines can limit their share of a GPU's memory.
        can_quantize: whether ``serve_app quantise`` can make an int8 encoder of an architecture.
    """

    engines: Callable[[str | None, bool], tuple[EngineName, ...]]
    resize_mode: ResizeMode
    embedding_shapes: Mapping[str, tuple[int, ...]]
    load_encoder: Callable[[Weights, EngineName, Compute], EncoderEngine]
    load_decoder: Callable[[Weights, Compute], DecoderEngine]
    load_reference: Callable[[Weights, str], ReferenceModel]
    load_original: Callable[[Weights, str], Any] | None = None
    libraries: tuple[str, ...] = ()
    warm_up_sizes: Callable[[EngineName, int], tuple[int, ...]] = _one_image
    dtypes: frozenset[str] = frozenset()
    memory_fraction: bool = True
    can_quantize: Callable[[str | None], bool] = lambda architecture: False

    def check_compute(self, compute: Compute) -> None:
        """Check the settings of an encoder or decoder.

        Raises:
            ValueError: the family's engines do not support them.
        """
        if self.dtypes and compute.dtype not in self.dtypes:
            raise ValueError(f"it runs in {' or '.join(sorted(self.dtypes))}")
        if compute.memory_fraction is not None and not self.memory_fraction:
            raise ValueError("it cannot limit its GPU memory: memory_fraction must be null")


@dataclass(frozen=True, kw_only=True)
class TextScoring:
    """A family of models that score image regions for texts.

    Attributes:
        engine: the value of ``text.engine`` that selects it.
        model: the registry name of the weights that the settings select; None: the settings name
            weights that are not in the registry.
        load: from the weights (None as for ``model``), the settings, and whether fetching is off.
    """

    engine: str
    model: Callable[[TextSettings], str | None]
    load: Callable[[Weights | None, TextSettings, bool], TextScoringEngine]


@dataclass(frozen=True, kw_only=True)
class Family:
    """A model family: the rules for its registry entries, and how to load its engines.

    Attributes:
        name: value of ``family`` in the registry.
        file_keys: keys of the files of a model; None: any, but at least one.
        quantized_keys: further keys of a model with a quantized encoder; empty: the family has no
            such models.
        architectures: allowed values of ``architecture``; empty: any or none.
        needs_architecture: ``architecture`` may not be missing.
        segmentation, load_detector, text: what its models do; exactly one is given.
            ``load_detector`` takes the weights and the number of CPU threads.
    """

    name: str
    file_keys: frozenset[str] | None
    quantized_keys: frozenset[str] = frozenset()
    architectures: tuple[str, ...] = ()
    needs_architecture: bool = False
    segmentation: Segmentation | None = None
    load_detector: Callable[[Weights, int], DetectorEngine] | None = None
    text: TextScoring | None = None

    def check(self, architecture: str | None, file_keys: set[str]) -> None:
        """Check a registry entry.

        Raises:
            ValueError: invalid architecture or files; the message lists the valid ones.
        """
        if self.architectures and architecture not in self.architectures:
            allowed = f"{', '.join(self.architectures[:-1])} or {self.architectures[-1]}"
            raise ValueError(f"family {self.name} needs the architecture {allowed}")
        if self.needs_architecture and not architecture:
            raise ValueError(f"family {self.name} needs an architecture")
        if self.file_keys is None:
            if not file_keys:
                raise ValueError(f"family {self.name} needs files")
            return
        keys = self.file_keys
        if self.is_quantized(file_keys):
            keys |= self.quantized_keys
        if keys != file_keys:
            raise ValueError(f"family {self.name} takes the files: {', '.join(sorted(keys))}")

    def is_quantized(self, file_keys: set[str]) -> bool:
        """Whether a model with these files has a quantized encoder."""
        return bool(self.quantized_keys & file_keys)

    def encoder_engines(self, architecture: str | None, quantized: bool) -> tuple[EngineName, ...]:
        """Engines that can run a model's encoder, the default first; none if it has no encoder."""
        if self.segmentation is None:
            return ()
        return self.segmentation.engines(architecture, quantized)
