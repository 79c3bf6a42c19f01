"""Input files -> work units: byte ranges of at most `read.unit_bytes`. Cuts depend on the bytes and the settings,
never on workers.
"""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import xxhash

from data_factory.config import DataConfig, Read, Source
from data_factory.sources.record import Unit
from data_factory.sources.streams import SKIPPABLE, Window, is_remote
from ziya.errors import UserError

__all__ = ["Plan", "Unit", "plan"]

EXTENSIONS = {
    ".warc": "warc",
    ".wet": "warc",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".xml": "mediawiki",
}
COMPRESSIONS = {".gz": "gz", ".gzip": "gz", ".zst": "zst", ".zstd": "zst", ".bz2": "bz2"}
_PLAIN_HEADS = (b"WARC/", b"{", b"\xef\xbb\xbf", b"<", b"PAR1")


@dataclass(frozen=True)
class Plan:
    """All units of a run in order; `inputs`: source, label, bytes and digest (xxh3-128) of every input file;
    `warnings`: one line each.
    """

    units: list[Unit]
    inputs: list[dict[str, Any]]
    warnings: list[str]


@dataclass(frozen=True)
class _Input:
    source: str
    path: str
    label: str
    format: str


def plan(config: DataConfig, spool: Path, limit: int | None) -> Plan:
    """Expand the inputs of `config`, decompress what cannot be cut into `spool`, and cut everything into units.

    `limit`: the first so many records of the whole plan; what stands behind them is not planned (those records are
    read once to count). Raises `UserError` for paths without input, unreadable files and names whose format cannot be
    told.
    """
    units: list[Unit] = []
    described: list[dict[str, Any]] = []
    warnings: list[str] = []
    left = limit
    for source in config.sources:
        for item in _expand(source, warnings):
            if left == 0:
                break
            cuts, about = _cut(item, config.read, spool, len(units), warnings)
            described.append(about)
            if left is not None:
                cuts, left = _limited(cuts, source, config.read, left)
            units += cuts
    if not units:
        raise UserError("the inputs hold no bytes: every file that was found is empty; check sources[].paths")
    return Plan(units, described, warnings)


def _cut(item: _Input, read: Read, spool: Path, number: int, warnings: list[str]) -> tuple[list[Unit], dict[str, Any]]:
    from data_factory.sources.parquet import group_ranges
    from data_factory.sources.spool import must_spool, spool_input

    with Window(item.path) as window:
        size = window.size
        digest = _digest(window)
        compression = _compression(window, item.path)
        spooled = bool(size) and must_spool(window, item.format, compression, read.record_limit_bytes)
    about = {"source": item.source, "label": item.label, "bytes": size, "digest": digest}
    if not size:
        warnings.append(f"source {item.source}: {item.label} is empty")
        return [], about
    path = item.path
    damages: tuple[tuple[int, str], ...] = ()
    if spooled:
        target, damages = spool_input(item.path, item.format, compression, digest, spool, read.record_limit_bytes)
        path, compression, size = str(target.resolve()), "", target.stat().st_size
    if item.format == "parquet":
        ranges = group_ranges(path, read.unit_bytes)
    else:
        ranges = [(start, min(start + read.unit_bytes, size)) for start in range(0, size, read.unit_bytes)] or [
            (0, size)
        ]
    units: list[Unit] = []
    for start, end in ranges:
        here = tuple(damage for damage in damages if start <= damage[0] < end or (damage[0] == end == size))
        units.append(
            Unit(
                number + len(units), item.source, path, item.label, item.format, compression, start, end, 0, None, here
            )
        )
    return units, about


def _digest(window: Window) -> str:
    state, position = xxhash.xxh3_128(), 0
    while piece := window.piece(position, 1 << 22):
        state.update(piece)
        position += len(piece)
    return str(state.hexdigest())


def _compression(window: Window, path: str) -> str:
    """By the first bytes (servers decompress, or compress again, without renaming); by the name where these say
    nothing.
    """
    head = window.exact(0, 4)
    if head[:2] == b"\x1f\x8b":
        return "gz"
    if head == b"\x28\xb5\x2f\xfd" or head in SKIPPABLE:
        return "zst"
    if head[:3] == b"BZh":
        return "bz2"
    if head.lstrip().startswith(_PLAIN_HEADS):
        return ""
    return COMPRESSIONS.get(PurePosixPath(path.lower()).suffix, "")


def _limited(units: list[Unit], source: Source, read: Read, left: int) -> tuple[list[Unit], int]:
    """The units that hold the first `left` records; the last one stops there. Returns them and how many records are
    still wanted.
    """
    from data_factory.sources import Record, read_unit

    kept = []
    for unit in units:
        if left == 0:
            break
        found = sum(isinstance(item, Record) for item in read_unit(replace(unit, limit=left), source, read, Counter()))
        kept.append(replace(unit, limit=left) if found == left else unit)
        left -= found
    return kept, left


def format_of(name: str) -> str | None:
    """Format by the file name (`x.warc.gz` -> warc), None when unknown."""
    path = PurePosixPath(name.lower())
    while path.suffix in COMPRESSIONS:
        path = path.with_suffix("")
    return EXTENSIONS.get(path.suffix)


def _expand(source: Source, warnings: list[str]) -> list[_Input]:
    """All input files of a source, sorted by label."""
    found: dict[str, tuple[int, str, bool]] = {}  # path -> (number of the entry, label, named by the user)
    for number, entry in enumerate(source.paths, start=1):
        held = 0
        for path, label, named in _remote_files(entry) if is_remote(entry) else _local_files(entry):
            held += 1
            if path in found:
                warnings.append(f"source {source.name}: {label} is given twice and read once")
            else:
                found[path] = (number, label, named)
        if not held:
            raise UserError(
                f"source {source.name}: {entry} holds no files; give files, folders, globs or URLs that exist"
            )
    labels = Counter(label for _, label, _ in found.values())
    inputs, ignored = [], []
    for path, (number, label, named) in found.items():
        known = format_of(label)
        plain_name = not PurePosixPath(label).suffix
        fits = named or known == source.format or plain_name
        chosen = known if source.format == "auto" else (source.format if fits else None)
        if chosen is None and named:
            raise UserError(
                f"source {source.name}: the name of {label} does not tell its format; "
                f"set sources[].format (known extensions: {', '.join(EXTENSIONS)})"
            )
        if chosen is None:
            ignored.append(label)
            continue
        inputs.append(_Input(source.name, path, f"{number}/{label}" if labels[label] > 1 else label, chosen))
    if ignored:
        shown = ", ".join(sorted(ignored)[:5]) + (", ..." if len(ignored) > 5 else "")
        what = "of a known format" if source.format == "auto" else source.format
        warnings.append(f"source {source.name}: {len(ignored)} files are not {what} and were ignored: {shown}")
    if not source.paths:
        raise UserError(f"source {source.name} has no paths: give --input PATH, or set sources[].paths")
    if not inputs:
        raise UserError(
            f"source {source.name}: no file of {', '.join(source.paths)} is readable input "
            f"(known extensions: {', '.join(EXTENSIONS)}, with or without .gz, .zst, .bz2)"
        )
    return sorted(inputs, key=lambda item: item.label)


def _visible(label: str) -> bool:
    return not any(part.startswith(".") for part in PurePosixPath(label).parts)


def _local_files(entry: str) -> Iterator[tuple[str, str, bool]]:
    """(absolute path, label, whether the user named this very file) of a local file, folder or glob."""
    path = Path(entry).expanduser()
    if path.is_dir():
        yield from _below(path, path.resolve())
    elif path.exists():
        yield str(path.resolve()), path.name, True
    elif glob.has_magic(entry):
        root = Path(*_before_magic(path.parts)).resolve()
        for match in sorted(glob.glob(str(path), recursive=True)):
            if Path(match).is_dir():
                yield from _below(Path(match), root)
            elif _visible(label := Path(os.path.relpath(Path(match).absolute(), root)).as_posix()):
                yield str(Path(match).resolve()), label, False
    else:
        raise UserError(f"input {entry} does not exist: give files, folders, globs or URLs that exist")


def _below(folder: Path, root: Path) -> Iterator[tuple[str, str, bool]]:
    def fail(error: OSError) -> None:
        raise UserError(f"input folder {error.filename} cannot be read: {error.strerror}") from error

    for parent, folders, names in os.walk(folder.resolve(), onerror=fail, followlinks=False):
        folders.sort()
        for name in sorted(names):
            label = Path(parent, name).relative_to(root).as_posix()
            if _visible(label):
                yield str(Path(parent, name).resolve()), label, False


def _before_magic(parts: tuple[str, ...]) -> list[str]:
    fixed: list[str] = []
    for part in parts[:-1]:
        if glob.has_magic(part):
            break
        fixed.append(part)
    return fixed


def _remote_files(entry: str) -> Iterator[tuple[str, str, bool]]:
    """The same for an fsspec URL; labels are relative to the URL's folder, so that no bucket enters outputs."""
    import fsspec  # slow to import, for remote inputs only

    try:
        files, root = fsspec.core.url_to_fs(entry)
        if glob.has_magic(entry):
            names, named = files.glob(root), False
            root = "/".join(_before_magic(tuple(root.split("/"))))
        elif files.isdir(root):
            names, named = files.find(root), False
        elif files.exists(root):
            names, named = [root], True
            root = root.rpartition("/")[0]
        else:
            raise UserError(f"input {entry} does not exist: give files, folders, globs or URLs that exist")
        names = [name for name in names if named or not files.isdir(name)]
    except (OSError, ValueError, ImportError) as error:
        raise UserError(f"input {entry} cannot be listed: {error}") from error
    for name in sorted(names):
        label = name[len(root) :].lstrip("/") if name.startswith(root) else name.rpartition("/")[2]
        if _visible(label):
            yield files.unstrip_protocol(name), label, named
