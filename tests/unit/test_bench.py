"""The benchmark's harness: ratios, load, mixes and reports; nothing here is timed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import httpx
import numpy as np
import orjson
import pytest

from serve_app.__main__ import main
from serve_app.core.limits import Limits
from serve_app.core.rle import encode_rle
from serve_app.images.decode import decode_image
from serve_tools.bench import http as over_http
from serve_tools.bench import own_service
from serve_tools.bench.clients import IsatClient, OurClient, OurEmbedClient, PlainClient
from serve_tools.bench.generators import META, score
from serve_tools.bench.load import Outcome, RequestFailed, closed_loop, evenly, open_loop, recorded
from serve_tools.bench.photos import Photo, Photos, load_photos, photo
from serve_tools.bench.report import markdown, plot
from serve_tools.bench.rows import Machine, Report, Row, Section, compared, ratio
from serve_tools.bench.suite import TITLES, key_of
from serve_tools.evaluation.everything import KnownImage

from ..clocks import VirtualTime

MACHINE = Machine(cpu="a chip", cores=2, threads=2, memory_gib=24.0, versions={"torch": "2"})


def row(system: str, *rounds: float, ours: bool = False, higher: bool = False) -> Row:
    return Row(
        case="work", system=system, ours=ours, unit="ms", rounds=rounds, higher_is_better=higher
    )


@pytest.fixture(scope="module")
def photos() -> Photos:
    return load_photos(size=(180, 120))


# -- rows -------------------------------------------------------------------------------------


def test_ratios_are_made_round_by_round() -> None:
    """The second round was slow for both: their ratio is what it was."""
    ours, peer = row("ours", 10, 100, ours=True), row("peer", 30, 310)
    assert ratio(ours, peer) == pytest.approx((3.05, 3.0, 3.1))
    faster = ratio(row("ours", 8, 6, ours=True, higher=True), row("peer", 2, 2, higher=True))
    assert faster == pytest.approx((3.5, 3.0, 4.0))


def test_rounds_that_one_of_them_lacks_do_not_count() -> None:
    assert ratio(row("ours", 10, 10, 1), row("peer", 20)) == (2.0, 2.0, 2.0)


def test_a_peer_that_did_nothing_is_endlessly_worse() -> None:
    assert ratio(row("o", 5, higher=True), row("p", 0, higher=True)).median == float("inf")


def test_rows_are_compared_with_the_first_of_ours_in_their_case() -> None:
    rows = [row("peer", 20), row("ours", 10, ours=True), row("ours, other", 5, ours=True)]
    other_case = Row(case="else", system="peer", unit="ms", rounds=(1.0,))
    found = {c.row.system: c.ours_is_better for c in compared(rows)}
    assert found["ours"] is None
    assert found["peer"] is not None
    assert found["peer"].median == 2.0
    assert found["ours, other"] is not None
    assert found["ours, other"].median == 0.5
    assert [c.ours_is_better for c in compared([*rows, other_case])][-1] is None


def test_share_of_the_floor_goes_to_one_from_either_side() -> None:
    slow = Row(case="c", system="s", unit="ms", rounds=(40.0,), floor=10.0)
    thin = Row(case="c", system="s", unit="1/s", rounds=(25.0,), floor=100.0, higher_is_better=True)
    assert slow.of_floor == thin.of_floor == 0.25
    assert row("s", 1).of_floor is None


def test_a_section_takes_the_place_of_its_older_self() -> None:
    report = Report(machine=MACHINE)
    for key, title in (("b", "old"), ("a", "first"), ("b", "new")):
        report = report.updated(Section(key=key, title=title))
    assert [(s.key, s.title) for s in report.sections] == [("a", "first"), ("b", "new")]


# -- load -------------------------------------------------------------------------------------


async def test_the_load_is_closed_and_counts_what_was_answered() -> None:
    running, most = 0, 0
    numbers: list[int] = []

    async def send(number: int) -> Mapping[str, float]:
        nonlocal running, most
        running += 1
        most = max(most, running)
        numbers.append(number)
        await asyncio.sleep(0)
        running -= 1
        if number == 3:
            raise RequestFailed("status 503")
        return {"decode": 2.0, "queue": 1.0}

    window = await closed_loop(recorded(send), 3, 0.0, least=9, most=9)
    assert most == 3
    assert sorted(numbers) == list(range(9))
    assert len(window.latencies_ms) == 8
    assert window.failures == {"status 503": 1}
    assert window.stages_ms == {"decode": 16.0, "queue": 8.0}
    assert window.requests_per_s == pytest.approx(8 / window.seconds)


async def test_sending_ends_with_the_time_but_not_before_the_least() -> None:
    now = 0.0

    async def send(number: int) -> Mapping[str, float]:
        nonlocal now
        now += 1.0
        return {}

    def clock() -> float:
        return now

    sender = recorded(send, clock)
    assert len((await closed_loop(sender, 1, 3.0, clock=clock)).latencies_ms) == 3
    now = 0.0
    assert len((await closed_loop(sender, 1, 3.0, least=5, clock=clock)).latencies_ms) == 5


async def test_an_open_loop_waits_for_no_response(virtual_time: VirtualTime) -> None:
    async def send(number: int) -> Mapping[str, float]:
        await asyncio.sleep(5.0 if number == 0 else 0.5)
        if number == 1:
            raise RequestFailed("status 503", 503)
        return {}

    begin = virtual_time()
    window = await open_loop(recorded(send, virtual_time), evenly(2.0, 2.0), clock=virtual_time)
    assert [o.sent_s - begin for o in window.outcomes] == pytest.approx([0.0, 0.5, 1.0, 1.5])
    assert [o.status for o in window.outcomes] == [200, 503, 200, 200]
    assert window.latencies_ms == pytest.approx([5000.0, 500.0, 500.0])
    assert len({outcome.request_id for outcome in window.outcomes}) == 4
    assert window.failures == {"status 503": 1}


async def test_an_open_loop_ends_after_its_grace_time(virtual_time: VirtualTime) -> None:
    async def send(number: int) -> Mapping[str, float]:
        await asyncio.sleep(1.0 + 9.0 * number)
        return {}

    window = await open_loop(
        recorded(send, virtual_time), [0.0, 0.1], grace_s=2.0, clock=virtual_time
    )
    assert [outcome.status for outcome in window.outcomes] == [200]
    assert window.seconds == pytest.approx(2.1)


async def test_an_error_of_the_sender_is_no_outcome() -> None:
    async def send(number: int, due_s: float) -> Outcome:
        raise ValueError("a fault of the test")

    with pytest.raises(ValueError, match="a fault"):
        await open_loop(send, [0.0])


# -- photos -----------------------------------------------------------------------------------


def test_each_new_photo_is_new_to_every_cache(photos: Photos) -> None:
    """Not its bytes alone, which a content-addressed cache does not go by."""
    photos.prepare(2)
    found = [photos.new() for _ in range(4)]
    pixels = [decode_image(p.jpeg, Limits()) for p in [*found, *photos.known]]
    assert len({p.tobytes() for p in pixels}) == 7
    assert all(p.size == (180, 120) for p in found)


def test_a_photos_pixels_are_those_of_its_file(photos: Photos) -> None:
    known = photos.known[0]
    difference = decode_image(known.jpeg, Limits()).astype(int) - known.pixels
    assert np.abs(difference).max() <= 3  # decoders round differently


def test_photos_of_a_folder(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("b", "a", "c", "d"):
        pixels = rng.integers(0, 255, (80, 100, 3), np.uint8)
        (tmp_path / f"{name}.jpg").write_bytes(photo(name, pixels).jpeg)
    assert [p.name for p in load_photos(tmp_path).known] == ["a.jpg", "b.jpg", "c.jpg"]
    (tmp_path / "a.jpg").unlink()
    (tmp_path / "b.jpg").unlink()
    with pytest.raises(ValueError, match="three"):
        load_photos(tmp_path)


# -- HTTP -------------------------------------------------------------------------------------


class Fake:
    """A service's stand-in that notes who asked for what, and answers in its own form."""

    def __init__(self, masks: int = 3) -> None:
        self.masks = masks
        self.asked: list[tuple[str, str]] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        body = request.read()
        kind = "id" if request.headers["content-type"] == "application/json" else "file"
        path = request.url.path
        self.asked.append((path, kind))
        if path == "/api/encode":
            return httpx.Response(200, content=b'{"features":[[0.5]]}')
        if path == "/segment":
            assert b'name="point_coords"' in body
            stages = {"decode": 1.0}
            return httpx.Response(200, json={"masks": ["png"] * self.masks, "timings_ms": stages})
        results = [{"masks": [{}] * self.masks}]
        stages = {"decode_masks": 1.0, "total": 1.5}
        return httpx.Response(
            200, json={"image_id": "id", "results": results, "timings_ms": stages}
        )

    def http(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url="http://x", transport=httpx.MockTransport(self))


async def test_ours_asks_by_id_what_is_known_and_sends_what_is_new(photos: Photos) -> None:
    fake = Fake()
    async with fake.http() as http:
        client = OurClient(http, "fast", by_id=True)
        await client.introduce(photos.known[0])
        stages = await client.send(photos.known[0], (1.0, 2.0))
        await client.send(photos.new(), (1.0, 2.0))
        await OurClient(http, "fast", by_id=False).send(photos.known[0], (1.0, 2.0))
        await OurEmbedClient(http, "fast", by_id=False).send(photos.known[0], (1.0, 2.0))
    assert stages == {"decode_masks": 1.0}  # the total is no stage
    assert fake.asked == [
        ("/v1/embed", "file"),
        ("/v1/segment", "id"),
        ("/v1/segment", "file"),
        ("/v1/segment", "file"),
        ("/v1/embed", "file"),
    ]


async def test_peers_are_asked_as_they_want(photos: Photos) -> None:
    fake = Fake()
    async with fake.http() as http:
        plain, isat = PlainClient(http), IsatClient(http)
        await plain.introduce(photos.known[0])
        assert await plain.send(photos.known[0], (1.0, 2.0)) == {"decode": 1.0}
        await isat.introduce(photos.known[0])
        await isat.send(photos.known[0], (1.0, 2.0))
    assert fake.asked == [("/segment", "file")] * 2 + [("/api/encode", "file")]


async def test_an_answer_without_its_masks_does_not_count(photos: Photos) -> None:
    async with Fake(masks=1).http() as http:
        with pytest.raises(RequestFailed, match="1 masks"):
            await PlainClient(http).send(photos.known[0], (1.0, 2.0))
        with pytest.raises(RequestFailed, match="1 masks"):
            await OurClient(http, "fast", by_id=False).send(photos.known[0], (1.0, 2.0))


def test_mixes_bring_the_photos_that_they_say(photos: Photos) -> None:
    def names(mix: str) -> list[str]:
        return [over_http.photo_of(mix, n, photos).name for n in range(10)]

    first, second, third = (p.name for p in photos.known)
    assert names(over_http.REPEATED) == [first] * 10
    assert names(over_http.THREE)[:4] == [first, second, third, first]
    mixed = names(over_http.MIXED)
    assert [n for n, name in enumerate(mixed) if name.startswith("new-")] == [4, 9]
    assert len(set(names(over_http.NEW))) == 10


class FakeClient:
    """Answers at once; its stages are what the test says."""

    def __init__(self, http: httpx.AsyncClient, log: list[str], name: str, fail: bool) -> None:
        self._log, self._name, self._fail = log, name, fail

    async def introduce(self, photo: Photo) -> None:
        self._log.append(f"{self._name} knows {photo.name}")

    async def send(self, photo: Photo, click: tuple[float, float]) -> Mapping[str, float]:
        if self._fail:
            raise RequestFailed("status 500")
        return {"decode": 1.0}


def test_services_run_alone_and_take_turns_to_be_first(photos: Photos) -> None:
    log: list[str] = []

    @contextmanager
    def serve(name: str) -> Iterator[str]:
        log.append(f"{name} starts")
        yield "http://127.0.0.1:1"
        log.append(f"{name} ends")

    mixes = (over_http.REPEATED, over_http.MIXED)
    systems = [
        over_http.System(
            partial(serve, name),
            {name: partial(FakeClient, log=log, name=name, fail=name == "peer")},
            {name: mixes},
            ours=name == "ours",
        )
        for name in ("ours", "peer")
    ]
    effort = over_http.LoadEffort(rounds=2, seconds=0.0, least=2, warm_s=0.0, concurrencies=(1, 2))
    peaks = iter([2e9, 1e9])  # the machine was busy in the second round
    rows, notes = over_http.run(
        systems, photos, effort, bare=lambda: None, work={over_http.REPEATED: 4.0},
        peak=lambda: next(peaks),
    )  # fmt: skip
    order = [line for line in log if line.endswith(("starts", "ends"))]
    first = ["ours starts", "ours ends", "peer starts", "peer ends"]
    assert order == [*first, *first[2:], *first[:2]]
    cases = {(r.case, r.system): r for r in rows}
    ours = cases[f"{over_http.REPEATED}, 2 callers", "ours"]
    assert ours.ours
    assert len(ours.rounds) == 2
    assert ours.details["requests"] == 4
    assert ours.floor == 0.5e9
    assert cases[f"{over_http.MIXED}, 1 caller", "peer"].rounds == (0.0, 0.0)
    p50 = [r.system for r in rows if r.case.endswith("p50")]
    assert p50[:2] == [over_http.BARE, "ours"]
    assert any("peer" in note and "status 500" in note for note in notes)


# -- questions to our service alone -----------------------------------------------------------


async def test_boxes_are_sent_in_one_call_and_counted(photos: Photos) -> None:
    bodies: list[dict[str, object]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/embed":
            return httpx.Response(200, json={"image_id": "id"})
        bodies.append(orjson.loads(request.read()))
        results = [{"masks": [{}]}] * len(bodies[-1]["prompts"])  # type: ignore[arg-type]
        told = {"decode_masks": 5.0, "total": 6.0}
        return httpx.Response(200, json={"results": results, "timings_ms": told})

    async with httpx.AsyncClient(
        base_url="http://x", transport=httpx.MockTransport(answer)
    ) as http:
        rows = await own_service.boxes(http, photos.known[0], "fast", 2, count=7)
    assert len(bodies) == 3
    assert all(len(body["prompts"]) == 7 for body in bodies)  # type: ignore[arg-type]
    assert len(rows[0].rounds) == 2
    assert rows[0].dominates == "decode_masks 5 ms"


async def test_memory_is_looked_at_before_and_after(photos: Photos) -> None:
    looks = iter([{"r": 100 * 2**20}, {"r": 130 * 2**20}])
    fake = Fake()
    async with fake.http() as http:
        rows = await own_service.memory(http, photos, "fast", 40, lambda name: next(looks))
    assert sum(path == "/v1/segment" for path, _ in fake.asked) == 40
    assert rows[0].rounds == (130.0,)
    assert rows[0].details == {"before": 100.0, "growth": 30.0}


# -- everything -------------------------------------------------------------------------------


def test_everything_counts_what_was_found() -> None:
    mask = np.zeros((8, 8), bool)
    mask[:4] = True
    image = KnownImage(np.zeros((8, 8, 3), np.uint8), (encode_rle(mask), encode_rle(~mask)))
    both = [encode_rle(mask), encode_rle(~mask)]
    rows, _ = score({"ours, fast": lambda p: both, META: lambda p: both[:1]}, [image], 4)
    found = {(r.case, r.system): r for r in rows}
    assert found["recall at IoU 0.5", "ours, fast"].rounds == (1.0,)
    assert found["recall at IoU 0.5", META].rounds == (0.5,)
    assert found["16 points", "ours, fast"].ours
    assert not found["16 points", META].ours


# -- the command ------------------------------------------------------------------------------


def report_of_one() -> Report:
    rows = (row("ours", 10, 12, ours=True), row("peer", 40, 36))
    section = Section(key="a", title="a title", rows=rows, notes=("a note",))
    return Report(machine=MACHINE, sections=(section,))


def test_a_report_is_written_as_markdown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bench.json"
    path.write_text(report_of_one().model_dump_json())
    assert main(["bench", "--report", str(path)]) == 0
    out = capsys.readouterr().out
    assert out.strip() == markdown(report_of_one()).strip()
    assert "| work | **ours** | 11 ms | 10 – 12 |  |" in out
    assert "|  | peer | 38 ms | 36 – 40 | 3.50 × (3.00 – 4.00) |" in out
    assert "a note" in out


def test_a_plot_is_drawn(tmp_path: Path) -> None:
    path = tmp_path / "bench.png"
    plot(path, report_of_one())
    assert path.read_bytes().startswith(b"\x89PNG")


def test_what_is_no_report_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bench.json"
    path.write_text("{}")
    assert main(["bench", "--report", str(path)]) == 1
    assert "no report" in capsys.readouterr().err


def test_unknown_sections_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "a", "z"]) == 1
    assert "no section z" in capsys.readouterr().err


@pytest.mark.parametrize("key", TITLES)
def test_sections_go_by_letter_and_name(key: str) -> None:
    assert key_of(key) == key_of(TITLES[key][0]) == key


def test_a_run_measures_writes_and_keeps_other_sections(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from serve_tools.bench import batcher, machine

    monkeypatch.setattr(machine, "this_machine", lambda threads: MACHINE)
    monkeypatch.setattr(batcher, "run", lambda rounds: [row("ours", 1.0, ours=True)])
    (tmp_path / "bench.json").write_text(report_of_one().model_dump_json())
    assert main(["bench", "batcher", "--quick", "--out", str(tmp_path)]) == 0
    written = Report.model_validate_json((tmp_path / "bench.json").read_bytes())
    assert [s.key for s in written.sections] == ["a", "e"]
    assert written.sections[1].quick
    out = capsys.readouterr().out
    assert "### e:" in out
    assert "### a:" not in out


def test_the_plain_service_keeps_the_last_image_and_tells_faults(
    monkeypatch: pytest.MonkeyPatch, photos: Photos
) -> None:
    from fastapi.testclient import TestClient

    from serve_tools.bench import plain_service

    order: list[bytes] = []

    class Predictor:
        def set_image(self, pixels: np.ndarray) -> None:
            order.append(pixels.tobytes()[:8])

        def predict(
            self, points: np.ndarray, labels: np.ndarray, multimask_output: bool
        ) -> tuple[np.ndarray, np.ndarray, None]:
            return np.ones((3, 4, 4), bool), np.array([0.1, 0.2, 0.3]), None

    monkeypatch.setattr(plain_service, "_load", Predictor)
    jpeg, fields = photos.known[0].jpeg, {"point_coords": "[[1, 2]]", "point_labels": "[1]"}
    with TestClient(plain_service.create_app()) as client:
        assert client.post("/segment", files={"file": jpeg}, data=fields | {"point_labels": "x"}
                           ).status_code == 400  # fmt: skip
        answers = [client.post("/segment", files={"file": jpeg}, data=fields) for _ in range(2)]
        assert [len(a.json()["masks"]) for a in answers] == [3, 3]
        assert len(order) == 1  # the second found the image in the predictor
        bad = client.post("/segment", files={"file": b"no image"}, data=fields)
        assert bad.status_code == 400
