"""`ziya-data prune`: delete T1 (and spans) of dropped documents, when a user wants the disk back or private data gone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_factory import documents
from data_factory.documents import read_batches, read_table, table_writer
from data_factory.run_state import RunState, require_finished
from ziya.files import write_bytes


def prune(out: Path) -> str:
    """Blank the texts of dropped documents in documents/. Refused while a run is unfinished. Returns one line for people."""
    with RunState.open(out, existing=True) as state:
        require_finished(out)
        write_bytes(state.work / "pruned", b"")  # before any text goes: from now on `decide` refuses other verdicts
        before = after = count = 0
        for path in sorted((out / "documents").glob("*.parquet")):
            before += path.stat().st_size
            measured = np.asarray(read_table(out / "measurements" / path.name, ["document_row"])["document_row"])
            kept = np.asarray(read_table(out / "decisions" / path.name, ["kept"])["kept"])[measured >= 0]
            first = 0
            with table_writer(path, documents.DOCUMENTS) as writer:
                for table in read_batches(path):
                    keep = pa.array(kept[first : first + table.num_rows])
                    count += table.num_rows - int(np.asarray(keep).sum())
                    writer.write(_blank(table, keep))
                    first += table.num_rows
            after += path.stat().st_size
    return f"pruned the texts of {count} dropped documents in {out}: documents/ shrank from {before / 1e6:.1f} to {after / 1e6:.1f} MB"


def _blank(table: pa.Table, keep: pa.Array) -> pa.Table:
    """Rows of documents/ with null texts and spans where `keep` is false."""
    for name in ("text", "protected", "spans"):
        column = table[name].combine_chunks()
        chosen = pc.if_else(keep, column, pa.nulls(len(column), column.type))
        table = table.set_column(table.schema.get_field_index(name), name, chosen)
    return table
