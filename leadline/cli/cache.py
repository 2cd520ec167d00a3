"""`leadline cache list | clear | pin | unpin`: the pages of context that are kept on the disk."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from leadline.checkpoint.machine import show_bytes
from leadline.cli.options import MODEL, ModelOptions
from leadline.engine.store import PageStore, default_root
from leadline.errors import ConfigError, DataError, InvalidRequest

if TYPE_CHECKING:
    from leadline.engine.load import LoadedEngine

app = App(name="cache", help="Pages of context that are kept on the disk: list, clear, pin a context, unpin it.")


@app.command(name="list")
def list_pages(*, json_output: Annotated[bool, Parameter(name="--json", negative="")] = False) -> None:
    """What is kept, by model and format, and the contexts that are pinned.

    Args:
        json_output: Print one JSON object.
    """
    store = PageStore(default_root())
    held, pins = store.holdings(), store.pins()
    if json_output:
        models = [{"model": h.model, "format": h.format, "pages": h.pages, "bytes": h.bytes} for h in held]
        contexts = [{"name": pin.name, "model": pin.model, "tokens": pin.tokens} for pin in pins]
        print(json.dumps({"folder": str(store.root), "models": models, "pinned": contexts}, indent=2))
        return
    print(f"{store.root}: {show_bytes(sum(each.bytes for each in held))}")
    for each in held:
        print(f"  {each.model}: {each.pages:,} pages, {show_bytes(each.bytes)} ({each.format})")
    for pin in pins:
        print(f"  pinned {pin.name!r}: {pin.tokens:,} tokens for {pin.model}")


@app.command
def clear() -> None:
    """Remove every page of every model, pinned ones too."""
    pages, size = PageStore(default_root()).clear()
    print(f"{pages:,} pages were removed, {show_bytes(size)}")


@app.command
def pin(name: str, /, *, file: Path, model: ModelOptions = MODEL) -> None:
    """Compute a context once and keep it under a name, whatever its age: prompts that begin with it start at once.

    The context is the text as a system message stands in a prompt, and as a raw completion begins.

    Args:
        name: What the context is called in `leadline cache list` and `unpin`.
        file: The text.
    """
    text = _read(file)
    loaded = model.load(disk_cache=True)
    tokens, pages = _compute(loaded, text)
    if not pages:
        size = loaded.engine.cache.page_size
        raise InvalidRequest(f"{file} has {tokens} tokens; a context that can be kept has {size} at least")
    disk = loaded.engine.disk
    assert disk is not None
    disk.flush()
    disk.store.pin(name, pages, model=loaded.engine.info.model, tokens=len(pages) * loaded.engine.cache.page_size)
    print(f"{name!r} is pinned: {len(pages)} pages of {tokens:,} tokens")


@app.command
def unpin(name: str, /) -> None:
    """Let a pinned context age like any other.

    Args:
        name: The context's name.
    """
    PageStore(default_root()).unpin(name)
    print(f"{name!r} is no longer pinned")


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not valid UTF-8 at byte {error.start}") from None


def _compute(loaded: LoadedEngine, text: str) -> tuple[int, list[bytes]]:
    """Run the prompt once; its tokens, and the keys of its full pages."""
    from leadline.engine.blocks import extend_keys, root_key
    from leadline.engine.types import EngineRequest, SamplingParams

    engine = loaded.engine
    encoded = loaded.tokenizer.encode_prompt(text, limit=engine.limit)
    for warning in encoded.warnings:
        print(f"leadline: {warning}", file=sys.stderr)
    engine.add(EngineRequest("pin", encoded.ids, SamplingParams(temperature=0.0, max_tokens=1)))
    while engine.has_work:
        if any(output.error for output in engine.step()):
            raise ConfigError("the model cannot compute this context")
    keys: list[bytes] = []
    root = root_key(engine.scheduler.model, engine.layout)
    extend_keys(keys, root, encoded.ids, len(encoded.ids) // engine.cache.page_size, engine.cache.page_size)
    return len(encoded.ids), keys
