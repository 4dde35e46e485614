"""Finds, downloads and verifies the weights on this machine."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from serve_app.core.errors import WeightsUnavailable
from serve_app.core.folders import user_cache
from serve_app.models.registry import LocalSource, ModelSpec, WeightFile
from serve_app.models.sources import Fetch, Fetcher, SourceFailed

WEIGHTS_VARIABLE = "SAM_SERVE_WEIGHTS"
PARTIAL_PREFIX = ".partial-"

FileStatus = Literal["verified", "present", "corrupt", "missing"]
FOUND = frozenset({"verified", "present"})


@dataclass(frozen=True, slots=True)
class FileState:
    """State of one file of a model, which has a key there; its path is for the operator only.

    ``present`` has the right size but was not hashed; ``corrupt`` has another size or hash than
    the pinned ones.
    """

    key: str
    status: FileStatus
    path: Path | None


@dataclass(frozen=True, slots=True)
class Attempt:
    """A source that did not provide a file, and why; for the operator only."""

    file: str
    source: str
    reason: str


class SourcesFailed(Exception):
    """The cause of a `WeightsUnavailable`: every source that was tried, in that order."""

    def __init__(self, attempts: Sequence[Attempt]) -> None:
        super().__init__("; ".join(f"{a.file} from {a.source}: {a.reason}" for a in attempts))
        self.attempts = attempts


def default_root() -> Path:
    """``$SAM_SERVE_WEIGHTS``, else ``sam-serve/weights`` in the user's cache folder (XDG)."""
    if configured := os.environ.get(WEIGHTS_VARIABLE):
        return Path(configured).expanduser()
    return user_cache() / "weights"


def is_pinned(path: Path, file: WeightFile) -> bool:
    """Whether an existing file has the pinned size and SHA-256."""
    if path.stat().st_size != file.size:
        return False
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest() == file.sha256


class WeightStore:
    """Weight files by model, at ``<root>/<model>/<file>``.

    Every file is verified by size and SHA-256 before its path is returned; the result is
    cached while the file does not change, so one store hashes a file once.

    Args:
        root: where files are stored; None: `default_root`.  With a root given, files in
            ``$SAM_SERVE_WEIGHTS`` are also found, but nothing is written there.
        offline: never fetch.
        fetcher: makes the function that fetches, from a scratch folder; for tests.
    """

    def __init__(
        self,
        root: str | Path | None = None,
        offline: bool = False,
        fetcher: Callable[[Path], Fetch] = Fetcher,
    ) -> None:
        self.root = Path(root).expanduser() if root else default_root()
        self._offline = offline
        self._fetcher = fetcher
        self._verified: dict[tuple[Path, str], tuple[int, ...]] = {}

    def ensure(self, name: str, spec: ModelSpec, progress: bool = False) -> dict[str, Path]:
        """Verified paths of a model's files by key; missing files are fetched.

        A model's files are fetched by one process at a time: the others wait and find them.

        Raises:
            WeightsUnavailable: a file is missing and no source provided it; its cause is
                `SourcesFailed` where sources were tried.
        """
        paths, missing = self._find(name, spec)
        if not missing:
            return paths
        if self._offline:
            raise WeightsUnavailable(
                f"the weights of {name} are not installed and fetching is switched off; "
                f"run 'python -m serve_app fetch {name}'"
            )
        try:
            with self._locked(name):
                paths, missing = self._find(name, spec)
                if missing:
                    self._fetch(name, missing, progress)
                    paths, missing = self._find(name, spec)
        except OSError as exc:
            raise WeightsUnavailable(
                f"the weights of {name} cannot be stored: the weights folder is not writable "
                "or its disk is full"
            ) from exc
        if missing:
            raise WeightsUnavailable(f"the weights of {name} changed while they were fetched")
        return paths

    def state(self, name: str, spec: ModelSpec, verify: bool = True) -> list[FileState]:
        """The state of each file of a model; without ``verify`` only sizes are compared.

        All files must be in the same root, because some models load from a folder; those in
        ``$SAM_SERVE_WEIGHTS`` count only if none is missing there.
        """
        states = self._states(self.root / name, spec, verify)
        shared_root = default_root() if os.environ.get(WEIGHTS_VARIABLE) else self.root
        if shared_root != self.root and any(state.status not in FOUND for state in states):
            shared = self._states(shared_root / name, spec, verify)
            if all(state.status in FOUND for state in shared):
                return shared
        return states

    def describe(self, name: str, spec: ModelSpec, verify: bool = False) -> dict[str, Any]:
        """A model for listings, without paths.

        ``state`` is ``ready`` (verified), ``present`` (right sizes, not yet hashed),
        ``missing`` or ``corrupt``.
        """
        statuses = {state.status for state in self.state(name, spec, verify)}
        worst = next((s for s in ("corrupt", "missing", "present") if s in statuses), "ready")
        return {
            "model": name,
            "family": spec.family,
            "architecture": spec.architecture,
            "title": spec.title,
            "license": spec.license,
            "bytes": spec.size,
            "weights_hash": spec.weights_hash,
            "state": worst,
        }

    def _find(self, name: str, spec: ModelSpec) -> tuple[dict[str, Path], dict[str, WeightFile]]:
        """Verified paths, and the files that have none."""
        states = self.state(name, spec)
        paths = {s.key: s.path for s in states if s.status == "verified" and s.path is not None}
        return paths, {key: file for key, file in spec.files.items() if key not in paths}

    def _states(self, folder: Path, spec: ModelSpec, verify: bool) -> list[FileState]:
        return [self._file_state(folder, key, f, verify) for key, f in spec.files.items()]

    def _file_state(self, folder: Path, key: str, file: WeightFile, verify: bool) -> FileState:
        own = [Path(s.local).expanduser() for s in file.sources if isinstance(s, LocalSource)]
        corrupt: Path | None = None
        for path in [folder / file.name, *own]:
            status = self._check(path, file, verify)
            if status in FOUND:
                return FileState(key, status, path)
            if status == "corrupt":
                corrupt = corrupt or path
        return FileState(key, "missing" if corrupt is None else "corrupt", corrupt)

    def _check(self, path: Path, file: WeightFile, verify: bool) -> FileStatus:
        try:
            found = path.stat()
            if not path.is_file():
                return "missing"
            if found.st_size != file.size:
                return "corrupt"
            # The change time cannot be set back by a process that may only write the content.
            stamp = (found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
            if self._verified.get((path, file.sha256)) == stamp:
                return "verified"
            if not verify:
                return "present"
            if not is_pinned(path, file):
                return "corrupt"
        except OSError:
            return "missing"
        self._verified[(path, file.sha256)] = stamp
        return "verified"

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        folder = self.root / name
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            # Under the lock no other process downloads: these are leftovers of processes that died.
            for leftover in folder.glob(f"{PARTIAL_PREFIX}*"):
                shutil.rmtree(leftover, ignore_errors=True)
            yield

    def _fetch(self, name: str, missing: dict[str, WeightFile], progress: bool) -> None:
        folder = self.root / name
        total = sum(file.size for file in missing.values())
        with (
            tqdm(total=total, desc=name, unit="B", unit_scale=True, disable=not progress) as bar,
            # In the same folder as the files, so that the move into place is a rename.
            tempfile.TemporaryDirectory(prefix=PARTIAL_PREFIX, dir=folder) as scratch,
        ):
            fetch = self._fetcher(Path(scratch))
            for file in missing.values():
                partial = Path(scratch) / "file"
                self._fetch_file(name, file, partial, fetch, bar)
                target = folder / file.name
                target.parent.mkdir(exist_ok=True)
                partial.replace(target)
            bar.set_postfix_str("verified")

    def _fetch_file(
        self, name: str, file: WeightFile, partial: Path, fetch: Fetch, bar: tqdm
    ) -> None:
        attempts: list[Attempt] = []
        received = bar.n  # by the files before this one
        for source in file.sources:
            try:
                fetch(source, file.size, partial, bar)
                if is_pinned(partial, file):
                    return
                reason = "wrong size or SHA-256, refused"
            except SourceFailed as exc:
                reason = str(exc)
            partial.unlink(missing_ok=True)
            bar.n = received
            bar.refresh()
            attempts.append(Attempt(file.name, source.label, reason))
        raise WeightsUnavailable(
            f"the weights of {name} are not installed and no source provided them; "
            f"run 'python -m serve_app fetch {name}' to see why"
        ) from SourcesFailed(attempts)
