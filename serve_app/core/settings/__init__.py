"""The argument of the graph builders, validated: an unknown or invalid setting is an error.

``configs/*.yaml`` have these values under ``args``.  Devices, dtypes, threads and memory shares
are configured, not detected.
"""

from serve_app.core.settings.base import VARIANT_NAME, Strict
from serve_app.core.settings.graph import GraphSettings
from serve_app.core.settings.replicas import (
    Batching,
    Compute,
    DecoderSettings,
    EncoderSettings,
    EngineName,
    LabelsSettings,
    OpenClipSettings,
    ProposalsSettings,
    Replicas,
    TextSettings,
    VariantSettings,
)
from serve_app.core.settings.service import (
    ApiKey,
    CacheSettings,
    IngressSettings,
    MeasurementsSettings,
    QuantizedSettings,
    Rate,
    RouterSettings,
    ScalingSettings,
    SecuritySettings,
)

__all__ = [
    "VARIANT_NAME",
    "ApiKey",
    "Batching",
    "CacheSettings",
    "Compute",
    "DecoderSettings",
    "EncoderSettings",
    "EngineName",
    "GraphSettings",
    "IngressSettings",
    "LabelsSettings",
    "MeasurementsSettings",
    "OpenClipSettings",
    "ProposalsSettings",
    "QuantizedSettings",
    "Rate",
    "Replicas",
    "RouterSettings",
    "ScalingSettings",
    "SecuritySettings",
    "Strict",
    "TextSettings",
    "VariantSettings",
]
