"""Answers kept between runs. Their key is what they depend on: weights, tokenizer, dtype, the request; never a model's name.

    OUT/cache/weights.json                      digest of every weights file by (path, size, times, inode): read once
    OUT/cache/<key of the model>/model.json     what the key is made of
    OUT/cache/<key of the model>/<subject>-<key of its requests>.json    answers, in the requests' order

A checkpoint that was written again under the same name, another tokenizer or another dtype is another key.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson

from ziya.errors import UserError
from ziya.exports import TOKENIZER_FILES
from ziya.files import digest, file_digest, json_bytes, write_bytes, write_json

ENGINE = 2  # raised when the same request may get another answer: rows, truncation, stop strings, which tokens are scored
WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
REMEMBERED = 1 << 20  # bytes; smaller files are read again
SETTINGS = ("config.json", "generation_config.json")


def weights_files(folder: Path) -> list[Path]:
    """The files that hold a folder's weights: safetensors, else PyTorch's; UserError when there are none."""
    for pattern in WEIGHTS:
        found = sorted(path for path in folder.glob(pattern) if path.is_file())
        if found:
            return found
    raise UserError(
        f"{folder} holds no weights (*.safetensors or pytorch_model*.bin): give a folder that save_pretrained wrote"
    )


class Digests:
    """Digests of large files, remembered in `memory` by path, size, times and inode, so that each is read once."""

    def __init__(self, memory: Path) -> None:
        self.memory = memory
        try:
            known = orjson.loads(memory.read_bytes())
        except (FileNotFoundError, orjson.JSONDecodeError):
            known = {}
        self._known: dict[str, Any] = known if isinstance(known, dict) else {}

    def of(self, path: Path) -> str:
        """The digest of a file's bytes."""
        place = str(path.resolve())
        status = path.stat()
        # The change time cannot be set back by a copy that keeps modification times, as rsync -t does.
        mark = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
        if place in self._known and self._known[place][0] == mark:
            return str(self._known[place][1])
        found = file_digest(path)
        if status.st_size > REMEMBERED:
            self._known[place] = [mark, found]
            write_json(self.memory, self._known)
        return found

    def weights(self, folder: Path) -> str:
        """One digest of a folder's weights and of the settings that shape what they compute."""
        paths = [*weights_files(folder), *(folder / name for name in SETTINGS if (folder / name).is_file())]
        return digest(json_bytes([[path.name, self.of(path)] for path in paths]))

    def tree(self, folder: Path) -> str:
        """One digest of all files below a folder."""
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        return digest(json_bytes([[str(path.relative_to(folder)), self.of(path)] for path in paths]))

    def tokenizer(self, folder: Path) -> str:
        """One digest of a folder's tokenizer files."""
        return digest(json_bytes([[name, self.of(folder / name)] for name in TOKENIZER_FILES if (folder / name).is_file()]))


def model_identity(
    digests: Digests, folder: Path, tokenizer: Path, dtype: str, max_length: int | None
) -> dict[str, Any]:
    """All that an answer depends on beside the request. `max_length`: the setting; None is what the folder's files say."""
    return {
        "weights": digests.weights(folder),
        "tokenizer": digests.tokenizer(tokenizer),
        "dtype": dtype,
        "max_length": max_length,
        "engine": ENGINE,
    }


class AnswerCache:
    """Answers of one model; `versions` maps a subject's harness name to its version."""

    def __init__(self, root: Path, identity: dict[str, Any], versions: dict[str, str]) -> None:
        self.identity, self.versions = identity, versions
        self.folder = root / digest(json_bytes(identity))[:20]

    def path(self, subject: str, kind: str, requests: Sequence[Any]) -> Path:
        """The file of these requests: its name holds a digest of their texts and of the task's version."""
        asked = {
            "version": self.versions.get(subject, ""),
            "kind": kind,
            "requests": [request.args for request in requests],
        }
        key = digest(orjson.dumps(asked, option=orjson.OPT_SORT_KEYS))[:20]
        return self.folder / f"{re.sub(r'[^A-Za-z0-9_.-]', '-', subject)[:80]}-{key}.json"

    def find(self, subject: str, kind: str, requests: Sequence[Any]) -> list[Any] | None:
        """The answers, None when they are not there; a damaged file is as good as none."""
        path = self.path(subject, kind, requests)
        try:
            answers = orjson.loads(path.read_bytes())
        except (FileNotFoundError, orjson.JSONDecodeError):
            answers = None
        if not isinstance(answers, list) or len(answers) != len(requests):
            return None
        return answers

    def store(self, subject: str, kind: str, requests: Sequence[Any], answers: list[Any]) -> None:
        """Write the answers under their key."""
        about = self.folder / "model.json"
        if not about.is_file():
            write_json(about, self.identity)
        write_bytes(self.path(subject, kind, requests), orjson.dumps(answers))


__all__ = ["ENGINE", "AnswerCache", "Digests", "model_identity", "weights_files"]
