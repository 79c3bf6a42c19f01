"""`ziya.json`: what the writer writes the reader reads, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ziya.errors import UserError
from ziya.exports import ABOUT, ExportFile, is_export, read_export, write_export

WHOLE: dict[str, Any] = {
    "version": 1, "step": 30, "stage": 2, "tokens": 4096, "averaged_steps": [10, 30], "dtype": "bf16",
    "architecture": {"family": "llama", "layers": 4},
}  # fmt: skip


def test_what_is_written_is_read(tmp_path: Path) -> None:
    assert not is_export(tmp_path)
    with pytest.raises(UserError, match=r"has no ziya\.json"):
        read_export(tmp_path)
    write_export(tmp_path, ExportFile(**WHOLE))
    assert is_export(tmp_path) and read_export(tmp_path).model_dump() == WHOLE
    assert sorted(path.name for path in tmp_path.iterdir()) == [ABOUT]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"step": None}, r"step \(Input should be a valid integer"),
        ({"step": "30"}, r"step \(Input should be a valid integer"),
        ({"stage": 0}, "stage"),
        ({"tokens": -1}, "tokens"),
        ({"dtype": "fp16"}, "dtype"),
        ({"averaged_steps": []}, "averaged_steps"),
        ({"averaged_steps": [10]}, r"averaged_steps \[10\] must differ and end with step 30"),
        ({"averaged_steps": [30, 30]}, "must differ"),
        ({"version": 2}, "version"),
        ({"other": 1}, "other"),
    ],
)
def test_anything_else_is_refused_in_one_line(tmp_path: Path, changes: dict[str, Any], expected: str) -> None:
    (tmp_path / ABOUT).write_text(json.dumps(WHOLE | changes))
    with pytest.raises(UserError, match=expected) as error:
        read_export(tmp_path)
    assert "\n" not in str(error.value) and "run `ziya-train export` again" in str(error.value)


def test_a_file_that_is_cut_short(tmp_path: Path) -> None:
    (tmp_path / ABOUT).write_text(json.dumps(WHOLE)[:-5])
    with pytest.raises(UserError, match=r"ziya\.json"):
        read_export(tmp_path)
    write_export(tmp_path, ExportFile(**WHOLE))
    with pytest.raises(UserError, match="must differ"):
        write_export(tmp_path, ExportFile(**WHOLE).model_copy(update={"averaged_steps": [1]}))
    assert read_export(tmp_path).averaged_steps == [10, 30]
