"""Packs: the kept documents of one source -> samples of exactly `sequence_length` tokens in Megatron's indexed format.

    OUT/packs/SOURCE.bin, .idx             ziya.packs: one "document" a sample, one "sequence" a piece
    OUT/packs/SOURCE.documents.parquet     ziya.pack_files.PIECES: row i is sequence i
    OUT/packs/SOURCE.dropped.parquet       DROPPED: documents that are not in the pack, and why
    OUT/packs/SOURCE.json                  the manifest, written last

Documents pass through files of about BUCKET_TOKENS tokens, cut by the leading bits of the hash that orders them
(`shuffle`); one is in memory at a time, so memory does not grow with the input. Order, rows and bytes depend on the
documents, their ids, the seed and the settings: not on how documents are spread over kept files.
Accounting: documents = packed + dropped.
"""

from __future__ import annotations

import math
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from data_factory.batches import TextBatch
from data_factory.config import DataConfig, Source
from data_factory.documents import TableWriter, table_writer
from data_factory.pack_rows import Rows, Samples
from data_factory.shuffle import RATIO, Buckets, Sampler, of_source, spread
from data_factory.splice import splice
from data_factory.tokenize_unit import open_tokens, tokenize_unit
from data_factory.whole import whole
from ziya.errors import UserError
from ziya.files import file_digest, read_json
from ziya.pack_files import PIECES, TOKENIZER_FOLDER, write_manifest
from ziya.packs import PackWriter, bin_path, idx_path, pack_writer, token_dtype
from ziya.progress import done

__all__ = ["check_tokenizer", "discard_others", "pack_source", "token_files", "tokenize_unit"]

VERSION = 1
SUFFIXES = (".json", ".idx", ".bin", ".documents.parquet", ".dropped.parquet")
BUCKET_TOKENS = 1 << 23  # 16 MB of uint16 or 32 MB of int32; changes the samples of `whole`, never those of `splice`
TOO_LONG, LEFT_OUT = "packing.sequence_length", "sources.ratio"

DROPPED = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("rule", pa.string()),  # the setting that decided
        ("value", pa.float64()),  # packing.sequence_length: tokens of the document with EOS
        ("threshold", pa.float64()),
    ]
)


def token_files(out: Path) -> list[Path]:
    """The files that `tokenize_unit(..., out, ...)` leaves."""
    return [out]


def pack_source(
    token_files: Sequence[Path],
    source: Source,
    config: DataConfig,
    out: Path,
    work: Path,
    *,
    bucket_tokens: int = BUCKET_TOKENS,
) -> dict[str, Any]:
    """Pack all documents of `source` in `token_files` into `out` (OUT/packs); `work` is scratch space.

    Returns the manifest: documents, packed, dropped (rule -> documents), pieces, samples, tokens (of samples, padding
    included), padding and eos tokens, padding_share, tokens_by (language -> tier -> tokens), settings, tokenizer, file
    digests. Without documents of the source nothing is written. Raises UserError when token files or earlier packs come
    from another tokenizer. Memory: measured 230 MB beside the libraries at the default bucket size and 16-bit tokens,
    whatever the input; with a document longer than a bucket, about three times its tokens more.
    """
    out.mkdir(parents=True, exist_ok=True)
    prefix = out / source.name
    files = {name: out / f"{source.name}{name}" for name in SUFFIXES}
    documents, tokens, tokenizer = _totals(token_files, source.name)
    if tokenizer is None or documents == 0:
        for path in files.values():
            path.unlink(missing_ok=True)
        return {"documents": 0, "packed": 0, "dropped": {}, "samples": 0, "tokens": 0, "padding_share": 0.0}
    check_tokenizer(out, tokenizer["fingerprint"])
    files[".json"].unlink(missing_ok=True)
    mode = _mode(source, config)
    length = config.packing.sequence_length
    sampler = Sampler(source.ratio, config.seed)
    sampler.fit(_ids(token_files, source.name), _ids(token_files, source.name))
    scratch = work / f"pack-{source.name}"
    shutil.rmtree(scratch, ignore_errors=True)
    count = max(1, math.ceil(tokens * max(source.ratio, 1.0) / bucket_tokens))
    buckets = Buckets(scratch, count)
    spread(token_files, source.name, sampler, buckets)
    tally = _Tally()
    with ExitStack() as stack:
        writer = stack.enter_context(pack_writer(prefix, length, token_dtype(tokenizer["vocab_size"])))
        pieces = stack.enter_context(table_writer(files[".documents.parquet"], PIECES))
        dropped = stack.enter_context(table_writer(files[".dropped.parquet"], DROPPED))
        counted = _count(buckets, dropped, tally, length if mode == "whole" else None)
        maker = whole if mode == "whole" else splice
        for samples in maker(counted, length, tokenizer["eos_id"], tokenizer["pad_id"]):
            _write(samples, writer, pieces, tally)
        written = {"samples": writer.samples, "sequences": writer.sequences, "tokens": writer.tokens}
    shutil.rmtree(scratch, ignore_errors=True)
    counted_out = sum(tally.dropped.values())
    assert tally.packed + counted_out == documents, f"{documents} in, {tally.packed} packed, {counted_out} dropped"
    manifest = {
        "version": VERSION,
        "source": source.name,
        "mode": mode,
        "sequence_length": length,
        "seed": config.seed,
        "ratio": source.ratio,
        "bucket_tokens": bucket_tokens,
        "tokenizer": tokenizer,
        "dtype": token_dtype(tokenizer["vocab_size"]).name,
        "documents": documents,
        "packed": tally.packed,
        "copies": tally.copies,
        "dropped": dict(sorted(tally.dropped.items())),
        **written,
        "eos_tokens": tally.copies,
        "padding_tokens": tally.padding,
        "padding_share": tally.padding / max(writer.tokens, 1),
        "prompt_tokens": tally.prompt,
        "tokens_by": {lang: dict(sorted(tiers.items())) for lang, tiers in sorted(tally.by.items())},
        "files": {
            path.name: {"bytes": path.stat().st_size, "xxh3_128": file_digest(path)}
            for path in (bin_path(prefix), idx_path(prefix), files[".documents.parquet"], files[".dropped.parquet"])
        },
    }
    write_manifest(prefix, manifest)
    return manifest


def check_tokenizer(packs: Path, fingerprint: str) -> None:
    """Packs that lie side by side share one tokenizer; UserError names the pack that was made with another one."""
    for path, earlier in _fingerprints(packs):
        if earlier != fingerprint:
            raise UserError(
                f"{path} was packed with a tokenizer of fingerprint {earlier}, tokenizer.path now names one of "
                f"{fingerprint}: set tokenizer.path, tokenizer.eos and tokenizer.pad back, or make all packs anew with "
                f"`ziya-data pack {packs.parent} tokenizer.path=FILE --replace`"
            )


def discard_others(packs: Path, fingerprint: str) -> None:
    """Void the packs in a folder when one of them was made with another tokenizer than `fingerprint`.

    Their manifests and the kept tokenizer go: a pack without a manifest is none, so from here to the end of packing, at
    whatever moment it is killed, no pack lies beside one of another tokenizer. `pack_source` replaces the other files.
    """
    found = list(_fingerprints(packs))
    if all(earlier == fingerprint for _, earlier in found):
        return
    shutil.rmtree(packs / TOKENIZER_FOLDER, ignore_errors=True)  # first: manifests say what is left to do
    for path, _ in found:
        path.unlink()


def packed_with(packs: Path) -> str | None:
    """Fingerprint of the tokenizer that the packs in a folder share; None when it holds no pack."""
    return next((fingerprint for _, fingerprint in _fingerprints(packs)), None)


def _fingerprints(packs: Path) -> Iterator[tuple[Path, str]]:
    for path in sorted(packs.glob("*.json")):
        fingerprint = read_json(path).get("tokenizer", {}).get("fingerprint")
        if fingerprint is not None:
            yield path, fingerprint


def _mode(source: Source, config: DataConfig) -> str:
    if config.packing.mode != "auto":
        return str(config.packing.mode)
    return "whole" if source.kind == "supervised" else "splice"


def _totals(token_files: Sequence[Path], source: str) -> tuple[int, int, dict[str, Any] | None]:
    """Documents and tokens (with EOS) of a source, and the tokenizer that all files share."""
    documents = tokens = 0
    tokenizer: dict[str, Any] | None = None
    for path in token_files:
        with open_tokens(path, ["source", "length"]) as file:
            if tokenizer is not None and file.tokenizer != tokenizer:
                raise UserError(f"{path} comes from another tokenizer than {token_files[0]}: remove both and run again")
            tokenizer = file.tokenizer
            for batch in file:
                table = of_source(batch, source)
                documents += table.num_rows
                tokens += int(table.column("length").to_numpy().sum()) + table.num_rows
    return documents, tokens, tokenizer


def _ids(token_files: Sequence[Path], source: str) -> Iterator[TextBatch]:
    for path in token_files:
        with open_tokens(path, ["id", "source"]) as file:
            for batch in file:
                table = of_source(batch, source)
                if table.num_rows:
                    yield TextBatch.from_arrow(table.column("id"))


class _Tally:
    """Counts that go into the manifest."""

    def __init__(self) -> None:
        self.packed = self.copies = self.padding = self.prompt = 0
        self.dropped: Counter[str] = Counter()
        self.by: dict[str, Counter[str]] = {}


def _count(buckets: Buckets, dropped: TableWriter, tally: _Tally, longest: int | None) -> Iterator[pa.Table]:
    """Pass the buckets on; count their documents and write the dropped ones with their reason, in shuffled order."""
    for table in buckets:
        rows = Rows(table)
        first = rows.copy == 0
        packed = rows.packed(longest)
        tally.packed += int(np.count_nonzero(packed & first))
        tally.copies += int(np.count_nonzero(packed))
        out = rows.in_order(~packed & first)
        if len(out):
            left_out = rows.state[out] == RATIO
            names = np.where(left_out, LEFT_OUT, TOO_LONG)
            tally.dropped.update(names.tolist())
            value = np.where(left_out, np.nan, rows.lengths[out] + 1)
            taken = table.select(["id", "source"]).take(pa.array(out))
            columns = [taken.column("id"), taken.column("source"), pa.array(names, pa.string())]
            limit = np.where(left_out, np.nan, longest or 0)
            columns += [pa.array(value, from_pandas=True), pa.array(limit, from_pandas=True)]
            dropped.write(pa.table(columns, schema=DROPPED))
        del rows
        done(table.num_rows, table.nbytes)
        yield table
        del table  # before the next one is read


def _write(samples: Samples, writer: PackWriter, pieces: TableWriter, tally: _Tally) -> None:
    sample: npt.NDArray[np.int64] = samples.pieces.column("sample").to_numpy() - writer.samples
    lengths = samples.pieces.column("tokens").to_numpy()
    count = np.bincount(sample, minlength=len(samples.tokens) // writer.sequence_length)
    writer.add(samples.tokens, lengths, count)
    number = np.arange(len(sample)) - np.repeat(np.cumsum(count) - count, count)
    pieces.write(samples.pieces.append_column("piece", pa.array(number.astype(np.int32))))
    tally.prompt += int(samples.pieces.column("prompt_tokens").to_numpy().sum(dtype=np.int64))
    padding = pc.equal(samples.pieces.column("id"), "")
    tally.padding += int(lengths[padding.to_numpy()].sum(dtype=np.int64))
    groups = samples.pieces.filter(pc.invert(padding)).group_by(["lang", "tier"], use_threads=False)
    for row in groups.aggregate([("tokens", "sum")]).to_pylist():
        tally.by.setdefault(row["lang"], Counter())[row["tier"]] += row["tokens_sum"]
