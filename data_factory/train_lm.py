"""`ziya-data train-lm`: clean text or a Wikipedia dump -> KenLM model, SentencePiece model, compiled n-grams and manifest
(paper section AS).

Flow: inputs -> T1 (`normalize`) -> lines (`lm_text`) in a spool file, one line in a hundred held out -> SentencePiece
unigram pieces -> `lmplz` counts n-grams with modified Kneser-Ney -> `build_binary` and our own table (`ngram_table`,
about 150 bytes of memory an n-gram while it is made). Same inputs, settings and tool versions give the same
bytes.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import sentencepiece

from data_factory import lm_text, ngram_table, perplexity
from data_factory.batches import TextBatch
from data_factory.lm_inputs import read_texts
from ziya.errors import UserError
from ziya.files import atomic_path, file_digest, write_json

HELD_OUT = 100  # one line in so many
SPM_BYTES = 64 << 20  # of lines that SentencePiece trains on; n-grams are counted over all lines
BYTES_PER_PIECE = (
    200  # of training text: bounds the vocabulary of small input, so that pieces have counts worth a probability
)
CHARACTER_COVERAGE = 0.9999
LONGEST_LINE = lm_text.MAX_LINE_BYTES * 3 // 2 + 16  # a normalised line is at most half as long again as its input

Structure = Literal["probing", "trie"]
Fallback = Literal["auto", "on", "off"]


@dataclass
class _Spool:
    """Normalised lines on disk. `training`, `held_out`: newline-terminated files; `characters`: int64 [0x110000],
    training lines."""

    training: Path
    held_out: Path
    characters: npt.NDArray[np.int64]
    documents: int = 0
    lines: int = 0
    bytes: int = 0
    held_out_lines: int = 0


def train(
    language: str,
    inputs: Sequence[str],
    output: Path,
    *,
    order: int = 5,
    vocab_size: int = 65536,
    memory: str = "1G",
    prune: Sequence[int] = (),
    seed: int = 20231103,
    structure: Structure = "probing",
    discount_fallback: Fallback = "auto",
    wikitext: bool = False,
    text_field: str = "text",
    table: bool = True,
) -> dict[str, Any]:
    """Train a model; returns its manifest, which is also written beside it.

    `inputs`: .txt, .jsonl, .parquet (and compressed), MediaWiki dumps, folders of those. `output`: the .klm file; its
    side-cars take its name. `vocab_size`: SentencePiece pieces, fewer for small input. `memory`: for lmplz's sort, such
    as 2G or 50%.
    `prune`: n-grams with at most this count are dropped, one number an order (0 0 1 = singletons from 3-grams on).
    `structure`: probing is faster, trie smaller. `discount_fallback`: auto retries lmplz with it when the counts are
    too few for Kneser-Ney's own discounts.
    `wikitext`: undo WikiText's tokenisation. `table`: also write the n-grams compiled for our kernels, which makes
    scoring several times faster. Raises UserError for missing programs, unreadable or empty input.
    """
    lmplz, build_binary = find_program("lmplz"), find_program("build_binary")
    if not 2 <= order <= 6:
        raise UserError(f"order {order} is not supported: lmplz is built for orders 2 to 6")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {output} cannot be written ({error.strerror}): give a file in a folder") from error
    spm_path, manifest_path = perplexity.side_cars(output)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".train-lm-") as name:
        work = Path(name)
        spool = _spool(language, inputs, work, seed, wikitext, text_field)
        if not spool.lines:
            raise UserError(
                f"no text for the {language} model in {', '.join(inputs)}: give files with text, or another "
                f"--text-field"
            )
        with contextlib.ExitStack() as files:
            klm, spm = files.enter_context(atomic_path(output)), files.enter_context(atomic_path(spm_path))
            ngrams = files.enter_context(atomic_path(perplexity.table_path(output))) if table else None
            size = _train_pieces(spool, spm, vocab_size, seed)
            pieces = _write_pieces(spool.training, spm, work / "pieces.txt")
            fallback = _run_lmplz(lmplz, work, order, memory, prune, discount_fallback)
            _run(
                [build_binary, "-T", str(work / "sort-"), structure, str(work / "model.arpa"), str(klm)], "build_binary"
            )
            if ngrams is not None:
                ngram_table.save(ngram_table.compile_arpa(work / "model.arpa"), ngrams)
            held_out = _held_out(perplexity.Engine(klm, spm, ngrams), spool.held_out)
            manifest_path.unlink(missing_ok=True)  # from here to its rewriting the files are recognised as unfinished
            manifest: dict[str, Any] = {
                "format": perplexity.FORMAT,
                "language": language,
                "normaliser": lm_text.VERSION,
                "order": order,
                "structure": structure,
                "prune": list(prune),
                "discount_fallback": fallback,
                "vocab_size": size,
                "seed": seed,
                "documents": spool.documents,
                "lines": spool.lines,
                "bytes": spool.bytes,
                "pieces": pieces,
                "held_out": held_out,
                "sentencepiece": sentencepiece.__version__,
                "model_digest": file_digest(klm),
                "spm_digest": file_digest(spm),
            }
            if ngrams is not None:
                manifest[perplexity.TABLE] = file_digest(ngrams)
    if not table:
        perplexity.table_path(output).unlink(missing_ok=True)
    write_json(manifest_path, manifest)
    return manifest


def find_program(name: str) -> str:
    """Path of lmplz or build_binary: beside $ZIYA_LMPLZ, on PATH, in ~/.local/bin or in ./kenlm-build; UserError when
    nowhere."""
    folders = [
        *os.environ.get("PATH", "").split(os.pathsep),
        str(Path.home() / ".local" / "bin"),
        "kenlm-build",
        "kenlm-build/bin",
    ]
    named = os.environ.get("ZIYA_LMPLZ")
    if named:
        folders.insert(0, str(Path(named) if Path(named).is_dir() else Path(named).parent))
    found = shutil.which(name, path=os.pathsep.join(folder for folder in folders if folder))
    if found is None:
        raise UserError(
            f"the KenLM program {name} was not found (looked beside $ZIYA_LMPLZ, on PATH, in ~/.local/bin and "
            f"./kenlm-build): run scripts/install_lmplz.sh"
        )
    return os.path.abspath(found)


def detokenise_wikitext(text: str) -> str:
    """WikiText as prose: `<unk>` removed, `@-@` and spaced punctuation closed up, headings without their = marks."""
    lines = []
    for raw in text.split("\n"):
        line = re.sub(r"^\s*((?:= )+)(.*?)((?: =)+)\s*$", r"\2", raw)
        line = re.sub(r" @([-,.])@ ", r"\1", line)
        line = re.sub(r"\s*<unk>", "", line)
        quotes = iter(range(len(line)))
        line = re.sub(r'(\s*)"(\s*)', lambda match: match[1] + '"' if next(quotes) % 2 == 0 else '"' + match[2], line)  # noqa: B023
        line = re.sub(r" (n't|'(?:s|S|re|ve|ll|d|m|t)\b)", r"\1", line)
        line = re.sub(r" ([,.;:!?)\]%}])", r"\1", line)
        line = re.sub(r"([(\[{$£€]) ", r"\1", line)
        line = re.sub(r"s ' ", "s' ", line)
        line = re.sub(r"\(\s*[,;]?\s*\)", "", line)  # what is left of (<unk>)
        lines.append(re.sub(r"\s+", " ", line).strip())
    return "\n".join(line for line in lines if line)


def _spool(language: str, inputs: Sequence[str], work: Path, seed: int, wikitext: bool, text_field: str) -> _Spool:
    """Write all normalised lines to `work`; which are held out depends on their number and the seed alone."""
    from data_factory import normalize  # needs OpenCC; not for find_program and detokenise_wikitext
    from data_factory.config import Normalize

    spool = _Spool(work / "lines.txt", work / "held_out.txt", np.zeros(0x110000, np.int64))
    settings = Normalize()
    number = 0
    with spool.training.open("wb") as training, spool.held_out.open("wb") as held_out:
        for texts in read_texts(inputs, text_field):
            t1, protected = normalize.clean(
                TextBatch.from_strings([detokenise_wikitext(text) for text in texts] if wikitext else texts), settings
            )
            if language == "zh":
                t1, protected = normalize.simplify(t1, protected, np.ones(len(t1), np.bool_))
            lines = lm_text.lm_lines(t1)
            keep = _mix(np.arange(number, number + len(lines), dtype=np.uint64), seed) % np.uint64(HELD_OUT) != 0
            number += len(lines)
            spans = np.repeat(keep, np.diff(lines.offsets))
            training.write(lines.data[spans].tobytes())
            held_out.write(lines.data[~spans].tobytes())
            points = np.frombuffer(lines.data[spans].tobytes().decode().encode("utf-32-le"), np.uint32)
            spool.characters += np.bincount(points, minlength=0x110000)
            spool.documents += len(t1)
            spool.lines += int(keep.sum())
            spool.bytes += int(spans.sum())
            spool.held_out_lines += int((~keep).sum())
    spool.characters[ord("\n")] = 0
    return spool


def _mix(values: npt.NDArray[np.uint64], seed: int) -> npt.NDArray[np.uint64]:
    """splitmix64 of values and seed: a fixed pseudo-random number for each line number."""
    with np.errstate(over="ignore"):
        mixed = (values + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed & 0xFFFFFFFFFFFFFFFF)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return np.asarray(mixed ^ (mixed >> np.uint64(31)))


def _line_batches(path: Path, size: int = 4 << 20) -> Iterator[list[str]]:
    """The lines of a spool file, about `size` bytes at a time."""
    with path.open("rb") as file:
        while lines := file.readlines(size):
            yield b"".join(lines).decode().split("\n")[:-1]


def _train_pieces(spool: _Spool, spm: Path, vocab_size: int, seed: int) -> int:
    """Train the SentencePiece unigram model on (a sample of) the training lines; returns its number of pieces."""
    counts = np.sort(spool.characters[spool.characters > 0])[::-1]
    required = int(np.searchsorted(np.cumsum(counts), counts.sum() * CHARACTER_COVERAGE)) + 1
    size = max(min(vocab_size, spool.bytes // BYTES_PER_PIECE), required + 64)
    model = io.BytesIO()
    try:
        # An iterator and a writer instead of file names: names would end up inside the model, and its bytes would
        # follow the folder.
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_sample(spool, seed + 1),
            model_writer=model,
            vocab_size=size,
            hard_vocab_limit=False,
            model_type="unigram",
            character_coverage=CHARACTER_COVERAGE,
            normalization_rule_name="identity",  # lm_text has normalised; a second table would be a second truth
            max_sentence_length=LONGEST_LINE,
            shuffle_input_sentence=False,
            num_threads=1,  # sums of floats would follow the number of threads
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        raise UserError(
            f"SentencePiece could not train on {spool.bytes:,} bytes of text ({' '.join(str(error).split())}): give "
            f"more text"
        ) from error
    spm.write_bytes(model.getvalue())
    return int(sentencepiece.SentencePieceProcessor(model_proto=model.getvalue()).get_piece_size())


def _sample(spool: _Spool, seed: int) -> Iterator[str]:
    """About SPM_BYTES of training lines, chosen by their number and the seed, in order."""
    share = min(1.0, SPM_BYTES / spool.bytes)
    number = 0
    for lines in _line_batches(spool.training):
        chosen = _mix(np.arange(number, number + len(lines), dtype=np.uint64), seed) <= np.uint64(
            min(2**64 - 1, int(share * 2**64))
        )
        number += len(lines)
        yield from (line for line, keep in zip(lines, chosen, strict=True) if keep)


def _write_pieces(training: Path, spm: Path, target: Path) -> int:
    """Write the training lines as pieces separated by spaces; returns the number of pieces."""
    model = sentencepiece.SentencePieceProcessor(model_file=str(spm))
    total = 0
    with target.open("wb") as file:
        for lines in _line_batches(training):
            encoded = model.encode(lines, out_type=str, num_threads=1)
            total += sum(map(len, encoded))
            file.write("".join(" ".join(pieces) + "\n" for pieces in encoded).encode())
    return total


def _run_lmplz(lmplz: str, work: Path, order: int, memory: str, prune: Sequence[int], fallback: Fallback) -> bool:
    """Run lmplz; returns whether --discount_fallback was used."""
    command = [lmplz, "-o", str(order), "-S", memory, "-T", str(work / "sort-"), "--skip_symbols"]
    command += ["--text", str(work / "pieces.txt"), "--arpa", str(work / "model.arpa")]
    if prune:
        command += ["--prune", *map(str, prune)]
    if fallback == "on":
        _run([*command, "--discount_fallback"], "lmplz")
        return True
    try:
        _run(command, "lmplz")
    except UserError as error:
        if fallback == "off" or "discount" not in str(error).lower():
            raise
        _run([*command, "--discount_fallback"], "lmplz")
        return True
    return False


def _run(command: list[str], name: str) -> None:
    """Run a program; its last lines become the UserError when it fails."""
    result = subprocess.run(
        command, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL
    )
    if result.returncode:
        message = " ".join(result.stderr.decode(errors="replace").split())
        raise UserError(f"{name} failed ({result.returncode}): {message[-800:]}")


def _held_out(model: perplexity.Engine, path: Path) -> dict[str, Any]:
    """Perplexity of the held-out lines: {lines, pieces, perplexity, bits_per_character}; the last two None without
    lines."""
    logs, pieces, lines, characters = 0.0, 0, 0, 0
    with path.open("rb") as file:
        while batch := file.readlines(4 << 20):
            offsets = np.zeros(len(batch) + 1, np.int64)
            np.cumsum([len(line) for line in batch], out=offsets[1:])
            scores, counts = model.score(np.frombuffer(b"".join(batch), np.uint8), offsets)
            logs, pieces, lines = logs + float(scores.sum()), pieces + int(counts.sum()), lines + len(batch)
            characters += sum(len(line.decode()) for line in batch)
    if not lines:
        return {"lines": 0, "pieces": 0, "perplexity": None, "bits_per_character": None}
    bits = -logs * float(np.log2(10.0)) / characters
    return {
        "lines": lines,
        "pieces": pieces,
        "perplexity": round(10 ** (-logs / (pieces + lines)), 4),
        "bits_per_character": round(bits, 6),
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `ziya-data train-lm`."""
    parser.add_argument("--lang", required=True, help="language code of the model, such as zh")
    parser.add_argument(
        "--input",
        required=True,
        nargs="+",
        help=".txt, .jsonl, .parquet (.gz, .zst, .bz2), MediaWiki dumps, or folders of them",
    )
    parser.add_argument(
        "--output",
        required=True,
        type=Path,
        help="the model to write, such as zh.klm; .klm.spm, .klm.ngrams and .klm.json go beside it",
    )
    parser.add_argument("--order", type=int, default=5, help="longest n-gram (default 5)")
    parser.add_argument(
        "--vocab-size", type=int, default=65536, help="SentencePiece pieces, fewer for small input (default 65536)"
    )
    parser.add_argument("--memory", default="1G", help="memory of lmplz, such as 8G or 50%% (default 1G)")
    parser.add_argument(
        "--prune",
        type=int,
        nargs="*",
        default=[],
        help="drop n-grams up to these counts, one number an order: 0 0 1 for Wikipedia",
    )
    parser.add_argument(
        "--structure",
        choices=("probing", "trie"),
        default="probing",
        help="probing is faster, trie smaller (default probing)",
    )
    parser.add_argument(
        "--discount-fallback", choices=("auto", "on", "off"), default="auto", help="for small input (default auto)"
    )
    parser.add_argument(
        "--wikitext", action="store_true", help="the input is WikiText: undo its tokenisation and remove <unk>"
    )
    parser.add_argument(
        "--no-table",
        dest="table",
        action="store_false",
        help="do not write the .ngrams file: less disk, slower scoring, the same perplexities but for rounding",
    )
    parser.add_argument("--text-field", default="text", help="JSONL and Parquet: field of the text (default text)")
    parser.add_argument(
        "--seed", type=int, default=20231103, help="seed of the held-out lines and of the SentencePiece sample"
    )


def main(args: argparse.Namespace) -> int:
    """Run `ziya-data train-lm` and print what came out."""
    manifest = train(
        args.lang,
        args.input,
        args.output,
        order=args.order,
        vocab_size=args.vocab_size,
        memory=args.memory,
        prune=args.prune,
        seed=args.seed,
        structure=args.structure,
        discount_fallback=args.discount_fallback,
        wikitext=args.wikitext,
        text_field=args.text_field,
        table=args.table,
    )
    held_out = manifest["held_out"]
    print(
        f"{args.output}: {manifest['language']}, order {manifest['order']}, {manifest['structure']}, "
        f"{args.output.stat().st_size / 1e6:.1f} MB"
    )
    print(
        f"  trained on {manifest['documents']:,} documents, {manifest['lines']:,} lines, "
        f"{manifest['bytes'] / 1e6:.1f} MB, {manifest['pieces']:,} pieces"
    )
    print(
        f"  {manifest['vocab_size']:,} SentencePiece pieces; discount fallback "
        f"{'used' if manifest['discount_fallback'] else 'not needed'}"
    )
    if held_out["lines"]:
        print(
            f"  held out {held_out['lines']:,} lines: perplexity {held_out['perplexity']:.1f}, "
            f"{held_out['bits_per_character']:.2f} bits per character"
        )
    else:
        print("  too few lines to hold any out")
    return 0
