"""generation_config.json: the sampling defaults and stop ids that a model's authors chose.

Invariant: only what the file says is ever set; `do_sample: false` is temperature 0. No torch here.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from leadline.checkpoint.folder import read_json
from leadline.errors import CheckpointError

FILE = "generation_config.json"
_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


@dataclasses.dataclass(frozen=True, slots=True)
class GenerationConfig:
    """Fields that are None were not in the file. `eos_token_ids` are the ids that end an answer."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    eos_token_ids: tuple[int, ...] = ()

    def sampling_defaults(self) -> dict[str, float | int]:
        """What to pass to `SamplingParams` where a request is silent."""
        values = {name: getattr(self, name) for name in _SAMPLING}
        return {name: value for name, value in values.items() if value is not None}

    def with_eos(self, *ids: int) -> GenerationConfig:
        """The same with these stop ids too, each once, the file's first."""
        return dataclasses.replace(self, eos_token_ids=tuple(dict.fromkeys((*self.eos_token_ids, *ids))))


def read_generation_config(folder: Path) -> GenerationConfig:
    """The folder's file; all defaults when there is none."""
    path = folder / FILE
    if not path.is_file():
        return GenerationConfig()
    raw = read_json(path)
    values = {name: _number(path, name, raw[name]) for name in _SAMPLING if raw.get(name) is not None}
    if raw.get("do_sample") is False:
        values = {"temperature": 0.0}  # the hub's word for greedy; the other fields then mean nothing
    return GenerationConfig(**values, eos_token_ids=_ids(path, raw.get("eos_token_id")))


def _number(path: Path, name: str, value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise CheckpointError(f"{path}: {name} must be a number, not {value!r}")
    return int(value) if name == "top_k" else float(value)


def _ids(path: Path, value: Any) -> tuple[int, ...]:
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(token) is int and token >= 0 for token in ids):
        raise CheckpointError(f"{path}: eos_token_id must be a token id or a list of them, not {value!r}")
    return tuple(ids)
