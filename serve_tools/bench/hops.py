"""Section f: where the time of a repeated prompt goes, from the caller to the model and back.

Requests for masks on an image that the server has cached alternate with the same prompt decoded by
the engine in this process: never concurrently, since both use the same cores.

    python -m serve_tools.bench.hops http://127.0.0.1:8000
"""

from __future__ import annotations

import argparse
import http.client
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import numpy as np
import orjson

from serve_tools.bench.photos import Photo, load_photos
from serve_tools.bench.rows import Row

Click = tuple[float, float]
Decode = Callable[[int], None]
"""Decodes a number of prompts in one pass, in this process."""

BARE = "bare decoder call"
HTTP = "HTTP"
OVER = "HTTP over the bare call"
PARTS: Mapping[str, str] = {
    "front": "connection, proxy and the caller itself",
    "ingress": "in the ingress: reading, checking, routing, writing",
    "handle": "between the ingress and the decoder's replica",
    "queue": "in the decoder's replica, but not in a pass",
    "model": "in the model's passes",
}
"""Parts of a request's time, and their meaning."""

_PART_UNIT = "ms of it"
_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class HopsEffort:
    """How much is measured.

    Attributes:
        rounds: in each, the bare call and the server alternate at each concurrency.
        calls: of each in a round, for each caller.
        callers: concurrencies.
    """

    rounds: int = 5
    calls: int = 10
    callers: tuple[int, ...] = (1, 16)


def run(
    url: str,
    decode: Decode,
    photo: Photo,
    click: Click | None = None,
    *,
    variant: str = "fast",
    effort: HopsEffort | None = None,
) -> list[Row]:
    """Rows for each concurrency: whole time, bare call, difference, and the parts.

    Args:
        url: of a running server; the photo is sent to it.
        decode: of the same variant and photo, such as `bare_decoder` gives.
        click: ``(x, y)`` in pixels; None: the photo's centre.

    Raises:
        httpx.HTTPError: the server does not embed the photo.
        RuntimeError: it rejects a prompt.
    """
    effort = effort or HopsEffort()
    x, y = click or (photo.size[0] / 2, photo.size[1] / 2)
    body = orjson.dumps(
        {
            "image_id": _known(url, photo, variant),
            "point_coords": [[x, y]],
            "point_labels": [1],
            "variant": variant,
        }
    )
    rows: list[Row] = []
    for callers in effort.callers:
        _drive(url, body, callers, 2)
        _bare(decode, callers, 2)
        bare: list[list[float]] = []
        requests: list[list[dict[str, float]]] = []
        for _ in range(effort.rounds):
            bare.append(_bare(decode, callers, effort.calls))
            requests.append(_drive(url, body, callers, effort.calls))
        rows += _rows(callers, bare, requests)
    return rows


def parts_of(whole_ms: float, stages: Mapping[str, float]) -> dict[str, float]:
    """One request's time by `PARTS`, from the ``timings_ms`` of its response."""
    decoding = stages["decode_masks"]
    return {
        "front": whole_ms - stages["total"],
        "ingress": stages["total"] - stages["predict"],
        "handle": stages["predict"] - stages["embed"] - decoding,
        "queue": decoding - stages["model"],
        "model": stages["model"],
    }


def bare_decoder(photo: Photo, click: Click | None, config: Path | None, variant: str) -> Decode:
    """The engine of a configuration's variant, loaded here, with the photo's embedding."""
    from serve_app.cli.configuration import load_settings
    from serve_app.core.inference import DecodeJob, DecodeOptions
    from serve_app.core.types import Prompt
    from serve_app.models.factory import ModelSource

    settings = load_settings(config)[0]
    described = settings.variants[variant]
    source = ModelSource.of(settings)
    encoder = source.load_encoder(described.model, described.encoder_compute)
    (embedding,) = encoder.encode_batch([photo.pixels])
    engine = source.load_decoder(described.model, described.decoder.compute)
    x, y = click or (photo.size[0] / 2, photo.size[1] / 2)
    prompt = Prompt(point_coords=np.array([[x, y]]), point_labels=np.array([1]))
    job = DecodeJob(embedding, prompt, DecodeOptions())

    def decode(prompts: int) -> None:
        engine.decode_batch([job] * prompts)

    return decode


def _known(url: str, photo: Photo, variant: str) -> str:
    response = httpx.post(
        f"{url}/v1/embed",
        files={"file": photo.jpeg},
        data={"variant": variant},
        timeout=_TIMEOUT_S,
        trust_env=False,
    )
    response.raise_for_status()
    return str(response.json()["image_id"])


def _bare(decode: Decode, prompts: int, calls: int) -> list[float]:
    """Milliseconds of each call of ``prompts`` together."""
    taken = []
    for _ in range(calls):
        started = time.perf_counter()
        decode(prompts)
        taken.append((time.perf_counter() - started) * 1e3)
    return taken


def _drive(url: str, body: bytes, callers: int, calls: int) -> list[dict[str, float]]:
    """Concurrent callers, ``calls`` requests each; total time and parts of each request."""
    with ThreadPoolExecutor(callers) as pool:
        drives = [pool.submit(_caller, url, body, calls) for _ in range(callers)]
        return [request for drive in drives for request in drive.result()]


def _caller(url: str, body: bytes, calls: int) -> list[dict[str, float]]:
    # The standard library's client takes least time itself.
    address = urlsplit(url)
    connection = http.client.HTTPConnection(
        address.hostname or "127.0.0.1", address.port, timeout=_TIMEOUT_S
    )
    requests = []
    for _ in range(calls):
        started = time.perf_counter()
        connection.request("POST", "/v1/segment", body, {"content-type": "application/json"})
        response = connection.getresponse()
        content = response.read()
        taken = (time.perf_counter() - started) * 1e3
        if response.status != httpx.codes.OK:
            raise RuntimeError(f"the server responded with status {response.status}")
        stages = orjson.loads(content)["timings_ms"]
        requests.append({HTTP: taken, **parts_of(taken, stages)})
    connection.close()
    return requests


def _rows(
    callers: int, bare: Sequence[Sequence[float]], requests: Sequence[Sequence[Mapping[str, float]]]
) -> list[Row]:
    """Medians of each round, and the 90th percentile of all as a detail."""
    case = f"repeated prompt, {callers} at once"
    whole = [[request[HTTP] for request in of_round] for of_round in requests]
    rows = [
        _row(case, HTTP, whole, "ms", ours=True),
        _row(case, BARE, bare, "ms"),
    ]
    over = tuple(a - b for a, b in zip(rows[0].rounds, rows[1].rounds, strict=True))
    parts = [
        _row(
            case, name, [[request[name] for request in r] for r in requests], _PART_UNIT, says=says
        )
        for name, says in PARTS.items()
    ]
    most = max(parts, key=lambda row: row.figure.median)
    difference = Row(case=case, system=OVER, unit=_PART_UNIT, rounds=over, dominates=most.system)
    return [*rows, difference, *parts]


def _row(
    case: str,
    system: str,
    rounds: Sequence[Sequence[float]],
    unit: str,
    *,
    ours: bool = False,
    says: str = "",
) -> Row:
    every = [value for of_round in rounds for value in of_round]
    return Row(
        case=case,
        system=system,
        ours=ours,
        unit=unit,
        rounds=tuple(float(np.median(of_round)) for of_round in rounds),
        dominates=says,
        details={"p90": float(np.percentile(every, 90)), "calls": float(len(every))},
    )


def _print(rows: Sequence[Row]) -> None:
    for row in rows:
        middle, low, high = row.figure
        p90 = f"   p90 {row.details['p90']:7.1f}" if "p90" in row.details else ""
        print(f"{row.case:<28}{row.system:<26}{middle:8.1f} ms ({low:.1f}-{high:.1f}){p90}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure a server that runs already."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("url")
    parser.add_argument("--config", type=Path, help="what the server runs (configs/local.yaml)")
    parser.add_argument("--variant", default="fast")
    parser.add_argument("--rounds", type=int, default=HopsEffort().rounds)
    parser.add_argument("--calls", type=int, default=HopsEffort().calls)
    given = parser.parse_args(arguments)
    photo = load_photos().known[0]
    decode = bare_decoder(photo, None, given.config, given.variant)
    effort = HopsEffort(rounds=given.rounds, calls=given.calls)
    _print(run(given.url.rstrip("/"), decode, photo, variant=given.variant, effort=effort))
    return 0


if __name__ == "__main__":
    sys.exit(main())
