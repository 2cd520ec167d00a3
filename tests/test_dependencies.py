"""What is imported is declared: the bare install runs the client, each extra brings what its layers import."""

from __future__ import annotations

import functools
import importlib.metadata
import re
import sys
import tomllib
from collections.abc import Mapping

import pytest

from tests.source import ROOT, imports, modules

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
BROUGHT_BY = {"starlette": "fastapi", "pydantic": "fastapi", "anyio": "fastapi", "h11": "uvicorn"}
BARE = {"", "cli", "client", "config", "errors", "plugins", "tokenizer", "__main__"}


def names(requirements: list[str]) -> set[str]:
    return {canonical(re.split(r"[^\w.-]", each, maxsplit=1)[0]) for each in requirements}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@functools.cache
def homes() -> Mapping[str, list[str]]:
    return importlib.metadata.packages_distributions()


def distributions(module: str, *, eager: bool | None = None) -> set[str]:
    """The packages of others that a module imports; only those at its own import if `eager`."""
    tops = {each.module.split(".")[0] for each in imports(module) if eager is None or each.eager == eager}
    foreign = tops - set(sys.stdlib_module_names) - {"leadline"}
    found = {canonical(homes()[top][0]) for top in foreign}
    return {BROUGHT_BY.get(name, name) for name in found}


@pytest.mark.parametrize("module", list(modules()))
def test_every_import_is_declared(module: str) -> None:
    layer = module.partition(".")[2].partition(".")[0]
    core, engine, server = names(PROJECT["dependencies"]), names(EXTRAS["engine"]), names(EXTRAS["server"])
    evaluation, plot = names(EXTRAS["eval"]), names(EXTRAS["plot"])
    assert distributions(module) <= core | engine | server | evaluation | plot
    if layer in BARE:
        assert distributions(module, eager=True) <= core
    elif layer == "server":
        assert distributions(module) <= core | server
    elif layer == "eval":
        assert distributions(module) <= core | engine | evaluation | plot
        assert distributions(module, eager=True) <= core
    elif module == "leadline.train.plot":
        assert distributions(module) <= core | plot
        assert distributions(module, eager=True) - plot <= core
    elif module == "leadline.train.corpus.read":  # Parquet, which evaluation brings
        assert distributions(module) <= core | engine | evaluation
        assert distributions(module, eager=True) <= core
    else:
        assert distributions(module) <= core | engine | plot


def test_torch_has_a_floor_and_no_ceiling() -> None:
    assert [each for each in EXTRAS["engine"] if each.startswith("torch")] == ["torch>=2.11"]
    assert "torch" not in names(PROJECT["dependencies"])
    assert re.search(r"^torch==2\.\d+\.\d+$", (ROOT / "requirements/torch.txt").read_text(), re.MULTILINE)


def test_transformers_is_for_tests_alone() -> None:
    everywhere = [*PROJECT["dependencies"], *EXTRAS["engine"], *EXTRAS["server"], *EXTRAS["all"]]
    assert "transformers" not in names(everywhere)


def test_extras_refer_to_extras_that_exist() -> None:
    everywhere = [each for extra in EXTRAS.values() for each in extra]
    named = {
        name for each in everywhere for group in re.findall(r"leadline\[(.*)\]", each) for name in group.split(",")
    }
    assert named <= set(EXTRAS)
