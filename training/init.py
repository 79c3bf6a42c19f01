"""`ziya-train init`: a base model and a list of characters in, the Hugging Face folder that training starts from out.

The folder is made beside its place under a temporary name and renamed at the end; `init.json`, written last, says what
went in, what came out, and what it cost: tokens per character, collisions, and the loss before any training.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from training.architecture import Architecture, hf_config, parse_architecture, read_architecture
from training.init_tokenizer import BaseTokenizer, NewTokenizer, extend_tokenizer, open_tokenizer
from training.run_folder import check_parents
from training.vocabulary import TextCounts, count_tokens, read_characters, read_texts
from ziya.errors import UserError
from ziya.files import TEMPORARY, digest, file_digest, json_bytes, read_json, write_bytes, write_json
from ziya.progress import log

if TYPE_CHECKING:
    import torch

    from training.embeddings import Method
    from training.hf_files import HFWeights

FORMAT = 1  # of init.json; part of an init's identity
TEXT_CHARACTERS = 10_000_000  # of --text that are read
LOSS_TOKENS = 2048  # tokens of the base model that the initial loss is measured on
PAD_TO = 128
SEED = 1234
METHODS = ("positional", "mean", "random")
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@dataclass(frozen=True)
class InitReport:
    """What an init did: `record` is `init.json`; `again` says that the folder stood there already."""

    folder: Path
    record: dict[str, Any]
    again: bool = False

    def lines(self) -> list[str]:
        """The report for people, one fact a line."""
        record, vocabulary = self.record, self.record["vocabulary"]
        lines = [f"{self.folder}: {'made before from the same inputs, left as it is' if self.again else 'ready'}"]
        lines.append(
            f"vocabulary: {vocabulary['before']:,} tokens before, {vocabulary['after']:,} after "
            f"({vocabulary['added']:,} added, {vocabulary['already']:,} were there), {vocabulary['rows']:,} rows with "
            f"{vocabulary['padding']:,} of padding"
        )
        if record["untied"]:
            lines.append("the output head was tied to the embedding: it has weights of its own now")
        if record["collisions"]:
            counts = ", ".join(f"{name} {count:,}" for name, count in record["collisions"].items())
            lines.append(f"new tokens that share both rows with another one: {counts}")
        if record["text"]:
            before, after = (record["text"][key]["tokens_per_character"] for key in ("before", "after"))
            lines.append(
                f"tokens per character: {before:.4f} before, {after:.4f} after ({record['text']['fewer']:.1%} fewer)"
            )
        for name, loss in (record["loss"] or {}).get("of", {}).items():
            lines.append(
                f"initial loss, {name}: {loss['loss']:.4f} per token, {loss['bits_per_byte']:.4f} bits per byte"
                f"{' (written)' if name == record['settings']['method'] else ''}"
            )
        return lines


def run_init(
    base: Path,
    chars: Path | None,
    output: Path,
    method: Method = "positional",
    pad_to: int = PAD_TO,
    text: Path | None = None,
    seed: int = SEED,
    *,
    loss_tokens: int = LOSS_TOKENS,
) -> InitReport:
    """Make OUTPUT from a base model's folder; see `add_arguments` for the arguments. `loss_tokens` 0 measures no loss.

    Does nothing when OUTPUT was made from the same inputs before; UserError when anything else stands there, and for
    every input that cannot be used.
    """
    if method not in METHODS:
        raise UserError(f"--embedding-init {method}: one of {', '.join(METHODS)} is needed")
    if pad_to < 1 or loss_tokens < 0:
        raise UserError(f"--pad-to {pad_to}, --loss-tokens {loss_tokens}: give at least 1 and 0")
    if not base.is_dir():
        raise UserError(f"base {base} is no folder: give a Hugging Face model folder")
    shape = read_architecture(base)
    raw = read_json(base / "config.json")
    if raw.get("quantization_config"):
        raise UserError(f"{base} is quantised (quantization_config): give the model in BF16, FP16 or FP32")
    characters = read_characters(chars) if chars is not None else []
    tokenizer = open_tokenizer(base, shape, raw, extends=chars is not None)
    from training.hf_files import HFWeights

    with HFWeights(base) as weights:
        weights.check(shape)
        settings = {"method": method, "pad_to": pad_to, "seed": seed, "loss_tokens": loss_tokens if text else 0}
        inputs = _inputs(base, weights, characters, text)
        wanted = digest(json_bytes([FORMAT, settings, inputs]))
        standing = _standing(output, wanted)
        if standing is not None:
            return InitReport(output, standing, again=True)
        texts = read_texts(text, TEXT_CHARACTERS) if text is not None else []
        new = extend_tokenizer(tokenizer, characters)
        with _temporary(output) as folder:
            made = _Init(weights, shape, raw, tokenizer, new, method, pad_to, seed)
            record = {"format": FORMAT, "identity": wanted, "settings": settings, "inputs": inputs}
            record |= made.write(folder, texts, loss_tokens)
            outputs = sorted(path for path in folder.iterdir() if path.is_file())
            record["outputs"] = {path.name: [path.stat().st_size, file_digest(path)] for path in outputs}
            write_json(folder / "init.json", record)
    return InitReport(output, record)


class _Init:
    """One init at work: everything that is known once the inputs are read."""

    def __init__(
        self,
        weights: HFWeights,
        shape: Architecture,
        raw: dict[str, Any],
        tokenizer: BaseTokenizer,
        new: NewTokenizer,
        method: Method,
        pad_to: int,
        seed: int,
    ) -> None:
        self.weights, self.raw, self.base, self.new = weights, raw, tokenizer, new
        self.method, self.seed = method, seed
        self.old = replace(shape, vocab_used=tokenizer.size)
        self.shape = replace(self.old.with_vocabulary(tokenizer.size + len(new.added), pad_to), tied=False)
        # Every method is tried: its collisions and its loss are what a choice between them rests on.
        self.rows: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def table(self, name: str) -> torch.Tensor:
        """The base's rows of the embedding or the head, [tokens, hidden], without rows that no token has."""
        whole = self.weights.read(EMBEDDING if self.old.tied else name)
        if not whole.is_floating_point():
            raise UserError(f"{self.weights.folder}: {name} is {whole.dtype}: give the model in BF16, FP16 or FP32")
        return whole[: self.base.size]

    def write(self, folder: Path, texts: Sequence[str], loss_tokens: int) -> dict[str, Any]:
        """Write all but init.json; returns what init.json says about it."""
        from training import embeddings
        from training.hf_files import write_weights

        tables = [self.table(EMBEDDING), self.table(HEAD)]
        dtype = str(tables[0].dtype).removeprefix("torch.")
        if self.new.added:
            for name in embeddings.METHODS:
                # Another seed for the head: drawn rows of the two tables must not be copies of each other.
                made = [embeddings.new_rows(old, self.new.spelled, name, self.seed + k) for k, old in enumerate(tables)]
                self.rows[name] = (made[0], made[1])
        self.new.write(folder, texts, self.shape.positions)
        record = {
            "vocabulary": {
                "before": self.base.size,
                "after": self.shape.vocab_used,
                "added": len(self.new.added),
                "already": len(self.new.already),
                "rows_before": self.old.vocab_size,
                "rows": self.shape.vocab_size,
                "padding": self.shape.vocab_size - self.shape.vocab_used,
            },
            "tokenizer": {"kind": self.base.kind, "fingerprints": self.new.fingerprints(folder)},
            "dtype": dtype,
            "untied": self.old.tied,
            "parameters": {"before": self.old.parameters, "after": self.shape.parameters},
            "collisions": {name: embeddings.collisions(*rows) for name, rows in self.rows.items()},
            "text": self._text(texts),
            "loss": self._loss(texts, loss_tokens, tables),
        }
        log(f"writing {self.shape.parameters:,} weights")
        del tables  # they are read again: while the layers are written, memory belongs to one shard
        try:
            write_weights(folder, self._tensors())
        except Exception as error:
            if "os error 28" not in str(error) and "No space left" not in str(error):
                raise
            raise UserError(f"no space left on the disk that holds {folder.parent}: free some and run again") from error
        write_json(folder / "config.json", self._config(dtype))
        self._generation_config(folder)
        return record

    def _tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        from training.embeddings import extended
        from training.hf_files import expected

        for name in expected(self.shape):
            if name in (EMBEDDING, HEAD):
                old = self.table(name)
                new = self.rows[self.method][name == HEAD] if self.rows else old[:0]
                yield name, extended(old, new, self.shape.vocab_size)
            else:
                yield name, self.weights.read(name)

    def _text(self, texts: Sequence[str]) -> dict[str, Any] | None:
        if not texts:
            return None
        before, after = (count_tokens(tokenizer, texts) for tokenizer in (self.base.tokenizer, self.new.tokenizer))

        def side(counts: TextCounts) -> dict[str, Any]:
            return {"tokens": counts.tokens, "tokens_per_character": counts.tokens_per_character}

        sizes = {"documents": before.documents, "characters": before.characters, "bytes": before.bytes}
        fewer = 1 - after.tokens / before.tokens
        return {**sizes, "before": side(before), "after": side(after), "fewer": fewer}

    def _loss(self, texts: Sequence[str], budget: int, tables: list[torch.Tensor]) -> dict[str, Any] | None:
        """Losses of the base and of every method on the same pieces of text."""
        from training.initial_loss import Variant, encode_all, spread_pieces, summed_losses

        if not texts or not budget:
            return None
        pieces = spread_pieces(texts, self.old.positions, budget, count_tokens(self.base.tokenizer, texts).tokens)
        first = self.base.first
        before = [[first, *ids] for ids in encode_all(self.base.tokenizer, pieces)]
        variants = {"base": Variant(before, tables[:1], tables[1:])}
        after = [[first, *ids] for ids in encode_all(self.new.tokenizer, pieces)]
        for name, rows in self.rows.items():
            variants[name] = Variant(after, (tables[0], rows[0]), (tables[1], rows[1]))
        size = sum(len(piece.encode()) for piece in pieces)
        log(f"initial loss of {', '.join(variants)} on {size:,} bytes of text")
        losses = summed_losses(self.weights, self.old, list(variants.values()))
        result = {}
        for (name, variant), loss in zip(variants.items(), losses, strict=True):
            tokens = sum(len(document) - 1 for document in variant.documents)
            result[name] = {"tokens": tokens, "loss": loss / tokens, "bits_per_byte": loss / math.log(2) / size}
        return {"pieces": len(pieces), "characters": sum(map(len, pieces)), "bytes": size, "of": result}

    def _config(self, dtype: str) -> dict[str, Any]:
        config = hf_config(self.shape, dtype=dtype)
        for role in ("bos", "eos", "pad"):
            key = f"{role}_token_id"
            config[key] = self.raw.get(key, self.base.special.get(role))
        if parse_architecture(config, self.weights.folder / "config.json") != self.shape:
            raise UserError(f"{self.weights.folder}: its config.json cannot be written again without a change")
        return config

    def _generation_config(self, folder: Path) -> None:
        path = self.weights.folder / "generation_config.json"
        if path.is_file():
            write_bytes(folder / path.name, path.read_bytes())
            return
        config = self._config("float32")
        write_json(folder / path.name, {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")})


def _inputs(base: Path, weights: HFWeights, characters: Sequence[str], text: Path | None) -> dict[str, Any]:
    """Digests of all that shapes the result."""
    from training.init_tokenizer import FILES

    names = [*FILES, "config.json", "generation_config.json", *sorted(set(weights.place.values()))]
    size = sum((base / name).stat().st_size for name in names if (base / name).is_file())
    log(f"reading {size / 1e9:.2f} GB of {base}")
    return {
        "base": {name: file_digest(base / name) for name in sorted(names) if (base / name).is_file()},
        "characters": digest("\n".join(characters).encode()) if characters else None,
        "text": file_digest(text) if text is not None and text.is_file() else None,
    }


def _standing(output: Path, wanted: str) -> dict[str, Any] | None:
    """The record of a finished init of the same inputs; None when nothing stands there; UserError otherwise."""
    check_parents(output, f"--output {output}")
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return None
    record = read_json(output / "init.json") if (output / "init.json").is_file() else None
    if isinstance(record, dict) and record.get("identity") == wanted:
        sizes = {name: value[0] for name, value in record["outputs"].items()}
        wrong = [name for name, size in sizes.items() if not _has_size(output / name, size)]
        if not wrong:
            return record
        raise UserError(f"{output}: {wrong[0]} was changed or removed since init; remove the folder and run init again")
    found = "holds an init of other inputs or settings" if record else "exists and holds no init"
    raise UserError(f"--output {output} {found}: give another folder, or remove this one")


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


@contextlib.contextmanager
def _temporary(output: Path) -> Iterator[Path]:
    """A folder beside `output` that becomes it when the block ends without an error, and disappears otherwise."""
    output.parent.mkdir(parents=True, exist_ok=True)
    for left in output.parent.glob(f"{TEMPORARY}*-{output.name}.part"):  # of inits that were killed
        if not _alive(left.name.removeprefix(TEMPORARY).split("-")[0]):
            shutil.rmtree(left, ignore_errors=True)
    folder = output.with_name(f"{TEMPORARY}{os.getpid()}-{output.name}.part")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield folder
        folder.replace(output)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _alive(process: str) -> bool:
    try:
        os.kill(int(process), 0)
    except (ValueError, ProcessLookupError):
        return False
    except OSError:  # another user's
        return True
    return True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `ziya-train init`."""
    parser.add_argument(
        "--base", type=Path, required=True, metavar="HF_DIR", help="Hugging Face folder of the base model"
    )
    parser.add_argument("--chars", type=Path, help="characters to add, one a line (chars.txt of `ziya-data vocab`)")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder to write; must not exist")
    parser.add_argument(
        "--embedding-init", choices=METHODS, default="positional", help="rows of new tokens (positional)"
    )
    parser.add_argument("--pad-to", type=int, default=PAD_TO, help=f"rows are padded to a multiple of this ({PAD_TO})")
    parser.add_argument("--text", type=Path, help="text or .jsonl to count tokens and measure the initial loss on")
    parser.add_argument("--seed", type=int, default=SEED, help="of random rows")
    parser.add_argument("--loss-tokens", type=int, default=LOSS_TOKENS, help=f"tokens of the loss ({LOSS_TOKENS})")
    parser.add_argument("--no-loss", action="store_true", help="measure no initial loss (large models without a GPU)")


def main(args: argparse.Namespace) -> int:
    """`ziya-train init`."""
    report = run_init(
        args.base,
        args.chars,
        args.output,
        cast("Method", args.embedding_init),
        args.pad_to,
        args.text,
        args.seed,
        loss_tokens=0 if args.no_loss else args.loss_tokens,
    )
    print("\n".join(report.lines()))
    return 0
