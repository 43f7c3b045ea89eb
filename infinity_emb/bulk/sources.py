"""Find the files of a job: paths, folders, globs, addresses that pyarrow reads, and standard input."""

from __future__ import annotations

import contextlib
import fnmatch
import glob
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from infinity_emb.errors import StartupError

STDIN = "-"
_FORMATS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "arrow",
    ".arrows": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
    ".txt": "text",
}
_COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd", ".lz4": "lz4"}
_GLOB_CHARACTERS = "*?["


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One input file.

    filesystem: pyarrow.fs.FileSystem; None for standard input.
    """

    name: str
    path: str
    filesystem: Any
    size_bytes: int | None = None
    changed_ns: int | None = None

    def open_stream(self) -> Any:
        """Open the file to read it once, decompressed. Raises OSError."""
        if self.filesystem is None:
            import pyarrow as pa

            return pa.PythonFile(sys.stdin.buffer, mode="r")
        _, compression = split_suffix(self.path)
        return self.filesystem.open_input_stream(self.path, compression=compression)

    def open_random_access(self) -> Any:
        """Open a file whose format needs seeking. Raises OSError and StartupError."""
        if self.filesystem is None:
            raise StartupError("standard input cannot be Parquet; write it to a file first")
        return self.filesystem.open_input_file(self.path)

    def fingerprint(self) -> list[Any]:
        """Return values that change when the file changes."""
        return [self.name, self.size_bytes, self.changed_ns]


def split_suffix(path: str) -> tuple[str, str | None]:
    """Return the format of a path by its name, or "", and the compression."""
    base, suffix = os.path.splitext(path.lower())
    compression = _COMPRESSIONS.get(suffix)
    if compression:
        suffix = os.path.splitext(base)[1]
    return _FORMATS.get(suffix, ""), compression


def find_files(inputs: Sequence[str]) -> list[SourceFile]:
    """Return the files of all inputs; those of a folder or a glob in the order of their names.

    Raises StartupError if there is none or one cannot be read.
    """
    files = [file for text in inputs for file in _find(text)]
    if len(files) > 1 and any(file.name == STDIN for file in files):
        raise StartupError("standard input (-) cannot be one of several inputs; give it alone")
    return files


def choose_format(files: Sequence[SourceFile], given: str) -> str:
    """Return the format of all files. Raises StartupError for several, or an unknown one."""
    if given != "auto":
        return given
    formats = {split_suffix(file.path)[0]: file.name for file in files}
    if "" in formats:
        raise StartupError(
            f"the name of {formats['']} does not tell its format; set --input-format"
            f" ({', '.join(sorted(set(_FORMATS.values())))})"
        )
    if len(formats) > 1:
        raise StartupError(
            f"the inputs have several formats ({', '.join(sorted(formats))}); run a job for each of them"
        )
    return next(iter(formats))


def _find(text: str) -> Iterator[SourceFile]:
    if text == STDIN:
        yield SourceFile(STDIN, STDIN, None)
        return
    with _translate_errors(text):
        found = list(_find_remote(text) if "://" in text else _find_local(text))
    if not found:
        raise StartupError(f"no input file matches {text!r}")
    yield from found


def _find_local(text: str) -> Iterator[SourceFile]:
    from pyarrow import fs

    local = fs.LocalFileSystem()
    path = os.path.expanduser(text)
    if os.path.isdir(path):
        paths = [os.path.join(path, name) for name in sorted(os.listdir(path)) if split_suffix(name)[0]]
    elif os.path.exists(path) or not any(character in text for character in _GLOB_CHARACTERS):
        paths = [path]
    else:
        paths = sorted(glob.glob(path, recursive=True))
    for each in paths:
        if os.path.isdir(each):
            continue
        stat = os.stat(each)
        yield SourceFile(each, os.path.abspath(each), local, stat.st_size, stat.st_mtime_ns)


def _find_remote(text: str) -> Iterator[SourceFile]:
    from pyarrow import fs

    scheme = text.partition("://")[0]
    pattern = text if any(character in text for character in "*[") else None
    base = (
        text if pattern is None else text[: min(text.find(c) for c in "*[" if c in text)].rpartition("/")[0]
    )
    filesystem, path = fs.FileSystem.from_uri(base)
    info = filesystem.get_file_info(path)
    if info.type is fs.FileType.NotFound:
        raise FileNotFoundError("there is no such file")
    if info.type is fs.FileType.File:
        infos = [info]
    else:
        wanted = pattern and pattern.partition("://")[2]
        infos = filesystem.get_file_info(fs.FileSelector(path, recursive=bool(wanted and "**" in wanted)))
        infos = [each for each in infos if _is_wanted(each.path, wanted)]
    for each in sorted(infos, key=lambda each: each.path):
        if each.type is fs.FileType.File:
            yield SourceFile(f"{scheme}://{each.path}", each.path, filesystem, each.size, each.mtime_ns)


def _is_wanted(path: str, pattern: str | None) -> bool:
    if pattern is None:
        return bool(split_suffix(path)[0])
    return fnmatch.fnmatchcase(path.lstrip("/"), pattern.partition("?")[0].lstrip("/"))


@contextlib.contextmanager
def _translate_errors(text: str) -> Iterator[None]:
    """Turn errors of pyarrow about an address into StartupError."""
    try:
        yield
    except (OSError, ValueError, NotImplementedError) as exc:  # ArrowInvalid is a ValueError
        raise StartupError(f"input {text!r} cannot be read: {exc}") from exc
