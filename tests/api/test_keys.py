"""Who has a key is let in; nobody learns anything else."""

from __future__ import annotations

import hashlib
import hmac
import logging

import httpx
import pytest
import yaml
from pydantic import ValidationError

from serve_app.__main__ import main
from serve_app.connectors.article import article_router
from serve_app.core.limits import Limits
from serve_app.core.settings import ApiKey, GraphSettings, SecuritySettings
from serve_app.http.app import create_app
from serve_app.http.gate import GateMiddleware
from serve_app.http.request_info import PROBES, RequestInfo

from .asgi import Exchange, fine

KEYS = {"alice": "sam_alices-key", "bob": "sam_bobs-key"}


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


SECURITY = SecuritySettings(
    api_keys=tuple(ApiKey(name=name, sha256=sha256(key)) for name, key in KEYS.items())
)


async def passes(headers: dict[str, str], route: str = "/v1/segment") -> str | None:
    """The name under which a request is let in; None: it is not."""
    exchange = Exchange(headers=headers, info=RequestInfo(route=route))
    await exchange.run(GateMiddleware(fine, limits=Limits(), security=SECURITY))
    assert exchange.read == 0
    if exchange.status == 200:
        return exchange.info.key
    assert exchange.status == 401
    assert exchange.answered["www-authenticate"] == "Bearer"
    assert exchange.error["code"] == "unauthorized"
    assert exchange.info.error_code == "unauthorized"
    assert exchange.info.key == "-"
    return None


@pytest.mark.parametrize("name", KEYS)
async def test_a_key_is_known_in_either_header(name):
    key = KEYS[name]
    assert await passes({"authorization": f"Bearer {key}"}) == name
    assert await passes({"authorization": f"bearer  {key} "}) == name
    assert await passes({"x-api-key": key}) == name
    assert await passes({"x-api-key": key, "authorization": "Basic eDp5"}) == name


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer "},
        {"authorization": KEYS["alice"]},
        {"authorization": f"Basic {KEYS['alice']}"},
        {"authorization": f"Bearer {KEYS['alice']}x"},
        {"x-api-key": KEYS["alice"][:-1]},
        {"x-api-key": KEYS["alice"].upper()},
        {"x-api-key": sha256(KEYS["alice"])},
        {"x-api-key": "é" * 300},
        {"x-api-key": "alice"},
    ],
)
async def test_whatever_is_no_key_is_refused(headers, figures):
    assert await passes(headers) is None
    assert figures.refused("key") == 1


async def test_probes_need_none_and_the_path_of_a_probe_is_no_pass():
    for probe in PROBES:
        assert await passes({}, probe) == "-"
    for route in ("/metrics", "/docs", "/openapi.json", "unknown"):
        assert await passes({}, route) is None


async def test_all_keys_are_compared_in_constant_time(monkeypatch):
    compared = []
    real = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: compared.append(b) or real(a, b))
    assert await passes({"x-api-key": KEYS["alice"]}) == "alice"
    assert compared == [bytes.fromhex(key.sha256) for key in SECURITY.api_keys]


async def test_the_whole_interface_is_behind_the_keys(service, limits, caplog):
    async def metrics() -> bytes:
        return b"figures"

    app = create_app(
        service,
        limits,
        metrics=metrics,
        version="1",
        security=SECURITY,
        connectors=[article_router],
    )
    transport = httpx.ASGITransport(app)
    with caplog.at_level(logging.DEBUG):
        async with httpx.AsyncClient(transport=transport, base_url="http://sam") as client:
            pages = ("/metrics", "/docs", "/openapi.json", "/v1/models", "/nowhere")
            for path in (*pages, "/metrics/", "/healthz//", "//healthz", "/healthz/../v1/models"):
                assert (await client.get(path)).status_code == 401, path
            for path in PROBES:
                assert (await client.get(path)).status_code == 200, path
            body = {"image_id": "a", "text": "dog"}
            refused = await client.post("/v1/segment", json=body)
            assert refused.status_code == 401
            assert service.requests == []
            client.headers["authorization"] = f"Bearer {KEYS['bob']}"
            assert (await client.post("/v1/segment", json=body)).status_code == 200
            document = (await client.get("/openapi.json")).json()
    assert document["security"] == [{"bearer": []}, {"header": []}]
    assert document["paths"]["/healthz"]["get"]["security"] == []
    for key in KEYS.values():
        assert key not in caplog.text


async def test_without_keys_the_document_says_that_none_is_needed(client):
    document = (await client.get("/openapi.json")).json()
    assert {} in document["security"]
    schemes = document["components"]["securitySchemes"]
    assert schemes["bearer"]["scheme"] == "bearer"
    assert schemes["header"]["name"] == "x-api-key"


@pytest.mark.parametrize(
    "keys",
    [
        [{"name": "a", "sha256": "0" * 64}, {"name": "a", "sha256": "1" * 64}],
        [{"name": "a", "sha256": "0" * 64}, {"name": "b", "sha256": "0" * 64}],
        [{"name": "a", "sha256": "key in clear"}],
        [{"name": "a", "sha256": "A" * 64}],
        [{"name": "a b", "sha256": "0" * 64}],
        [{"name": "a", "sha256": "0" * 64, "requests_per_minute": 0}],
        [{"name": "a", "sha256": "0" * 64, "key": "x"}],
    ],
)
def test_odd_keys_refuse_the_configuration(keys):
    with pytest.raises(ValidationError):
        GraphSettings.model_validate({"security": {"api_keys": keys}})


async def test_the_command_makes_a_key_that_fits_its_entry(capsys):
    assert main(["key", "alice", "--requests-per-minute", "60", "--burst", "5"]) == 0
    text = capsys.readouterr().out
    key = next(line for line in text.splitlines() if line.startswith("sam_"))
    assert len(key) == 4 + 43  # 256 bits in base64
    settings = GraphSettings.model_validate(yaml.safe_load(text[text.index("security:") :]))
    (entry,) = settings.security.api_keys
    assert (entry.name, entry.requests_per_minute, entry.burst) == ("alice", 60, 5)
    exchange = Exchange(headers={"x-api-key": key}, info=RequestInfo())
    await exchange.run(GateMiddleware(fine, limits=Limits(), security=settings.security))
    assert (exchange.status, exchange.info.key) == (200, "alice")
    assert main(["key", "alice"]) == 0
    assert key not in capsys.readouterr().out
    assert main(["key", "no such: name"]) == 1


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org", ""])
def test_who_is_bound_beyond_loopback_without_keys_is_warned(host):
    warning = SecuritySettings().exposure_warning(host)
    assert warning is not None
    assert "security.api_keys" in warning
    assert SECURITY.exposure_warning(host) is None


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "[::1]", "localhost"])
def test_on_loopback_nobody_is_warned(host):
    assert SecuritySettings().exposure_warning(host) is None


def test_an_unknown_address_counts_as_reachable():
    assert "ingress.http_host" in str(SecuritySettings().exposure_warning(None))
    assert SECURITY.exposure_warning(None) is None
