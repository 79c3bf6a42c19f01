"""Kept texts of one unit -> token ids, ready to be packed: a unit step, run in parallel, read by `packing.pack_source`.

A token file is an Arrow IPC file in the row order of its kept file. Its schema metadata names the tokenizer, so that
token files of two tokenizers are never packed together.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from data_factory.batches import TextBatch
from data_factory.documents import read_batches
from ziya.errors import UserError
from ziya.files import atomic_path
from ziya.packs import token_dtype
from ziya.progress import done
from ziya.tokenizer import Tokenizer, load_tokenizer

ENCODE_BYTES = 8 << 20  # text that is encoded at once; a longer document goes alone
NARROW = [
    ("id", pa.string()),
    ("lang", pa.string()),
    ("tier", pa.string()),
    ("source", pa.string()),
    ("task", pa.string()),
    ("perplexity", pa.float32()),
    ("prompt_tokens", pa.int32()),  # leading ids that lie wholly inside the prompt
    ("length", pa.int64()),  # ids, without EOS
]
_KEY = b"tokenizer"


def token_schema(tokenizer: dict[str, Any]) -> pa.Schema:
    """Columns of a token file: NARROW and `tokens`, a list of uint16 or int32; the tokenizer's identity as metadata."""
    item = pa.from_numpy_dtype(token_dtype(tokenizer["vocab_size"]))
    identity = {_KEY: orjson.dumps(tokenizer, option=orjson.OPT_SORT_KEYS)}
    return pa.schema([*NARROW, ("tokens", pa.large_list(item))], metadata=identity)


def identity(tokenizer: Tokenizer) -> dict[str, Any]:
    """What token files and packs say of their tokenizer; equal for equal content, wherever the file lies."""
    return {
        "kind": tokenizer.kind,
        "fingerprint": tokenizer.fingerprint,
        "vocab_size": tokenizer.vocab_size,
        "eos_id": tokenizer.eos_id,
        "pad_id": tokenizer.pad_id,
    }


@lru_cache(maxsize=2)
def _loaded(path: str, changed: int, size: int, eos: str | None, pad: str | None) -> Tokenizer:
    return load_tokenizer(path, eos, pad)


def cached_tokenizer(path: Path | str, eos: str | None = None, pad: str | None = None) -> Tokenizer:
    """The tokenizer at `path`, loaded once a process while the file stays the same."""
    try:
        state = os.stat(path)
    except OSError:
        return load_tokenizer(path, eos, pad)  # says what is wrong
    return _loaded(str(path), state.st_mtime_ns, state.st_size, eos, pad)


def tokenize_unit(
    kept: Path, out: Path, tokenizer_path: Path | str, eos: str | None = None, pad: str | None = None
) -> dict[str, int]:
    """Encode every text of a kept file (schema KEPT) into the token file `out`; ids of whole texts, without EOS.

    Returns counts: documents, bytes (of text), tokens, prompt_tokens. Raises UserError as `load_tokenizer` does.
    """
    tokenizer = cached_tokenizer(tokenizer_path, eos, pad)
    schema = token_schema(identity(tokenizer))
    counts = {"documents": 0, "bytes": 0, "tokens": 0, "prompt_tokens": 0}
    columns = ["id", "text", "lang", "tier", "source", "task", "perplexity", "prompt_bytes"]
    with atomic_path(out) as temporary, pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, schema) as file:
        for table in read_batches(kept, columns):
            for part in _parts(table):
                batch = _encode(part, tokenizer, schema)
                file.write_batch(batch)
                size = int(TextBatch.from_arrow(part.column("text")).offsets[-1])
                done(batch.num_rows, size)
                counts["documents"] += batch.num_rows
                counts["tokens"] += int(np.sum(batch.column("length").to_numpy()))
                counts["prompt_tokens"] += int(np.sum(batch.column("prompt_tokens").to_numpy(), dtype=np.int64))
                counts["bytes"] += size
    return counts


def _parts(table: pa.Table) -> Iterator[pa.Table]:
    """Slices of at most ENCODE_BYTES of text, or of one document."""
    ends = TextBatch.from_arrow(table.column("text")).offsets
    first = 0
    while first < table.num_rows:
        last = int(np.searchsorted(ends, ends[first] + ENCODE_BYTES, side="right")) - 1
        last = min(max(last, first + 1), table.num_rows)
        yield table.slice(first, last - first)
        first = last


def _encode(table: pa.Table, tokenizer: Tokenizer, schema: pa.Schema) -> pa.RecordBatch:
    texts = TextBatch.from_arrow(table.column("text"))
    prompt_bytes = table.column("prompt_bytes").to_numpy()
    ids, offsets, prompts = tokenizer.encode_utf8(texts.data, texts.offsets, prompt_bytes)
    item = schema.field("tokens").type.value_type
    tokens = pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(ids.astype(item.to_pandas_dtype(), copy=False)))
    arrays = {"prompt_tokens": pa.array(prompts), "length": pa.array(np.diff(offsets)), "tokens": tokens}
    for name in ("id", "lang", "tier", "source", "task", "perplexity"):
        arrays[name] = table.column(name).combine_chunks().cast(schema.field(name).type)
    return pa.RecordBatch.from_arrays([arrays[name] for name in schema.names], schema=schema)


class TokenFile:
    """A token file open for reading; `tokenizer` is the identity of the tokenizer that made it."""

    def __init__(self, reader: pa.ipc.RecordBatchFileReader) -> None:
        self._reader = reader
        self.tokenizer: dict[str, Any] = orjson.loads(reader.schema.metadata[_KEY])

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        for number in range(self._reader.num_record_batches):
            yield self._reader.get_batch(number)


@contextmanager
def open_tokens(path: Path, columns: list[str] | None = None) -> Iterator[TokenFile]:
    """Open a token file, only `columns` of it (names in schema order) when given; batches come one by one."""
    options = pa.ipc.IpcReadOptions(use_threads=False)
    with pa.OSFile(str(path), "rb") as source:
        try:
            if columns is not None:
                schema = pa.ipc.open_file(source).schema
                options.included_fields = [schema.get_field_index(name) for name in columns]
            reader = pa.ipc.open_file(source, options=options)
        except (pa.ArrowInvalid, KeyError) as error:
            raise UserError(f"{path} is not a token file: remove it and run again") from error
        yield TokenFile(reader)
