"""What lies beside a pack's `.bin` and `.idx`: its manifest and the table of its pieces. Written by the data factory, read
by training; both check against what is defined here.

`PREFIX.json`: the manifest, written last, so a pack without it is unfinished (or comes from elsewhere: a plain Megatron
dataset). `Manifest` names what readers rely on; writers may add more.

`PREFIX.documents.parquet`: `PIECES`; row i describes sequence i of the pack.

`tokenizer/tokenizer.model` or `tokenizer/tokenizer.json` in the packs' folder: a copy of the tokenizer that spelled them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ziya.errors import UserError
from ziya.files import digest, file_digest, read_json, write_json
from ziya.packs import bin_path, idx_path

MANIFEST_VERSION = 1
TOKENIZER_FOLDER = "tokenizer"
BATCH_ROWS = 1 << 16  # pieces in memory at once

# Row i describes sequence i of the pack. Padding is a piece of its own, the last of its sample: id and all other strings empty.
PIECES = pa.schema([
    ("sample", pa.int64()),
    ("piece", pa.int32()),  # number inside the sample
    ("id", pa.string()),
    ("source", pa.string()),
    ("lang", pa.string()),
    ("tier", pa.string()),
    ("perplexity", pa.float32()),
    ("task", pa.string()),
    ("tokens", pa.int32()),  # EOS included, where the piece holds it
    ("prompt_tokens", pa.int32()),  # the first so many tokens of this piece are the prompt's
    ("start", pa.int64()),  # first token of the piece, counted inside the document
])  # fmt: skip


class _Strict(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True, frozen=True)


class PackTokenizer(_Strict):
    """The tokenizer that spelled a pack; `vocab_size`: largest id plus one; see `tokenizer_fingerprint`."""

    kind: str
    fingerprint: str = Field(min_length=32, max_length=32)
    vocab_size: int = Field(ge=1)
    eos_id: int = Field(ge=0)
    pad_id: int = Field(ge=0)


class FileEntry(_Strict):
    """Size and content of one file."""

    bytes: int = Field(ge=0)
    xxh3_128: str = Field(min_length=32, max_length=32)


class Manifest(_Strict):
    """What a pack is: counts are of the whole pack; `tokens` and `samples * sequence_length` are equal, padding included.

    `mode`: splice (documents joined and cut; only the last sample has padding) or whole (complete documents).
    """

    version: Literal[1]
    source: str
    mode: Literal["splice", "whole"]
    sequence_length: int = Field(ge=1)
    tokenizer: PackTokenizer
    samples: int = Field(ge=0)
    sequences: int = Field(ge=0)
    tokens: int = Field(ge=0)
    padding_tokens: int = Field(ge=0)
    prompt_tokens: int = Field(ge=0)
    files: dict[str, FileEntry]


def kept_tokenizer(folder: Path) -> Path | None:
    """The copy of the tokenizer that spelled the packs in `folder`; None where there is none."""
    kept = (folder / TOKENIZER_FOLDER / name for name in ("tokenizer.model", "tokenizer.json"))
    return next((path for path in kept if path.is_file()), None)


def manifest_path(prefix: Path) -> Path:
    """`PREFIX.json`."""
    return prefix.with_name(prefix.name + ".json")


def pieces_path(prefix: Path) -> Path:
    """`PREFIX.documents.parquet`."""
    return prefix.with_name(prefix.name + ".documents.parquet")


def tokenizer_fingerprint(kind: str, content: bytes, eos_id: int, pad_id: int) -> str:
    """What `ziya.tokenizer.Tokenizer.fingerprint` tells, from the file's content alone, without loading it."""
    return digest(f"{kind} {digest(content)} eos {eos_id} pad {pad_id}".encode())


def check_manifest(value: Any, origin: Path) -> Manifest:
    """Parse a manifest; UserError names the first keys that are missing or wrong, and counts that contradict each other."""
    if isinstance(value, dict) and value.get("version", MANIFEST_VERSION) != MANIFEST_VERSION:
        raise UserError(
            f"{origin} has version {value['version']} and {MANIFEST_VERSION} can be read: pack again with this version"
        )
    try:
        manifest = Manifest.model_validate(value)
    except ValidationError as error:
        wrong = [f"{'.'.join(map(str, item['loc'])) or 'the whole'} ({item['msg']})" for item in error.errors()[:5]]
        raise UserError(f"{origin} is not the manifest of a pack: {', '.join(wrong)}: pack again") from error
    if (
        manifest.tokens != manifest.samples * manifest.sequence_length
        or manifest.padding_tokens + manifest.prompt_tokens > manifest.tokens
    ):
        raise UserError(
            f"{origin} contradicts itself: {manifest.samples} samples of {manifest.sequence_length} tokens, "
            f"{manifest.tokens} tokens, {manifest.padding_tokens} of padding, {manifest.prompt_tokens} of prompts: pack again"
        )
    return manifest


def write_manifest(prefix: Path, value: dict[str, Any]) -> None:
    """Check a manifest and write it as `PREFIX.json`, atomically; call it after all other files of the pack."""
    check_manifest(value, manifest_path(prefix))
    write_json(manifest_path(prefix), value)


def read_manifest(prefix: Path) -> Manifest | None:
    """The manifest of a pack, checked, its files there with their recorded sizes; None for a plain Megatron dataset.

    UserError: broken manifest, missing or resized files, or a table of pieces without a manifest (packing was not finished).
    Digests are not computed again (a pack may be a terabyte): `verify_files` does.
    """
    path = manifest_path(prefix)
    if not path.is_file():
        if pieces_path(prefix).exists():
            raise UserError(
                f"{pieces_path(prefix)} has no manifest {path.name} beside it, so packing was not finished: run it again"
            )
        return None
    manifest = check_manifest(read_json(path), path)
    needed = [bin_path(prefix), idx_path(prefix), pieces_path(prefix)]
    for file in needed:
        entry = manifest.files.get(file.name)
        if entry is None:
            raise UserError(
                f"{path} does not list {file.name}: the files of a pack keep their names; rename all or none"
            )
        if not file.is_file():
            raise UserError(f"{file} is missing and {path} lists it: copy it here or pack again")
        if file.stat().st_size != entry.bytes:
            raise UserError(
                f"{file} has {file.stat().st_size} bytes and {path} tells of {entry.bytes}: copy it again or pack again"
            )
    return manifest


def verify_files(prefix: Path, manifest: Manifest) -> None:
    """Compute the digests of a pack's files again; UserError names the one that changed. Reads every byte."""
    for file in (bin_path(prefix), idx_path(prefix), pieces_path(prefix)):
        if file_digest(file) != manifest.files[file.name].xxh3_128:
            raise UserError(f"{file} is not what {manifest_path(prefix)} tells of: copy it again or pack again")


def pack_identity(prefix: Path, manifest: Manifest) -> str:
    """32 hexadecimal characters that change with the tokens, the borders or the table of pieces, and with nothing else."""
    parts = [manifest.files[path.name].xxh3_128 for path in (bin_path(prefix), idx_path(prefix), pieces_path(prefix))]
    return digest(" ".join(parts).encode())


def piece_batches(prefix: Path, columns: Sequence[str], sequences: int) -> Iterator[pa.RecordBatch]:
    """Columns of the table of pieces in order, BATCH_ROWS at a time; UserError when it is not PIECES or too short or long."""
    path = pieces_path(prefix)
    try:
        with pq.ParquetFile(path, memory_map=False) as file:
            found = file.schema_arrow
            lacking = [name for name in columns if name not in found.names or found.field(name).type != _type(name)]
            if lacking or file.metadata.num_rows != sequences:
                raise UserError(
                    f"{path} does not fit its pack: {file.metadata.num_rows} rows of {sequences} pieces"
                    f"{', column ' + ', '.join(lacking) + ' missing or of another type' if lacking else ''}: pack again"
                )
            yield from file.iter_batches(BATCH_ROWS, columns=list(columns), use_threads=False)
    except (pa.ArrowException, OSError) as error:  # a hole in a column is an OSError
        told = " ".join(str(error).split())[:200]
        raise UserError(f"{path} is not a whole Parquet file ({told}): copy it again or pack again") from error


def piece_rows(prefix: Path, rows: Sequence[int], columns: Sequence[str]) -> list[dict[str, Any]]:
    """Single rows of the table of pieces, in the given order; reads each row group that holds one of them once."""
    found: dict[int, dict[str, Any]] = {}
    wanted = sorted(set(rows))
    with pq.ParquetFile(pieces_path(prefix), memory_map=False) as file:
        first = at = 0
        for group in range(file.metadata.num_row_groups):
            last = first + file.metadata.row_group(group).num_rows
            inside = []
            while at < len(wanted) and wanted[at] < last:
                inside.append(wanted[at])
                at += 1
            if inside:
                table = file.read_row_group(group, columns=list(columns), use_threads=False)
                taken = table.take(pa.array([row - first for row in inside])).to_pylist()
                found.update(zip(inside, taken, strict=True))
            first = last
            if at == len(wanted):
                break
    return [found[row] for row in rows]


def _type(name: str) -> pa.DataType:
    return PIECES.field(name).type
