"""Base of all settings models: rejects unknown keys, accepts former names of keys."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, model_validator

log = logging.getLogger(__name__)

VARIANT_NAME = r"^[a-z0-9][a-z0-9_.-]{0,31}$"


class Strict(BaseModel):
    """A model that rejects unknown keys.

    Attributes:
        renamed_keys: former names of keys, each with its present name.  A former name is accepted
            with a warning for one version; remove the entry in the next one.
    """

    # Validation errors must not contain values, which may be passwords.
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    renamed_keys: ClassVar[Mapping[str, str]] = {}

    @model_validator(mode="before")
    @classmethod
    def _rename_keys(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        found = dict(values)
        for old in cls.renamed_keys.keys() & found.keys():
            new = cls.renamed_keys[old]
            if new in found:
                raise ValueError(f"{old} is the former name of {new}: give only {new}")
            found[new] = found.pop(old)
            log.warning(
                "the settings key %s was renamed: use %s, the next version rejects %s",
                old,
                new,
                old,
            )
        return found
