"""What the tools know of each model family, besides its description in `serve_app.engines`.

As there, libraries such as torch are imported only inside the functions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray

from serve_app.core.types import BoolArray, Prompt, RgbArray
from serve_app.engines.family import Weights

Tensors = Mapping[str, NDArray[Any]]


class ReferenceModel(Protocol):
    """Another implementation of a segmentation model, with which a variant is compared."""

    name: str

    def predict(
        self, pixels: RgbArray, prompts: Sequence[Prompt]
    ) -> tuple[Tensors, list[BoolArray]]:
        """The embedding's tensors, and ``(M, H, W)`` masks for each prompt."""
        ...


@dataclass(frozen=True, kw_only=True)
class FamilyTools:
    """How models of a segmentation family are compared, timed and quantized.

    Attributes:
        load_reference: the model by its authors' library or a plain runtime, on a torch device.
        load_original: the same as an object of its authors' library (`segment_anything`); None:
            there is none.
        libraries: modules that the family's loaders import, so that a loading time can exclude
            imports.
        quantizable: architectures of which ``serve_app quantise`` can make an int8 encoder.
    """

    load_reference: Callable[[Weights, str], ReferenceModel]
    load_original: Callable[[Weights, str], Any] | None = None
    libraries: tuple[str, ...]
    quantizable: frozenset[str | None] = frozenset()


def _load_sam(weights: Weights, device: str) -> Any:
    from serve_app.engines.sam.model import load_sam

    return load_sam(str(weights.architecture), weights.paths["checkpoint"]).to(device)


def _sam_reference(weights: Weights, device: str) -> ReferenceModel:
    from serve_tools.references.models import SamReference

    return SamReference(_load_sam(weights, device))


def _sam2_reference(weights: Weights, device: str) -> ReferenceModel:
    from serve_tools.references.models import Sam2Reference

    return Sam2Reference(weights.paths["encoder"], weights.paths["decoder"])


_TOOLS = {
    "sam": FamilyTools(
        load_reference=_sam_reference,
        load_original=_load_sam,
        libraries=("serve_app.engines.sam.encoder", "serve_app.engines.sam.decoder"),
        quantizable=frozenset({"vit_t"}),
    ),
    "sam2_onnx": FamilyTools(
        load_reference=_sam2_reference,
        libraries=("serve_app.engines.devices", "serve_app.engines.sam2.onnx"),
    ),
}


def family_tools(family: str) -> FamilyTools:
    """The tools of a family of segmentation models.

    Raises:
        ValueError: there are none.
    """
    if family not in _TOOLS:
        raise ValueError(
            f"no reference of the family {family} in serve_tools/references/families.py"
        )
    return _TOOLS[family]
