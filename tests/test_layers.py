"""The house's layers: imports go downward only, and what must start at once or run without torch never loads it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.source import foreign, imports, modules

RANK = {
    "errors": 0,
    "config": 1,
    "embedded": 1,
    "plugins": 2,
    "ops": 3,
    "tokenizer": 3,
    "model": 4,
    "parallel": 5,
    "checkpoint": 6,
    "engine": 7,
    "client": 8,
    "eval": 9,
    "train": 10,
    "server": 10,
    "cli": 11,
    "__main__": 12,
}
# What a layer sees of the engine: the words of the protocol, not the machine behind them.
ENGINE_WORDS = "leadline.engine.types"
WITHOUT_TORCH = ("server", "client", "cli", "tokenizer", "config", "plugins", "errors")
WITHOUT_TORCH_MODULES = (
    ENGINE_WORDS,
    "leadline.engine.scheduler",
    "leadline.engine.blocks",
    "leadline.engine.sequence",
    "leadline.engine.checks",
    "leadline.engine.grammar",
    "leadline.engine.fake",
)
DISTRIBUTED = {"parallel", "checkpoint", "train"}


def layer(module: str) -> str:
    """`leadline.engine.types` is in `engine`; `leadline` itself is in no layer, its names are lazy."""
    return module.partition(".")[2].partition(".")[0]


OURS = [name for name in modules() if layer(name)]
LIGHT = [name for name in OURS if layer(name) in WITHOUT_TORCH or name in WITHOUT_TORCH_MODULES]


@pytest.mark.parametrize("module", OURS)
def test_imports_go_downward(module: str) -> None:
    for each in imports(module):
        below = layer(each.module)
        if each.module.split(".")[0] == "leadline" and below not in ("", layer(module)):
            assert RANK[below] < RANK[layer(module)], f"{module}:{each.line} imports {each.module}, which is not below"


@pytest.mark.parametrize("module", [name for name in OURS if layer(name) in {"server", "client"}])
def test_server_and_client_see_the_engines_words_only(module: str) -> None:
    seen = {each.module for each in imports(module) if layer(each.module) == "engine"}
    assert seen <= {ENGINE_WORDS}


@pytest.mark.parametrize("module", LIGHT)
def test_the_light_layers_load_no_torch(module: str) -> None:
    assert not foreign(module) & {"torch", "numpy", "safetensors", "transformers"}


@pytest.mark.parametrize("module", OURS)
def test_torch_distributed_has_three_users(module: str) -> None:
    if layer(module) not in DISTRIBUTED:
        assert not [each for each in imports(module) if each.module.startswith("torch.distributed")]


@pytest.mark.parametrize("module", list(modules()))
def test_transformers_is_never_imported(module: str) -> None:
    assert not [each for each in imports(module) if each.module.split(".")[0] == "transformers"]


def test_every_layer_has_its_rank() -> None:
    assert {layer(name) for name in OURS} <= set(RANK)


def test_the_light_layers_run_without_torch() -> None:
    """The same by trial, where an import hidden in another's package would show: `leadline.server.app` and all."""
    assert {"leadline.cli", "leadline.client", "leadline.server.app", "leadline.tokenizer"} <= set(LIGHT)
    code = f"""
import importlib, sys
for heavy in ("torch", "transformers"):
    sys.modules[heavy] = None
for name in {LIGHT!r}:
    importlib.import_module(name)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
