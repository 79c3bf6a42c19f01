"""Atomic writes, markers and canonical JSON."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from ziya.errors import UserError, run_main
from ziya.files import atomic_path, json_bytes, read_json, remove_temporaries, write_bytes, write_json
from ziya.manifest import Markers, identity


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    write_bytes(path, b"old")
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.write_bytes(b"half")
        raise RuntimeError
    assert path.read_bytes() == b"old"
    assert [item.name for item in path.parent.iterdir()] == ["file"]


def test_a_full_disk_is_the_users_to_mend(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no space left"), atomic_path(tmp_path / "file"):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_temporaries_of_the_dead_go(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / ".tmp-17-x").write_bytes(b"")
    (tmp_path / "a" / "x").write_bytes(b"")
    remove_temporaries(tmp_path)
    assert [item.name for item in (tmp_path / "a").iterdir()] == ["x"]


def test_json_is_canonical_and_broken_json_is_named(tmp_path: Path) -> None:
    assert json_bytes({"b": 1, "a": "中"}) == json_bytes({"a": "中", "b": 1})
    write_json(tmp_path / "x.json", {"a": [1, None]})
    assert read_json(tmp_path / "x.json") == {"a": [1, None]}
    (tmp_path / "x.json").write_bytes(b"{")
    with pytest.raises(UserError, match=r"x\.json is not valid JSON"):
        read_json(tmp_path / "x.json")


def test_a_marker_counts_only_while_its_outputs_stand(tmp_path: Path) -> None:
    markers = Markers(tmp_path, tmp_path / "work")
    output = tmp_path / "out.bin"
    write_bytes(output, b"12345")
    wanted = identity({"a": 1}, "input")
    assert markers.result("step", "one", wanted) is None
    markers.finish("step", "one", wanted, [output], {"rows": 5})
    assert markers.result("step", "one", wanted) == {"rows": 5}
    assert markers.result("step", "one", identity({"a": 2}, "input")) is None
    output.write_bytes(b"1234")
    assert markers.result("step", "one", wanted) is None
    output.unlink()
    assert markers.result("step", "one", wanted) is None


def test_users_errors_are_one_line_and_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> int:
        raise UserError("found x; need y; change z")

    def stop() -> int:
        raise KeyboardInterrupt

    assert run_main(fail) == 2
    assert capsys.readouterr().err == "error: found x; need y; change z\n"
    assert run_main(stop) == 130
    assert run_main(lambda: 0) == 0


def test_a_path_that_cannot_be_used_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ZIYA_TRACEBACK", raising=False)
    file = tmp_path / "文件"
    file.write_text("x")

    def told(work: Callable[[], object]) -> str:
        assert run_main(lambda: int(bool(work()))) == 2
        return capsys.readouterr().err

    assert told(lambda: (tmp_path / "gone").read_text()) == (
        f"error: {tmp_path / 'gone'}: no such file or folder: give the path of one that is there\n"
    )
    assert "文件/x: a part of this path is a file" in told((file / "x").read_text)
    assert "it is there already" in told(file.mkdir)
    assert "it is a folder" in told(tmp_path.read_text)
    monkeypatch.setenv("ZIYA_TRACEBACK", "1")
    assert "Traceback" in told((tmp_path / "gone").read_text)

    def broken() -> int:
        raise OSError(errno.EIO, "Input/output error", "disk")

    with pytest.raises(OSError, match="Input/output"):  # not a mistake of the user's
        run_main(broken)
