"""Atomic outputs and hashes: write to a temporary name, verify, rename. Local files only; inputs may come from fsspec."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import xxhash

from ziya.errors import UserError

TEMPORARY = ".tmp-"


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success fsync it and rename it over `path`, on failure remove it.

    The temporary name holds our process id, so that a stray process of an earlier run never writes into our file, and ends in
    `.part`, so that no pattern such as *.parquet finds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}.part")
    try:
        yield temporary
        descriptor = os.open(temporary, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        if error.errno == 28:
            raise UserError(f"no space left on the disk that holds {path.parent}: free some and run again") from error
        raise
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON with sorted keys (same value, same bytes), atomically."""
    write_bytes(path, json_bytes(value))


def json_bytes(value: Any) -> bytes:
    """Canonical JSON: sorted keys, two-space indent, UTF-8, final newline."""
    options = orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE | orjson.OPT_SERIALIZE_NUMPY
    return orjson.dumps(value, option=options)


def read_json(path: Path) -> Any:
    """Read a JSON file; a broken one is a UserError that names it."""
    try:
        return orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError as error:
        raise UserError(f"{path} is not valid JSON ({error}): restore it or remove it") from error


def digest(data: bytes) -> str:
    """128-bit xxh3 of `data` as 32 hexadecimal characters: identity of settings and files, not a defence."""
    return str(xxhash.xxh3_128_hexdigest(data))


def file_digest(path: Path) -> str:
    """128-bit xxh3 of a file's bytes, read in 4 MiB pieces."""
    state = xxhash.xxh3_128()
    with path.open("rb") as file:
        while piece := file.read(4 << 20):
            state.update(piece)
    return str(state.hexdigest())


def remove_temporaries(folder: Path) -> None:
    """Remove temporary files that killed processes left anywhere below `folder`."""
    if folder.is_dir():
        for path in folder.rglob(f"{TEMPORARY}*"):
            path.unlink(missing_ok=True)
