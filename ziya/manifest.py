"""Markers of finished work: a step's output counts as done only when its marker, written last, says so.

`<work>/done/<step>/<key>.json` holds the identity of what went in (a digest of settings and inputs), every output with its
size and digest, and the step's result. Timings vary between equal runs, so they live apart, in `<work>/timings/`.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ziya.files import digest, file_digest, json_bytes, read_json, write_json


def identity(*parts: Any) -> str:
    """Digest of JSON-serialisable parts: the identity of a piece of work."""
    return digest(json_bytes(list(parts)))


class Markers:
    """The markers of one run folder. `root` is the folder that output paths are relative to."""

    def __init__(self, root: Path, work: Path) -> None:
        self.root, self.work = root, work

    def _path(self, step: str, key: str) -> Path:
        return self.work / "done" / step / f"{key}.json"

    def result(self, step: str, key: str, wanted: str) -> Any | None:
        """The result of finished work with this identity whose outputs still stand at their recorded sizes, else None."""
        path = self._path(step, key)
        if not path.exists():
            return None
        marker = read_json(path)
        if marker["identity"] != wanted:
            return None
        for name, (size, _) in marker["outputs"].items():
            output = self.root / name
            if not output.exists() or output.stat().st_size != size:
                return None
        return marker["result"]

    def result_of(self, step: str, key: str) -> Any:
        """The recorded result of finished work."""
        return read_json(self._path(step, key))["result"]

    def outputs(self, step: str, key: str) -> dict[str, str]:
        """Output path -> digest, as recorded."""
        return {name: value[1] for name, value in read_json(self._path(step, key))["outputs"].items()}

    def finish(self, step: str, key: str, wanted: str, outputs: Sequence[Path], result: Any) -> None:
        """Record finished work. Every output must exist: it is read back for its digest."""
        described = {str(path.relative_to(self.root)): [path.stat().st_size, file_digest(path)] for path in outputs}
        write_json(self._path(step, key), {"identity": wanted, "outputs": described, "result": result})

    def forget(self, step: str) -> None:
        """Remove all markers of a step, before its outputs change."""
        shutil.rmtree(self.work / "done" / step, ignore_errors=True)

    def timing(self, step: str, key: str, values: Any) -> None:
        """Keep the timings of one piece of work until the run ends."""
        write_json(self.work / "timings" / step / f"{key}.json", values)

    def timings(self) -> dict[str, dict[str, Any]]:
        """step -> key -> timings kept so far."""
        found: dict[str, dict[str, Any]] = {}
        for path in sorted((self.work / "timings").glob("*/*.json")):
            found.setdefault(path.parent.name, {})[path.stem] = read_json(path)
        return found

    def drop_timings(self) -> None:
        """Forget the timings kept so far (they were merged elsewhere)."""
        shutil.rmtree(self.work / "timings", ignore_errors=True)
