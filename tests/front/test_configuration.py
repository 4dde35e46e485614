"""Settings are documented and cannot inject directives; errors are valid JSON and documented."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from serve_app.edge.haproxy import EdgeError
from serve_app.edge.settings import EdgeSettings, render

DOCUMENT = (Path(__file__).resolve().parents[2] / "docs" / "front.md").read_text("utf-8")
ALL_TEXTS: dict[str, Any] = {
    "bind": "[::]:8443",
    "backends": ["backend-1.example:8000"],
    "tls": {"certificate": "/etc/tls.pem", "redirect_from": "0.0.0.0:80"},
    "trusted_proxies": ["10.0.0.0/8"],
    "denied_paths": ["/metrics"],
}
"""A value for each setting that holds text."""


def rendered_errors() -> list[tuple[int, str]]:
    """Status and body of each error response in the rendered configuration."""
    text = render(EdgeSettings(), 1_000)
    found = re.findall(r"status (\d+) content-type application/json lf-string '(.*?)'", text)
    return sorted({(int(status), body) for status, body in found})


@pytest.mark.parametrize("name", EdgeSettings.model_fields)
def test_every_setting_is_documented_with_its_default(name: str) -> None:
    value = getattr(EdgeSettings(), name)
    if value is None or value == ():
        default = "none"
    elif isinstance(value, bool):
        default = str(value).lower()
    elif isinstance(value, tuple):
        default = ", ".join(f"`{v}`" if v.startswith("/") else v for v in value)
    else:
        default = f"{value:g}" if isinstance(value, float) else str(value)
    assert f"| `{name}` | {default} |" in DOCUMENT


def test_every_error_is_valid_json_and_documented() -> None:
    errors = rendered_errors()
    assert {status for status, _ in errors} == {
        400, 404, 405, 408, 411, 413, 429, 500, 502, 503, 504,
    }  # fmt: skip
    for status, body in errors:
        error = json.loads(body)["error"]
        assert error["request_id"] == "%[var(txn.request_id)]"
        assert not set(error["message"]) & set("%'\"\\"), error
        assert f"| {status} | `{error['code']}`" in DOCUMENT


def test_all_text_settings_are_known_to_this_test() -> None:
    """A new setting with text belongs into `ALL_TEXTS`, so that the next test covers it."""
    schema = EdgeSettings.model_json_schema()
    properties = schema["properties"] | schema["$defs"]["TlsSettings"]["properties"]
    with_text = {name for name, field in properties.items() if '"string"' in json.dumps(field)}
    assert with_text == (ALL_TEXTS.keys() | ALL_TEXTS["tls"].keys()) - {"tls"}


@pytest.mark.parametrize("name", [*sorted(ALL_TEXTS.keys() - {"tls"}), *ALL_TEXTS["tls"]])
def test_no_setting_can_hold_a_character_that_has_a_meaning_for_haproxy(name: str) -> None:
    EdgeSettings.model_validate(ALL_TEXTS)
    for special in " \t\n\r\0\v\f#'\"\\{}$%,;()`&|<>*\u00a0\u2028":
        for at in (0, 2, None):
            settings = {**ALL_TEXTS, "tls": dict(ALL_TEXTS["tls"])}
            owner = settings["tls"] if name in settings["tls"] else settings
            values = owner[name] if isinstance(owner[name], list) else [owner[name]]
            text = values[0] + special if at is None else values[0][:at] + special + values[0][at:]
            owner[name] = [text] if isinstance(owner[name], list) else text
            with pytest.raises(ValidationError):
                EdgeSettings.model_validate(settings)


def test_a_service_limit_that_haproxy_cannot_enforce_is_an_error() -> None:
    assert render(EdgeSettings(), 10**9 - 1)
    with pytest.raises(EdgeError, match="max_body_bytes is 1000000000"):
        render(EdgeSettings(), 10**9)


def test_renamed_settings_work_with_a_warning(
    our_log: Callable[[], list[logging.LogRecord]],
) -> None:
    settings = EdgeSettings.model_validate({"answer_timeout_s": 7})
    assert settings.response_timeout_s == 7
    (record,) = our_log()
    assert "answer_timeout_s was renamed: use response_timeout_s" in record.getMessage()


def test_a_setting_under_both_its_old_and_its_new_name_is_an_error() -> None:
    with pytest.raises(ValidationError, match="former name of inactivity_timeout_s"):
        EdgeSettings.model_validate({"silence_timeout_s": 1, "inactivity_timeout_s": 2})
