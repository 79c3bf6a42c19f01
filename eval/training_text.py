"""Training data as batches of UTF-8 documents with ids: kept documents (Parquet), JSONL, plain text, or token packs.

Packs are turned back into text by the tokenizer that spelled them. A text that a sample's border cuts lies in neighbouring
pieces of one id, which are joined again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from eval import text_files
from eval.models_found import foreign_folder
from ziya.errors import UserError
from ziya.ngrams import I64, U8, utf8
from ziya.pack_files import kept_tokenizer, piece_batches, read_manifest, tokenizer_fingerprint
from ziya.packs import PackReader, bin_path, idx_path
from ziya.tokenizer import Tokenizer, load_tokenizer

BATCH_BYTES = 16 << 20
DOCUMENT_FILES = (".parquet", ".jsonl", ".jsonl.gz", ".json", ".txt", ".txt.gz")
_SPECIAL = re.compile(r"<[|/]?\w+\|?>")
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True)
class Batch:
    """Document i is data[offsets[i]:offsets[i + 1]] (UTF-8) and is called `name(i)`."""

    data: U8
    offsets: I64
    name: Callable[[int], str]


def document_batches(places: Sequence[Path]) -> Iterator[Batch]:
    """Documents of files and folders, and of `kept/` below an output folder of the data factory. A place without any is refused
    at once, a damaged file when it is reached."""
    paths = [path for place in places for path in document_files(place)]
    return (batch for path in paths for batch in (_parquet(path) if path.suffix == ".parquet" else _lines(path)))


def document_files(place: Path) -> list[Path]:
    """The document files at a place, in order; UserError when there are none."""
    if place.is_file():
        if not place.name.endswith(DOCUMENT_FILES):
            raise UserError(f"--documents {place} is no file of documents: give {', '.join(DOCUMENT_FILES)} files or a folder with some")
        return [place]
    if not place.is_dir():
        raise UserError(f"--documents {place} does not exist: give a folder or a file with documents")
    if foreign := foreign_folder(place):
        raise UserError(f"--documents {place} is {foreign}, no training text: give the documents that the model was trained on")
    folder = place / "kept" if (place / "kept").is_dir() else place
    found = sorted(path for path in folder.rglob("*") if path.name.endswith(DOCUMENT_FILES) and path.is_file())
    if not found:
        raise UserError(f"--documents {place} holds no documents: give a folder with {', '.join(DOCUMENT_FILES)} files")
    return found


def _parquet(path: Path) -> Iterator[Batch]:
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if "text" not in names:
                raise UserError(f"{path} has no column text (it has {', '.join(names)}): give kept documents")
            columns = ["text", "id"] if "id" in names else ["text"]
            for group in range(file.num_row_groups):
                yield _of_table(file.read_row_group(group, columns=columns), f"{path.name}, row group {group}")
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} is not a whole Parquet file with texts ({text_files.brief(error)}): restore it") from error


def _of_table(table: pa.Table, where: str) -> Batch:
    texts = table["text"].combine_chunks().cast(pa.large_string()).fill_null("")
    _, offsets, data = texts.buffers()
    begin = np.frombuffer(offsets, np.int64)[texts.offset : texts.offset + len(texts) + 1] if len(texts) else np.zeros(1, np.int64)
    content = np.frombuffer(data, np.uint8) if data is not None else np.zeros(0, np.uint8)
    ids = table["id"] if "id" in table.column_names else None

    def name(i: int) -> str:
        return str(ids[i].as_py()) if ids is not None else f"{where}, row {i}"

    return Batch(content, begin, name)


def _lines(path: Path) -> Iterator[Batch]:
    """JSONL a document a line; a .json or plain text file is one document."""
    plain = path.name.removesuffix(".gz")
    if not plain.endswith(".jsonl"):
        content = text_files.content(path)
        is_json = plain.endswith(".json")
        text = json_text(text_files.json_value(content, str(path))) if is_json else content.decode(errors="replace")
        yield _batch([(path.name, text)])
        return
    pending: list[tuple[str, str]] = []
    size = 0
    for number, value, length in text_files.json_lines(path):
        name = value.get("id") if isinstance(value, dict) else None
        pending.append((str(name) if isinstance(name, (str, int)) else f"{path.name}:{number}", json_text(value)))
        size += length
        if size >= BATCH_BYTES:
            yield _batch(pending)
            pending, size = [], 0
    yield _batch(pending)


def json_text(value: Any) -> str:
    """`text` of a JSON document; without one, all its strings, a line each (question, answer, messages ...)."""
    if isinstance(value, dict) and isinstance(value.get("text"), str):
        return str(value["text"])
    return "\n".join(_strings(value))


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)


def _batch(named: list[tuple[str, str]]) -> Batch:
    names = [name for name, _ in named]
    return Batch(*utf8([text for _, text in named]), names.__getitem__)


def pack_prefixes(places: Sequence[Path]) -> list[Path]:
    """Packs below folders (every .bin with its .idx), or given by their prefix or one of their files, in order."""
    found = []
    for place in places:
        one = place.with_suffix("") if place.is_file() and place.suffix in (".bin", ".idx") else place
        if one.name and (idx_path(one).is_file() or bin_path(one).is_file()):
            inside = [one]
        else:
            if not place.is_dir():
                what = "is no file of a pack" if place.exists() else "does not exist"
                raise UserError(f"--packs {place} {what}: give a folder with .bin and .idx files, or their path without the ending")
            folder = place / "packs" if (place / "packs").is_dir() else place
            # A pack that lost its .idx is known by its table of pieces; other .bin files may be anything.
            inside = sorted({
                path.with_name(path.name.removesuffix(ending))
                for ending in (".idx", ".documents.parquet")
                for path in folder.rglob(f"*{ending}")
            })
        if not inside:
            raise UserError(f"--packs {place} holds no packs: give a folder with .bin and .idx files")
        for prefix in inside:
            for path in (bin_path(prefix), idx_path(prefix)):
                if not path.is_file():
                    raise UserError(f"{path} is missing, its pack is not whole: copy it here, or leave the other files of it out")
        found += inside
    return found


def pack_batches(places: Sequence[Path], tokenizer_path: Path | None) -> Iterator[Batch]:
    """Texts of packs. `tokenizer_path` None: the copy that lies beside them. UserError, at once, without any, or with another than
    the one that spelled a pack."""
    prefixes = pack_prefixes(places)
    if tokenizer_path is None:
        tokenizer_path = kept_tokenizer(prefixes[0].parent)
    if tokenizer_path is None:
        raise UserError(f"{prefixes[0]} holds tokens: give --tokenizer, the file that the packs were made with")
    tokenizer = load_tokenizer(tokenizer_path)
    content = tokenizer_path.read_bytes()
    described = []
    for prefix in prefixes:
        manifest = read_manifest(prefix)
        described.append(manifest is not None)
        if manifest is not None:
            known = manifest.tokenizer
            given = tokenizer_fingerprint(tokenizer.kind, content, known.eos_id, known.pad_id)
            if given != known.fingerprint:
                raise UserError(
                    f"{prefix}.json tells of a tokenizer with fingerprint {known.fingerprint}, {tokenizer_path} has {given}: "
                    "give --tokenizer, the file that the packs were made with"
                )
    spelling = Spelling.of(tokenizer)
    return (batch for prefix, told in zip(prefixes, described, strict=True) for batch in _pack(prefix, spelling, told))


@numba.njit(cache=True)
def _spell(tokens, starts, letters, out):  # type: ignore[no-untyped-def]
    """Write the bytes of each token; returns their number."""
    size = 0
    for token in tokens:
        for place in range(starts[token], starts[token + 1]):
            out[size] = letters[place]
            size += 1
    return size


@dataclass(frozen=True)
class Spelling:
    """Bytes of every token: letters[starts[i]:starts[i + 1]]."""

    letters: U8
    starts: I64

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Spelling:
        """Byte-level pieces by GPT-2's table of characters, all others by `▁` and `<0xNN>`; special pieces are line feeds."""
        pieces = tokenizer.pieces(range(tokenizer.vocab_size))
        byte_level = tokenizer.kind == "huggingface" and any("Ġ" in piece for piece in pieces) and "▁" not in "".join(pieces)
        table = _byte_characters()
        spelled = []
        for number, piece in enumerate(pieces):
            byte = _BYTE.fullmatch(piece)
            special = number in (tokenizer.eos_id, tokenizer.pad_id) or _SPECIAL.fullmatch(piece)
            if special and not byte:
                spelled.append(b"\n")
            elif byte_level and all(character in table for character in piece):
                spelled.append(bytes(table[character] for character in piece))
            else:
                spelled.append(bytes([int(byte[1], 16)]) if byte else piece.replace("▁", " ").encode())
        starts = np.concatenate([np.zeros(1, np.int64), np.cumsum([len(item) for item in spelled], dtype=np.int64)])
        return cls(np.frombuffer(b"".join(spelled), np.uint8), starts)

    def text(self, tokens: npt.NDArray[Any]) -> U8:
        """UTF-8 of tokens; ids outside the vocabulary (padding rows of an embedding) are skipped."""
        inside = tokens[tokens.astype(np.int64) < len(self.starts) - 1].astype(np.int64)
        out = np.empty(int((self.starts[inside + 1] - self.starts[inside]).sum()), np.uint8)
        _spell(inside, self.starts, self.letters, out)
        return out


def _byte_characters() -> dict[str, int]:
    """Character -> byte of byte-level vocabularies: printable bytes stand for themselves, the others for U+0100 and on."""
    plain = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + place): byte for place, byte in enumerate(others)}


def _pack(prefix: Path, spelling: Spelling, described: bool) -> Iterator[Batch]:
    reader = PackReader(prefix)
    parts: list[U8] = []
    names: list[str] = []
    ends: list[int] = []
    size = 0

    def flush() -> Batch:
        offsets = np.concatenate([np.zeros(1, np.int64), np.array(ends, np.int64)])
        kept = list(names)
        return Batch(np.concatenate([*parts, np.zeros(0, np.uint8)]), offsets, kept.__getitem__)

    for number, identity in enumerate(_piece_ids(prefix, reader.sequences, described)):
        if identity == "":
            continue  # padding
        if size >= BATCH_BYTES and (not names or identity != names[-1]):
            yield flush()
            parts, names, ends, size = [], [], [], 0
        text = spelling.text(reader.sequence(number))
        parts.append(text)
        size += len(text)
        if names and identity == names[-1]:
            ends[-1] = size
        else:
            names.append(identity)
            ends.append(size)
    yield flush()
    reader.close()


def _piece_ids(prefix: Path, sequences: int, described: bool) -> Iterator[str]:
    if not described:  # a plain Megatron dataset
        yield from (f"{prefix.name}, sequence {number}" for number in range(sequences))
        return
    for batch in piece_batches(prefix, ["id"], sequences):
        yield from batch["id"].to_pylist()
