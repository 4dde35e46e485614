"""Descriptions of model families for the rest of the project.

Each family describes itself in ``family.py`` of its folder and is listed in
`serve_app.models.families`; other code does not depend on a model's family.  Processes that load
no model read these descriptions, so they import libraries such as torch only inside functions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from serve_app.core.geometry import ResizeMode
from serve_app.core.ports import DecoderEngine, DetectorEngine, EncoderEngine, TextScoringEngine
from serve_app.core.settings import Compute, EngineName, TextSettings


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


@dataclass(frozen=True, kw_only=True)
class Segmentation:
    """A family of models that segment images by prompts.

    Attributes:
        engines: those that can run the encoder, the default first, from an architecture and
            whether the encoder is quantized.
        resize_mode: how images become the square input.
        embedding_shapes: shapes of an embedding's tensors by name; float32.
        load_encoder: onto its device, for an engine.
        load_decoder: prompt encoder and mask decoder onto their device.
        warm_up_sizes: batch sizes that an encoder should run once before its first request, from
            its engine and the largest batch in use.
        dtypes: those its engines compute in; empty: all.
        memory_fraction: whether its engines can limit their share of a GPU's memory.
    """

    engines: Callable[[str | None, bool], tuple[EngineName, ...]]
    resize_mode: ResizeMode
    embedding_shapes: Mapping[str, tuple[int, ...]]
    load_encoder: Callable[[Weights, EngineName, Compute], EncoderEngine]
    load_decoder: Callable[[Weights, Compute], DecoderEngine]
    warm_up_sizes: Callable[[EngineName, int], tuple[int, ...]] = lambda engine, most: (1,)
    dtypes: frozenset[str] = frozenset()
    memory_fraction: bool = True

    def check_compute(self, compute: Compute) -> None:
        """Raise ValueError if the family's engines do not support these settings."""
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
        """Raise ValueError, with the valid values, if a registry entry's values are not valid."""
        if self.architectures and architecture not in self.architectures:
            allowed = f"{', '.join(self.architectures[:-1])} or {self.architectures[-1]}"
            raise ValueError(f"family {self.name} needs the architecture {allowed}")
        if self.needs_architecture and not architecture:
            raise ValueError(f"family {self.name} needs an architecture")
        if self.file_keys is None:
            if not file_keys:
                raise ValueError(f"family {self.name} needs files")
            return
        quantized = bool(self.quantized_keys & file_keys)
        keys = self.file_keys | self.quantized_keys if quantized else self.file_keys
        if keys != file_keys:
            raise ValueError(f"family {self.name} takes the files: {', '.join(sorted(keys))}")
