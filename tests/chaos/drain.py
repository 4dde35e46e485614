"""Item 11: SIGTERM to ``python -m serve_app serve`` with 20 requests in flight."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from ..fakes.graph import ROOT, application, graph
from ..ports import free_ports
from .client import Client, Ledger
from .questions import new_image
from .report import Report
from .service import wait_until_ready

ITEM = "11 drain"
IN_FLIGHT = 20
TIMES = {"encode_ms": 600.0, "decode_ms": 10.0}
"""20 images by two encoders, two in a pass: five passes, three seconds."""


def run(report: Report, quick: bool) -> None:
    """Start the command an operator would, fill it, and end it."""
    (port,) = free_ports(1)
    args = graph()  # without "fakes": the command knows the product's settings alone
    app: dict[str, Any] = application("drained", args, "/")
    app["runtime_env"]["env_vars"]["SAM_SERVE_FAKES"] = json.dumps(TIMES)
    http = {"host": "127.0.0.1", "port": port, "request_timeout_s": 60}
    config = {"proxy_location": "HeadOnly", "http_options": http, "applications": [app]}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "drain.yaml"
        path.write_text(yaml.safe_dump(config), encoding="utf-8")
        command = [sys.executable, "-m", "serve_app", "serve", "--config", str(path)]
        command += ["--port", str(port), "--no-measure", "--out", folder]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        with (Path(folder) / "command.log").open("wb") as log:
            process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, env=environment
            )
        try:
            wait_until_ready(f"http://127.0.0.1:{port}")
            asyncio.run(_run(report, f"http://127.0.0.1:{port}", process))
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        tail = (Path(folder) / "command.log").read_text("utf-8", "replace").splitlines()[-8:]
        report.note("\nWhat the command said last:\n\n    " + "\n    ".join(tail))


async def _run(report: Report, url: str, process: subprocess.Popen[bytes]) -> None:
    async with Client(url) as client, Client(url) as late:
        await client.open_loop(new_image, 4.0, 2.0)
        client.ledger = Ledger()
        asks = [asyncio.create_task(client.ask(new_image())) for _ in range(IN_FLIGHT)]
        await asyncio.sleep(0.5)
        under_way = sum(not ask.done() for ask in asks)
        process.send_signal(signal.SIGTERM)
        told = time.monotonic()
        await asyncio.sleep(1.0)
        refused = asyncio.gather(*(late.ask(new_image()) for _ in range(5)))
        outcomes = await asyncio.gather(*asks)
        late_outcomes = await refused
        ended = await asyncio.to_thread(process.wait, 120)
    report.at_least(ITEM, "requests in flight at SIGTERM", under_way, IN_FLIGHT)
    report.at_least(ITEM, "of them completed", sum(o.status == 200 for o in outcomes), IN_FLIGHT)
    report.at_most(
        ITEM, "new ones not rejected", sum(o.status not in (0, 429, 503) for o in late_outcomes), 0
    )
    report.add(ITEM, "the command ended after", f"{time.monotonic() - told:.1f} s, status {ended}")
    report.note(
        f"\nDrain, ledger:\n\n{client.ledger.table()}\n\nNew ones:\n\n{late.ledger.table()}"
    )
