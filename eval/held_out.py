"""Bits per byte of held-out documents under every model of OUT: asked like a task, kept by the same keys.

    OUT/perplexity/<model>.json   {key, identity of the model, documents (their digest), bits of each document}
    OUT/perplexity.json           the table of eval/perplexity.py over all models that met the same documents
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ziya.errors import UserError
from ziya.files import digest, json_bytes, read_json, write_json

if TYPE_CHECKING:
    from eval.model import PrefixLM
    from eval.perplexity import Document


def read(paths: Sequence[str]) -> list[Document]:
    """The documents of all files; UserError when there are none."""
    if not paths:
        return []
    from eval.perplexity import read_documents

    found = [document for path in paths for document in read_documents(Path(path))]
    if not found:
        raise UserError(f"--ppl {', '.join(paths)}: no documents in it")
    return found


def key(identity: dict[str, Any], documents: Sequence[Document]) -> str:
    """What a model's bits depend on."""
    return digest(json_bytes([identity, of(documents)]))


def of(documents: Sequence[Document]) -> str:
    """Digest of the documents."""
    return digest(json_bytes([[document.domain, document.text] for document in documents]))


def is_finished(out: Path, name: str, wanted: str) -> bool:
    """Whether a model's bits are there, made from the same things."""
    path = out / "perplexity" / f"{name}.json"
    return path.is_file() and read_json(path).get("key") == wanted


def ask(
    out: Path, name: str, model: PrefixLM, documents: Sequence[Document], wanted: str, identity: dict[str, Any]
) -> None:
    """Measure and keep every document's bits under the model."""
    from eval.perplexity import harness_scorer, measure

    bits = measure(harness_scorer(model), documents)
    record = {"key": wanted, "identity": identity, "documents": of(documents), "bits": bits}
    write_json(out / "perplexity" / f"{name}.json", record)


def write_table(out: Path, models: Sequence[dict[str, Any]], documents: Sequence[Document], seed: int) -> None:
    """OUT/perplexity.json from what is kept of these documents; nothing without documents."""
    if not documents:
        return
    from eval.perplexity import table

    base = next((line["model"] for line in models if line["is_base"]), None)
    bits, wanted = {}, of(documents)
    for line in models:
        path = out / "perplexity" / f"{line['model']}.json"
        kept = read_json(path) if path.is_file() else {}
        if kept.get("documents") == wanted:
            bits[line["model"]] = kept["bits"]
    write_json(out / "perplexity.json", table(documents, bits, base, seed))
