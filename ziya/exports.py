"""`ziya.json` of an exported model: which training state it is. Written by training, read by evaluation.

It is written last, so a folder that holds one is whole.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ziya.errors import UserError
from ziya.files import read_json, write_json

ABOUT = "ziya.json"
SAMPLES = "samples.json"
TOKENIZER_FILES = (  # all that may make up the tokenizer of a Hugging Face folder
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)
Count = Annotated[int, Field(ge=0)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class ExportFile(_Strict):
    """`step` counts optimizer updates of the whole run, `tokens` its non-padding tokens; `averaged_steps`: the checkpoints whose
    mean it is, this one last; `architecture`: the model's shape, `training.architecture.Architecture.to_json()`."""

    version: Literal[1] = 1
    step: Count
    stage: Annotated[int, Field(ge=1)]
    tokens: Count
    averaged_steps: Annotated[list[Count], Field(min_length=1)]
    dtype: Literal["bf16", "fp32"]
    architecture: dict[str, Any]


def check_export(value: Any, origin: str) -> ExportFile:
    """Parse it; UserError names what is missing, wrong, or does not fit together."""
    try:
        found = ExportFile.model_validate(value)
    except ValidationError as error:
        wrong = [f"{'.'.join(map(str, item['loc'])) or 'the whole'} ({item['msg']})" for item in error.errors()[:5]]
        raise UserError(
            f"{origin} does not tell of an export: {', '.join(wrong)}: run `ziya-train export` again"
        ) from error
    if found.averaged_steps[-1] != found.step or len(set(found.averaged_steps)) != len(found.averaged_steps):
        raise UserError(
            f"{origin}: averaged_steps {found.averaged_steps} must differ and end with step {found.step}: run `ziya-train "
            f"export` again"
        )
    return found


def is_export(folder: Path) -> bool:
    """Whether a model folder says where in a run it comes from; others are base models."""
    return (folder / ABOUT).is_file()


def read_export(folder: Path) -> ExportFile:
    """What the folder's `ziya.json` tells."""
    path = folder / ABOUT
    if not path.is_file():
        raise UserError(f"{folder} has no {ABOUT}: it is no export of `ziya-train`, or not a whole one")
    return check_export(read_json(path), str(path))


def write_export(folder: Path, about: ExportFile) -> None:
    """Check it and write it atomically."""
    value = about.model_dump()
    check_export(value, str(folder / ABOUT))
    write_json(folder / ABOUT, value)
