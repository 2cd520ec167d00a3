"""Where a model comes from: a folder, a hub, or the package itself.

Invariant: `read_config` fetches at most config.json; only `fetch` brings weights. No torch here.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Protocol

import leadline
from leadline.errors import ModelNotFound
from leadline.model.config import ModelConfig

EMBEDDED = Path(leadline.__file__).parent / "embedded" / "model"
EMBEDDED_NAME = "leadline-small"
MODELSCOPE = "modelscope:"

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


class Source(Protocol):
    """`name` is what the model is called where it is served."""

    @property
    def name(self) -> str: ...

    @property
    def reference(self) -> str:
        """What another program finds the model under: a path or a hub id."""
        ...

    @property
    def download_folder(self) -> Path | None:
        """Where `fetch` would put the weights; None when they are on this machine already."""
        ...

    def read_config(self) -> ModelConfig: ...

    def fetch(self, *, progress: bool | None = None) -> Path:
        """The complete folder, downloaded if need be."""
        ...


class Folder:
    """A folder on this machine."""

    def __init__(self, path: Path, name: str | None = None) -> None:
        self.path = path
        self.name = name or path.resolve().name

    @property
    def reference(self) -> str:
        return str(self.path.absolute())

    @property
    def download_folder(self) -> Path | None:
        return None

    def read_config(self) -> ModelConfig:
        return ModelConfig.from_folder(self.path)

    def fetch(self, *, progress: bool | None = None) -> Path:
        return self.path


def find_source(model: str | Path | None = None) -> Source:
    """A folder if there is one of that name, else a hub id; None is the embedded model."""
    if model is None:
        return _embedded()
    path = Path(model).expanduser()
    if str(model) and path.is_dir():  # the empty path is the working directory
        return Folder(path)
    if path.is_file():
        gguf = "; GGUF is not read: leadline pull org/name --quantize int4 makes 4 bits from the hub's own weights"
        why = gguf if path.suffix == ".gguf" else ""
        raise ModelNotFound(f"{path} is a file; a model is the folder that holds config.json and its weights{why}")
    text = str(model)
    is_modelscope, name = text.startswith(MODELSCOPE), text.removeprefix(MODELSCOPE)
    if isinstance(model, Path) or not _HUB_ID.fullmatch(name) or name.startswith((".", "-", "~")):
        raise ModelNotFound(f"{text!r} is neither a folder nor a hub id like org/name")
    from leadline.checkpoint.hub import HuggingFace, ModelScope

    return ModelScope(name) if is_modelscope else HuggingFace(name)


def _embedded() -> Source:
    if not (EMBEDDED / "config.json").is_file():
        raise ModelNotFound("this installation has no embedded model; name one with --model")
    return Folder(EMBEDDED, EMBEDDED_NAME)
