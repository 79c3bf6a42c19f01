"""`ziya-data vocab OUT`: the characters that a tokenizer lacks, most frequent first, to extend its vocabulary with.

Counted over the kept documents (of dropped ones, mojibake would bring characters that nobody writes) and before
Traditional -> Simplified, so that traditional characters count too: T1 as stored plus what the conversion took out.
Candidates are Han characters and Chinese punctuation. What the counts cannot fill is filled from the two national
standards in their own order: GB 2312 (level 1 by pronunciation, the 3,755 commonest, then level 2), then Big5 (level 1,
then level 2), both read off Python's codecs.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data_factory.batches import I64, TextBatch
from data_factory.characters import HAN, PUNCTUATION, SPACE, SYMBOL, table
from data_factory.documents import read_batches, read_table
from data_factory.run_state import require_finished, stored_config
from data_factory.vocab_counts import CODE_POINTS, Differences, add_characters
from ziya.errors import UserError
from ziya.files import read_json, write_bytes, write_json
from ziya.tokenizer import load_tokenizer

SIZE = 7400  # the paper's
# Chinese writes these with the code points of general punctuation.
SHARED_PUNCTUATION = "‘’“”—…·"
_PUNCTUATION_BLOCKS = ((0x3001, 0x303F), (0xFE10, 0xFE1F), (0xFE30, 0xFE4F), (0xFF01, 0xFF65), (0xFFE0, 0xFFE6))


def is_candidate(point: int) -> bool:
    """Whether a code point is a Han character or Chinese (CJK or full-width) punctuation."""
    if point >= len(table()):
        return 0x20000 <= point <= 0x323AF
    flags = int(table()[point])
    if flags & HAN:
        return True
    inside = any(first <= point <= last for first, last in _PUNCTUATION_BLOCKS) or chr(point) in SHARED_PUNCTUATION
    return inside and bool(flags & (PUNCTUATION | SYMBOL)) and not flags & SPACE


def gb2312(level: int) -> Iterator[str]:
    """Han characters of GB 2312 in its order: level 1 is rows 16 to 55, level 2 rows 56 to 87."""
    rows = range(16, 56) if level == 1 else range(56, 88)
    return _decoded("gb2312", ((0xA0 + row, 0xA0 + cell) for row in rows for cell in range(1, 95)))


def big5(level: int) -> Iterator[str]:
    """Han characters of Big5 in its order: level 1 is A440 to C67E, level 2 C940 to F9D5."""
    first, last = (0xA440, 0xC67E) if level == 1 else (0xC940, 0xF9D5)
    cells = [*range(0x40, 0x7F), *range(0xA1, 0xFF)]
    pairs = ((high, low) for high in range(first >> 8, (last >> 8) + 1) for low in cells)
    return _decoded("big5", (pair for pair in pairs if first <= pair[0] << 8 | pair[1] <= last))


def _decoded(codec: str, pairs: Iterator[tuple[int, int]]) -> Iterator[str]:
    for pair in pairs:
        text = bytes(pair).decode(codec, "ignore")
        if len(text) == 1 and is_candidate(ord(text)):
            yield text


def read_counts(out: Path) -> I64:
    """Occurrences of every code point outside ASCII in T1 of the kept documents as it was before Traditional ->
    Simplified, int64 [0x110000]. One row group of texts is in memory at a time.
    """
    require_finished(out)
    counts = np.zeros(CODE_POINTS, np.int64)
    for path in sorted((out / "documents").glob("*.parquet")):
        with_text = np.asarray(read_table(out / "measurements" / path.name, ["document_row"])["document_row"]) >= 0
        kept = np.asarray(read_table(out / "decisions" / path.name, ["kept"])["kept"])[with_text]
        first = 0
        for rows in read_batches(path, ["text"]):
            chosen = kept[first : first + rows.num_rows]
            first += rows.num_rows
            if chosen.any():
                texts = rows["text"].fill_null("")  # of dropped documents in a pruned OUT
                add_characters(TextBatch.from_arrow(texts), chosen, counts)
        differences = out / "work" / "characters" / f"{path.stem}.npz"
        try:
            Differences.load(differences).add_to(counts, kept)
        except (ValueError, KeyError, OSError, EOFError, IndexError) as error:
            raise UserError(f"{differences} holds no character counts: run `ziya-data run` again") from error
    return counts


def choose(counts: I64, size: int, lacks: Any, min_count: int = 1) -> tuple[list[str], dict[str, int]]:
    """`size` characters: the most frequent ones first (ties by code point), then the standards in order.

    `lacks`: list of characters -> those that the tokenizer lacks, in order. Returns the characters and how many came
    from where. There are fewer than `size` when all sources are used up.
    """
    seen = np.flatnonzero(counts >= max(min_count, 1))
    seen = np.array([point for point in seen.tolist() if is_candidate(point)], np.int64)
    seen = seen[np.argsort(-counts[seen], kind="stable")] if len(seen) else seen
    sources = {
        "counted": [chr(point) for point in seen.tolist()],
        "gb2312_level_1": list(gb2312(1)),
        "gb2312_level_2": list(gb2312(2)),
        "big5_level_1": list(big5(1)),
        "big5_level_2": list(big5(2)),
    }
    chosen: dict[str, str] = {}
    for name, characters in sources.items():
        for character in lacks(list(dict.fromkeys(characters))):
            if len(chosen) == size:
                break
            chosen.setdefault(character, name)
    origin = Counter(chosen.values())
    return list(chosen), {name: origin[name] for name in sources}


def vocab(
    out: Path, size: int, tokenizer: Path, min_count: int = 1, output: Path | None = None, replace: bool = False
) -> dict[str, Any]:
    """Write `output` (OUT/chars.txt; one character a line) and the .json of its name (how many came from where);
    returns the latter. A list that is there and was made with other arguments is refused with `UserError` unless
    `replace`.
    """
    output = output or out / "chars.txt"
    if output.suffix == ".json":
        raise UserError(f"--output {output}: the counts are written to that name; give a name such as chars.txt")
    if not tokenizer.is_file():
        raise UserError(f"{tokenizer} holds no tokenizer: name the one to extend with --tokenizer")
    loaded = load_tokenizer(tokenizer)
    arguments = {
        "asked": size,
        "min_count": min_count,
        "tokenizer": {"kind": loaded.kind, "fingerprint": loaded.fingerprint, "vocab_size": loaded.vocab_size},
    }
    if output.exists() and not replace:
        _check_same(output, arguments)
    counts = read_counts(out)
    characters, origin = choose(counts, size, loaded.missing_characters, min_count)
    candidates = [point for point in np.flatnonzero(counts).tolist() if is_candidate(point)]
    missing = {ord(character) for character in loaded.missing_characters([chr(point) for point in candidates])}
    chosen = {ord(character) for character in characters}
    total = int(counts[candidates].sum()) if candidates else 0
    before = total - sum(int(counts[point]) for point in missing)
    after = total - sum(int(counts[point]) for point in missing - chosen)
    result = {
        **arguments,
        "characters": len(characters),
        "from": origin,
        "occurrences": total,  # of Han characters and Chinese punctuation in the kept documents
        "single_piece_share_before": before / total if total else None,
        "single_piece_share_after": after / total if total else None,
    }
    write_bytes(output, "".join(f"{character}\n" for character in characters).encode())
    write_json(output.with_suffix(".json"), result)
    return result


def _check_same(output: Path, arguments: dict[str, Any]) -> None:
    """Refuse to replace a list of characters that was made with other arguments, or by hand: a model may be made of it."""
    beside = output.with_suffix(".json")
    try:
        old = read_json(beside)
        shown = [f"{name}: {old.get(name)!r} -> {new!r}" for name, new in arguments.items() if old.get(name) != new]
        reason = f"was made with other arguments ({'; '.join(shown)})" if shown else ""
    except (OSError, ValueError, AttributeError):
        reason = f"is there, and no {beside.name} tells what it was made with"
    if reason:
        raise UserError(f"{output} {reason}: give another --output, or --replace to write it anew")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `ziya-data vocab`."""
    parser.add_argument("out", type=Path, metavar="OUT", help="output folder of a run")
    parser.add_argument("--size", type=int, default=SIZE, help=f"characters to list (default {SIZE})")
    parser.add_argument("--tokenizer", type=Path, help="tokenizer to extend (default: tokenizer.path of the run)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="list to write (default OUT/chars.txt)")
    parser.add_argument("--replace", action="store_true", help="replace a list that was made with other arguments")
    parser.add_argument("--min-count", type=int, default=1, help="count rarer characters as not seen (default 1)")


def main(args: argparse.Namespace) -> int:
    """`ziya-data vocab`."""
    if args.size < 1:
        raise UserError(f"--size {args.size}: give the number of characters to list, at least 1")
    require_finished(args.out)
    tokenizer = args.tokenizer or _own_tokenizer(args.out)
    output = args.output or args.out / "chars.txt"
    result = vocab(args.out, args.size, tokenizer, args.min_count, output, args.replace)
    origin = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in result["from"].items() if count)
    whose = "" if args.tokenizer else ", tokenizer.path of the run"
    print(
        f"{output}: {result['characters']:,} characters ({origin or 'none'}) that {tokenizer} lacks "
        f"({result['tokenizer']['vocab_size']:,} pieces{whose})"
    )
    if result["characters"] < args.size:
        print(f"only {result['characters']:,} of the {args.size:,} asked for: the counts, GB 2312 and Big5 are used up")
    if result["occurrences"]:
        before, after = result["single_piece_share_before"], result["single_piece_share_after"]
        print(f"characters that are one piece: {before:.2%} of all occurrences before, {after:.2%} after")
    return 0


def _own_tokenizer(out: Path) -> Path:
    path = stored_config(out).tokenizer.path
    if path is None:
        raise UserError(f"{out} was run without a tokenizer: name the one to extend with --tokenizer")
    return Path(path)
