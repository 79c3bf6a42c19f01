"""AS: perplexity of documents under one KenLM model a language, over SentencePiece pieces (paper section AS; rules.md
Q09).

A model is three files: `zh.klm` (KenLM binary), `zh.klm.spm` (SentencePiece model) and `zh.klm.json` (manifest, written
last).
`ziya-data train-lm` makes them; this module refuses any set that does not belong together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import kenlm
import numpy as np
import numpy.typing as npt
import sentencepiece

from data_factory import lm_kernels, lm_text
from data_factory.batches import F32, I64, U8, TextBatch
from ziya.errors import UserError
from ziya.files import digest, file_digest, read_json

FORMAT = 1  # of the manifest
_CHUNK_BYTES = (
    1 << 20
)  # lines are handed to SentencePiece in pieces of about this size, so that memory does not follow the batch


def side_cars(model: Path) -> tuple[Path, Path]:
    """The SentencePiece model and the manifest that stand beside a KenLM model."""
    return model.with_name(model.name + ".spm"), model.with_name(model.name + ".json")


def check_model(language: str, path: str | Path, *, verify: bool = True) -> dict[str, Any]:
    """The manifest of a model after checking that its three files are there and belong together.

    `verify` also hashes the two model files. Raises UserError for a missing file, another language, a changed file, or
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
    if verify:
        for file, key in ((model, "model_digest"), (spm, "spm_digest")):
            if file_digest(file) != manifest[key]:
                raise UserError(
                    f"{name}: {file} is not the file that {manifest_path.name} describes; copy all three files of one "
                    f"training together"
                )
    return manifest


class Engine:
    """A KenLM model and its SentencePiece pieces, without a manifest.

    Pieces come from our kernel where it covers the SentencePiece model, else from the library; both give the same
    pieces. Scores come from the KenLM library. Equal lines of a call are scored once.
    """

    def __init__(self, model: Path, spm: Path, *, library: bool = False) -> None:
        """Load both; `library` asks for SentencePiece's own segmentation in any case. UserError when a file is not what
        its name says."""
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_file=str(spm))
            self._model: Any = kenlm.Model(str(model))
            self._pieces = None if library else lm_kernels.Pieces.of(self._processor)
        except (OSError, RuntimeError, ValueError) as error:
            message = " ".join(str(error).split())
            raise UserError(f"the language model {model} cannot be loaded ({message}): train it again") from error

    def score(self, data: U8, offsets: I64, *, scored: bool = True) -> tuple[npt.NDArray[np.float64], I64]:
        """(log10 probability, pieces), both [m], of lines as in `lm_text.Lines`, each with sentence start and end.

        Without `scored` the pieces are counted and the probabilities stay 0.
        """
        data, offsets = np.ascontiguousarray(data), np.ascontiguousarray(offsets)
        first = lm_kernels.first_lines(data, offsets)
        chosen = np.flatnonzero(first == np.arange(len(first)))
        if len(chosen) < len(first):
            data, offsets = lm_kernels.take_lines(data, offsets, chosen)
        logs, counts = self._score_all(data, offsets, scored)
        place = np.searchsorted(chosen, first)
        return logs[place], counts[place]

    def _score_all(self, data: U8, offsets: I64, scored: bool) -> tuple[npt.NDArray[np.float64], I64]:
        logs, counts = np.zeros(len(offsets) - 1), np.zeros(len(offsets) - 1, np.int64)
        score = self._model.score  # takes bytes as they are; True, True: sentence start and end, in one call of C++
        begin = 0
        while begin < len(logs):
            end = max(begin + 1, int(np.searchsorted(offsets, offsets[begin] + _CHUNK_BYTES, side="right")) - 1)
            if self._pieces is not None:
                joined, counts[begin:end] = self._pieces.joined(data, offsets[begin : end + 1])
                lines = joined.tobytes().split(b"\n")[:-1] if scored else []
            else:
                texts = data[offsets[begin] : offsets[end]].tobytes().decode().split("\n")[:-1]
                encoded = self._processor.encode(texts, out_type=str, num_threads=1)
                counts[begin:end] = [len(pieces) for pieces in encoded]
                lines = [" ".join(pieces).encode() for pieces in encoded]
            if scored:
                logs[begin:end] = np.fromiter(map(score, lines), np.float64, end - begin)
            begin = end
        return logs, counts


class Scorer:
    """Perplexity of T1 under the model of each document's language."""

    def __init__(self, models: Mapping[str, str], *, verify: bool = True) -> None:
        """Load `models` (language -> path of a .klm file). `verify` compares file hashes; raises UserError, see
        `check_model`."""
        self._manifests = {
            language: check_model(language, models[language], verify=verify) for language in sorted(models)
        }
        self._models = {
            language: Engine(Path(models[language]), side_cars(Path(models[language]))[0])
            for language in self._manifests
        }

    @property
    def languages(self) -> list[str]:
        """The languages with a model, sorted."""
        return list(self._models)

    @property
    def fingerprint(self) -> str:
        """32 hexadecimal characters that change with any model or with the normaliser, never with paths."""
        parts = [
            f"{name}:{manifest['model_digest']}:{manifest['spm_digest']}" for name, manifest in self._manifests.items()
        ]
        return digest("|".join([f"lm_text {lm_text.VERSION}", *parts]).encode())

    def score(self, t1: TextBatch, langs: Sequence[str]) -> F32:
        """Perplexity of each document, float32 [n]: 10^(-sum of log10 probabilities / (pieces + lines)), as in cc_net.

        `langs` [n]: language codes. NaN where the language has no model or the document has no text. A document's value
        depends on its own text alone.
        """
        return self._of_languages(t1, langs, lambda model, part, index: (_perplexity(*_lengths(model, part)),))[0]

    def measure(self, t1: TextBatch, langs: Sequence[str], known: F32 | None = None) -> tuple[F32, F32]:
        """(perplexity, bits per character of normalised text), float32 [n] each, NaN as in `score`.

        `known` [n]: perplexities that `score` gave for these texts before, NaN where there is none; they are not
        computed again.
        """
        before = np.full(len(t1), np.nan, np.float32) if known is None else known

        def values(model: Engine, part: TextBatch, index: I64) -> tuple[F32, F32]:
            perplexity = before[index].astype(np.float32)
            length, chars = np.zeros(len(part), np.int64), np.zeros(len(part), np.int64)
            for scored in (False, True):
                rows = np.flatnonzero(np.isnan(perplexity) == scored)
                if not len(rows):
                    continue
                total, length[rows], chars[rows] = _lengths(model, _take(part, rows), scored=scored, characters=True)
                if scored:
                    perplexity[rows] = _perplexity(total, length[rows], chars[rows])
            with np.errstate(divide="ignore", invalid="ignore"):
                return perplexity, (np.log2(perplexity.astype(np.float64)) * length / chars).astype(np.float32)

        perplexity, bits = self._of_languages(t1, langs, values)
        return perplexity, bits

    def _of_languages(
        self, t1: TextBatch, langs: Sequence[str], values: Callable[[Engine, TextBatch, I64], tuple[F32, ...]]
    ) -> tuple[F32, F32]:
        """`values` of the documents of each language with a model, joined; NaN elsewhere."""
        if len(langs) != len(t1):
            raise ValueError(f"{len(t1)} documents but {len(langs)} languages")
        result = np.full(len(t1), np.nan, np.float32), np.full(len(t1), np.nan, np.float32)
        codes = np.asarray(langs, dtype=object)
        for language, model in self._models.items():
            index = np.flatnonzero(codes == language)
            if len(index):
                for column, found in zip(result, values(model, _take(t1, index), index), strict=False):
                    column[index] = found
        return result


def _lengths(
    model: Engine, t1: TextBatch, *, scored: bool = True, characters: bool = False
) -> tuple[npt.NDArray[np.float64], I64, I64]:
    """(log10 probability, 0 unless `scored`; pieces and line ends; characters of normalised text, 0 unless asked)."""
    lines = lm_text.lm_lines(t1)
    total: npt.NDArray[np.float64] = np.zeros(len(t1))
    chars = np.zeros(len(t1), np.int64)
    logs, tokens = model.score(lines.data, lines.offsets, scored=scored)
    if scored:
        # bincount adds in line order, in float64: the same sum for a document in any batch.
        total = np.bincount(lines.document, logs, len(t1)).astype(np.float64)
    length = np.bincount(lines.document, tokens + 1, len(t1)).astype(np.int64)
    if characters:
        chars = lm_kernels.characters(lines.data, lines.offsets, lines.document, len(t1))
    return total, length, chars


def _perplexity(total: npt.NDArray[np.float64], length: I64, _: I64) -> F32:
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return np.minimum(10.0 ** (-total / length), np.finfo(np.float32).max).astype(np.float32)


def _take(batch: TextBatch, index: npt.NDArray[np.int64]) -> TextBatch:
    """The documents at `index` (increasing), copied unless it is all."""
    if len(index) == len(batch):
        return batch
    parts = [batch.data[batch.offsets[i] : batch.offsets[i + 1]] for i in index]
    offsets = np.zeros(len(index) + 1, np.int64)
    np.cumsum(batch.lengths()[index], out=offsets[1:])
    return TextBatch(np.concatenate(parts), offsets)
