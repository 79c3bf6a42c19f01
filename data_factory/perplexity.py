"""AS: perplexity of documents under one KenLM model a language, over SentencePiece pieces (paper section AS; rules.md
Q09).

A model is four files: `zh.klm` (KenLM binary), `zh.klm.spm` (SentencePiece model), `zh.klm.ngrams` (the same n-grams
compiled for our kernels, see `ngram_table`) and `zh.klm.json` (manifest, written last). `ziya-data train-lm` makes them;
this module refuses any set that does not belong together. A model whose manifest names no table is scored by the
libraries SentencePiece and KenLM, one line at a time: same values but for rounding, about five times slower.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import kenlm
import numpy as np
import numpy.typing as npt
import sentencepiece

from data_factory import lm_kernels, lm_text, ngram_kernels, ngram_table
from data_factory.batches import F32, I64, U8, TextBatch
from ziya.errors import UserError
from ziya.files import digest, file_digest, read_json

FORMAT = 1  # of the manifest
TABLE = "table_digest"  # key of the manifest: absent when the model has no compiled n-grams
SCORES = 2  # version of the scores; raise it whenever an output changes
_CHUNK_BYTES = 1 << 20  # lines are scored in pieces of about this size, so that memory does not follow the batch


def side_cars(model: Path) -> tuple[Path, Path]:
    """The SentencePiece model and the manifest that stand beside a KenLM model."""
    return model.with_name(model.name + ".spm"), model.with_name(model.name + ".json")


def table_path(model: Path) -> Path:
    """The compiled n-grams that stand beside a KenLM model."""
    return model.with_name(model.name + ".ngrams")


def check_model(language: str, path: str | Path, *, verify: bool = True) -> dict[str, Any]:
    """The manifest of a model after checking that its files are there and belong together.

    `verify` also hashes the model files. Raises UserError for a missing file, another language, a changed file, or
    a model trained on text of another normaliser version.
    """
    model = Path(path)
    spm, manifest_path = side_cars(model)
    name = f"scoring.models.{language} = {model}"
    for file, what in ((model, "the KenLM model"), (spm, "its SentencePiece model"), (manifest_path, "its manifest")):
        if not file.is_file():
            raise UserError(
                f"{name}: {what} {file} is missing; train it with `ziya-data train-lm --lang {language} --output "
                f"{model}`"
            )
    manifest = read_json(manifest_path)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise UserError(
            f"{manifest_path} is not a manifest of this version of train-lm (format {FORMAT}): train the model again"
        )
    if manifest["language"] != language:
        raise UserError(
            f"{name}: the model was trained for {manifest['language']!r}; give it as "
            f"scoring.models.{manifest['language']}"
        )
    if manifest["normaliser"] != lm_text.VERSION:
        raise UserError(
            f"{name}: the model was trained on text of normaliser version {manifest['normaliser']}, this program has "
            f"{lm_text.VERSION}: train it again"
        )
    digests = [(model, "model_digest"), (spm, "spm_digest")]
    if TABLE in manifest:
        table = table_path(model)
        if not table.is_file():
            raise UserError(f"{name}: its n-gram table {table} is missing; copy all files of one training together")
        digests.append((table, TABLE))
    if verify:
        for file, key in digests:
            if file_digest(file) != manifest[key]:
                raise UserError(
                    f"{name}: {file} is not the file that {manifest_path.name} describes; copy all files of one "
                    f"training together"
                )
    return manifest


class Engine:
    """A language model and its SentencePiece pieces, without a manifest.

    With a compiled table both halves are our kernels, where they cover the SentencePiece model. Else pieces come from
    SentencePiece and scores from KenLM.
    """

    def __init__(self, model: Path, spm: Path, table: Path | None = None) -> None:
        """Load what is needed: the table, or the KenLM model. UserError when a file is not what its name says."""
        self._pieces: lm_kernels.Pieces | None = None
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_file=str(spm))
            if table is not None:
                self._table = ngram_table.load(table)
                self._pieces = lm_kernels.Pieces.of(self._processor, self._table.words, self._table.unknown)
            self._model: Any = kenlm.Model(str(model)) if self._pieces is None else None
        except (OSError, RuntimeError, ValueError) as error:
            message = " ".join(str(error).split())
            raise UserError(f"the language model {model} cannot be loaded ({message}): train it again") from error

    def score(self, data: U8, offsets: I64) -> tuple[npt.NDArray[np.float64], I64]:
        """(log10 probability, pieces), both [m], of lines as in `lm_text.Lines`, each with sentence start and end.

        A line's values depend on that line alone.
        """
        data, offsets = np.ascontiguousarray(data), np.ascontiguousarray(offsets)
        logs, counts = np.zeros(len(offsets) - 1), np.zeros(len(offsets) - 1, np.int64)
        score = self._by_library if self._pieces is None else self._by_kernels
        begin = 0
        while begin < len(logs):
            end = max(begin + 1, int(np.searchsorted(offsets, offsets[begin] + _CHUNK_BYTES, side="right")) - 1)
            logs[begin:end], counts[begin:end] = score(data, offsets[begin : end + 1])
            begin = end
        return logs, counts

    def _by_kernels(self, data: U8, offsets: I64) -> tuple[npt.NDArray[np.float64], I64]:
        assert self._pieces is not None
        words, ends = self._pieces.numbers(data, offsets)
        return ngram_kernels.score(words, ends, self._table), np.diff(ends, prepend=0)

    def _by_library(self, data: U8, offsets: I64) -> tuple[npt.NDArray[np.float64], I64]:
        texts = data[offsets[0] : offsets[-1]].tobytes().decode().split("\n")[:-1]
        encoded = self._processor.encode(texts, out_type=str, num_threads=1)
        # The model takes bytes as they are and adds sentence start and end by itself.
        logs = np.array([self._model.score(" ".join(pieces).encode()) for pieces in encoded], np.float64)
        return logs, np.array([len(pieces) for pieces in encoded], np.int64)


class Scorer:
    """Perplexity of T1 under the model of each document's language."""

    def __init__(self, models: Mapping[str, str], *, verify: bool = True) -> None:
        """Load `models` (language -> path of a .klm file). `verify` compares file hashes; raises UserError, see
        `check_model`."""
        self._manifests = {
            language: check_model(language, models[language], verify=verify) for language in sorted(models)
        }
        self._models = {
            language: _engine(Path(models[language]), manifest) for language, manifest in self._manifests.items()
        }

    @property
    def languages(self) -> list[str]:
        """The languages with a model, sorted."""
        return list(self._models)

    @property
    def fingerprint(self) -> str:
        """32 hexadecimal characters that change with any model or with the normaliser, never with paths."""
        parts = [
            f"{name}:{manifest['model_digest']}:{manifest['spm_digest']}:{manifest.get(TABLE, '-')}"
            for name, manifest in self._manifests.items()
        ]
        return digest("|".join([f"lm_text {lm_text.VERSION} scores {SCORES}", *parts]).encode())

    def score(self, t1: TextBatch, langs: Sequence[str]) -> F32:
        """Perplexity of each document, float32 [n]: 10^(-sum of log10 probabilities / (pieces + lines)), as in cc_net.

        `langs` [n]: language codes. NaN where the language has no model or the document has no text. A document's value
        depends on its own text alone.
        """
        return self.measure(t1, langs)[0]

    def measure(self, t1: TextBatch, langs: Sequence[str], known: F32 | None = None) -> tuple[F32, F32]:
        """(perplexity, bits per character of normalised text), float32 [n] each, NaN as in `score`.

        `known` [n]: perplexities that `score` gave for these texts before, NaN where there is none; they are taken as
        they are.
        """
        if len(langs) != len(t1):
            raise ValueError(f"{len(t1)} documents but {len(langs)} languages")
        perplexity, bits = np.full(len(t1), np.nan, np.float32), np.full(len(t1), np.nan, np.float32)
        codes = np.asarray(langs, dtype=object)
        for language, model in self._models.items():
            index = np.flatnonzero(codes == language)
            if not len(index):
                continue
            total, length, chars = _lengths(model, _take(t1, index))
            with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
                found = np.minimum(10.0 ** (-total / length), np.finfo(np.float32).max).astype(np.float32)
                if known is not None:
                    found = np.where(np.isnan(known[index]), found, known[index]).astype(np.float32)
                perplexity[index] = found
                bits[index] = np.log2(found.astype(np.float64)) * length / chars
        return perplexity, bits


def _engine(model: Path, manifest: Mapping[str, Any]) -> Engine:
    return Engine(model, side_cars(model)[0], table_path(model) if TABLE in manifest else None)


def _lengths(model: Engine, t1: TextBatch) -> tuple[npt.NDArray[np.float64], I64, I64]:
    """Of each document [n]: log10 probability; pieces and line ends; characters of normalised text."""
    lines = lm_text.lm_lines(t1)
    logs, pieces = model.score(lines.data, lines.offsets)
    # bincount adds in line order, in float64: the same sum for a document in any batch.
    total = np.bincount(lines.document, logs, len(t1)).astype(np.float64)
    length = np.bincount(lines.document, pieces + 1, len(t1)).astype(np.int64)
    return total, length, lm_kernels.characters(lines.data, lines.offsets, lines.document, len(t1))


def _take(batch: TextBatch, index: npt.NDArray[np.int64]) -> TextBatch:
    """The documents at `index` (increasing), copied unless it is all."""
    if len(index) == len(batch):
        return batch
    parts = [batch.data[batch.offsets[i] : batch.offsets[i + 1]] for i in index]
    offsets = np.zeros(len(index) + 1, np.int64)
    np.cumsum(batch.lengths()[index], out=offsets[1:])
    return TextBatch(np.concatenate(parts), offsets)
