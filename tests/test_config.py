"""The configuration loader: precedence field by field, no guessing, errors that name the source and the key."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leadline.config import did_you_mean, load
from leadline.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Source:
    path: Path
    weight: float = 1.0


@dataclasses.dataclass(frozen=True)
class Optimizer:
    lr: float = 4.2e-4
    betas: tuple[float, float] = (0.9, 0.95)
    name: Literal["adamw", "muon"] = "adamw"


@dataclasses.dataclass(frozen=True)
class Recipe:
    steps: int = 1000
    rate: float = 0.5
    compile: bool = False
    title: str = ""
    out: Path | None = None
    seeds: tuple[int, ...] = ()
    limit: int | None = None
    optimizer: Optimizer = Optimizer(lr=1e-3)
    warmup: Optimizer | None = None
    sources: tuple[Source, ...] = ()


@dataclasses.dataclass(frozen=True)
class Strict:
    data: Path
    source: Source


Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_toml(text: str) -> Path:
        path = tmp_path / "recipe.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write_toml


def test_nothing_given_is_the_defaults() -> None:
    assert load(Recipe) == Recipe()


def test_each_source_wins_over_the_one_before(write: Write) -> None:
    toml = write('steps = 1\nrate = 0.1\ntitle = "toml"\n[optimizer]\nlr = 0.1\nname = "muon"\n')
    env = {"LEADLINE_RATE": "0.2", "LEADLINE_TITLE": "env", "LEADLINE_OPTIMIZER__LR": "0.2", "HOME": "/nowhere"}
    got = load(Recipe, toml, env, {"title": "flag", "limit": None})
    assert (got.steps, got.rate, got.title) == (1, 0.2, "flag")
    assert got.optimizer == Optimizer(lr=0.2, name="muon")


def test_a_table_changes_the_fields_default_not_the_classs(write: Write) -> None:
    assert load(Recipe, write('[optimizer]\nname = "muon"')).optimizer == Optimizer(lr=1e-3, name="muon")


def test_optional_table_begins_at_the_classs_defaults(write: Write) -> None:
    assert load(Recipe, write("[warmup]\nlr = 1")).warmup == Optimizer(lr=1.0)
    assert load(Recipe, write("[warmup]\nlr = 1"), {"LEADLINE_WARMUP": "none"}).warmup is None


def test_array_of_tables(write: Write) -> None:
    got = load(Recipe, write('[[sources]]\npath = "a"\n[[sources]]\npath = "b"\nweight = 2\n'))
    assert got.sources == (Source(Path("a")), Source(Path("b"), 2.0))


def test_text_is_parsed_by_the_fields_type() -> None:
    env = {
        "LEADLINE_STEPS": "7",
        "LEADLINE_COMPILE": "Yes",
        "LEADLINE_OUT": "runs/1",
        "LEADLINE_SEEDS": "1, 2,3",
        "LEADLINE_LIMIT": "none",
        "LEADLINE_OPTIMIZER__BETAS": "0.8,0.9",
        "LEADLINE_TITLE": "123",
    }
    got = load(Recipe, env=env)
    assert (got.steps, got.compile, got.out, got.seeds, got.limit) == (7, True, Path("runs/1"), (1, 2, 3), None)
    assert (got.optimizer.betas, got.title) == ((0.8, 0.9), "123")


def test_flags_take_values_text_and_tables() -> None:
    flags = {"steps": 3, "out": Path("x"), "optimizer.lr": "0.5", "optimizer": {"name": "muon"}, "seeds": (4,)}
    got = load(Recipe, flags=flags)
    assert got.optimizer == Optimizer(lr=0.5, name="muon")
    assert (got.steps, got.out, got.seeds) == (3, Path("x"), (4,))
    assert load(Recipe, flags={"optimizer": Optimizer(lr=2.0)}).optimizer == Optimizer(lr=2.0)


def test_another_prefix_reads_only_its_own_names() -> None:
    env = {"LEADLINE_TRAIN_STEPS": "5", "LEADLINE_STEPS": "6"}
    assert load(Recipe, env=env, prefix="LEADLINE_TRAIN_").steps == 5


def test_home_is_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    assert load(Recipe, flags={"out": "~/runs"}).out == Path("/home/ada/runs")


def test_required_fields(write: Write) -> None:
    got = load(Strict, write('data = "d"\n[source]\npath = "p"\n'))
    assert got == Strict(Path("d"), Source(Path("p")))
    with pytest.raises(ConfigError, match=r"^data is required$"):
        load(Strict)
    with pytest.raises(ConfigError, match=r"^source\.path is required$"):
        load(Strict, flags={"data": "d"})


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ("stpes = 1", r"recipe\.toml: unknown key 'stpes'; did you mean 'steps'\?"),
        ("[optimizer]\nlrr = 1", r"unknown key 'optimizer\.lrr'; did you mean 'optimizer\.lr'\?"),
        ("[[sources]]\npath = 'a'\nwieght = 1", r"unknown key 'wieght'; did you mean 'weight'\?"),
        ("[[sources]]\nweight = 1", r"path is required"),
        ("steps = 1.5", r"steps must be a whole number, got 1\.5"),
        ("steps = true", r"steps must be a whole number, got True"),
        ("steps = '1'", r"steps must be a whole number, got '1'"),
        ("rate = nan", r"rate must be a number, got nan"),
        ("rate = true", r"rate must be a number"),
        ("compile = 1", r"compile must be true or false, got 1"),
        ("title = 1", r"title must be text"),
        ("seeds = 1", r"seeds must be a list, each a whole number, got 1"),
        ("limit = 'x'", r"limit must be a whole number or none"),
        ("optimizer = 1", r"optimizer must be a table of Optimizer"),
        ("[optimizer]\nbetas = [0.9]", r"optimizer\.betas must be a list of 2: a number, a number, got \[0\.9\]"),
        ("[optimizer]\nname = 'sgd'", r"optimizer\.name must be one of 'adamw', 'muon', got 'sgd'"),
        ("steps = 1 2", r"recipe\.toml: .*line 1"),
    ],
)
def test_toml_errors_are_one_line(write: Write, toml: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load(Recipe, write(toml))
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"LEADLINE_STPES": "1"}, r"environment: unknown key 'stpes'; did you mean 'steps'\?"),
        ({"LEADLINE_STEPS": "1e3"}, r"environment: steps must be a whole number, got '1e3'"),
        ({"LEADLINE_COMPILE": "maybe"}, r"compile must be true or false"),
        ({"LEADLINE_OPTIMIZER": "x", "LEADLINE_OPTIMIZER__LR": "1"}, r"optimizer"),
        ({"LEADLINE_TITLE__X": "1"}, r"title must be text"),
        ({"LEADLINE_": "1"}, r"unknown key ''"),
    ],
)
def test_environment_errors(env: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(Recipe, env=env)


def test_a_part_and_the_whole_cannot_both_be_flags() -> None:
    with pytest.raises(ConfigError, match="as a whole"):
        load(Recipe, flags={"optimizer.lr": 1, "optimizer": Optimizer()})


def test_long_values_are_cut_in_errors() -> None:
    with pytest.raises(ConfigError) as caught:
        load(Recipe, flags={"steps": "x" * 10_000})
    assert len(caught.value.message) < 200


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*absent\.toml: No such file"):
        load(Recipe, tmp_path / "absent.toml")
    (tmp_path / "latin.toml").write_bytes(b'title = "\xff"')
    with pytest.raises(ConfigError, match=r"latin\.toml: .*utf-8"):
        load(Recipe, tmp_path / "latin.toml")


def test_did_you_mean_says_nothing_when_nothing_is_near() -> None:
    assert did_you_mean("zzz", ["steps"]) == ""


OPTIMIZERS = st.builds(
    Optimizer,
    lr=st.floats(allow_nan=False),
    betas=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    name=st.sampled_from(["adamw", "muon"]),
)
RECIPES = st.builds(
    Recipe,
    steps=st.integers(-(2**62), 2**62),
    rate=st.floats(allow_nan=False),
    compile=st.booleans(),
    title=st.text(st.characters(codec="utf-8", exclude_characters="\r")),
    seeds=st.lists(st.integers(-(2**62), 2**62)).map(tuple),
    limit=st.none() | st.integers(0, 9),
    optimizer=OPTIMIZERS,
)


def toml_value(value: Any) -> str:
    if isinstance(value, str):  # JSON's escapes are TOML's, but for DEL, which TOML wants escaped
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, tuple):
        return "[" + ", ".join(map(toml_value, value)) + "]"
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else repr(value)


def as_toml(config: Any) -> str:
    tables = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    plain = {k: v for k, v in tables.items() if v is not None and not dataclasses.is_dataclass(v)}
    lines = [f"{key} = {toml_value(value)}" for key, value in plain.items()]
    nested = {k: v for k, v in tables.items() if dataclasses.is_dataclass(v)}
    return "\n".join([*lines, *(f"[{key}]\n{as_toml(value)}" for key, value in nested.items())])


def as_env(config: Any, prefix: str = "LEADLINE_") -> dict[str, str]:
    env: dict[str, str] = {}
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), f"{prefix}{field.name.upper()}"
        if dataclasses.is_dataclass(value):
            env |= as_env(value, f"{name}__")
        elif isinstance(value, tuple):
            env[name] = ",".join(map(str, value))
        else:
            env[name] = "none" if value is None else str(value)
    return env


@given(RECIPES)
def test_toml_round_trip(tmp_path_factory: pytest.TempPathFactory, recipe: Recipe) -> None:
    path = tmp_path_factory.mktemp("toml") / "recipe.toml"
    path.write_text(as_toml(recipe), encoding="utf-8", newline="")
    assert load(Recipe, path) == recipe


@given(RECIPES)
def test_environment_round_trip(recipe: Recipe) -> None:
    assert load(Recipe, env=as_env(recipe)) == recipe


@given(RECIPES, RECIPES, st.sets(st.sampled_from([f.name for f in dataclasses.fields(Recipe)])))
def test_a_flag_wins_for_its_field_alone(below: Recipe, above: Recipe, names: set[str]) -> None:
    flags = {name: getattr(above, name) for name in names}
    got = load(Recipe, env=as_env(below), flags=flags)
    for field in dataclasses.fields(Recipe):
        given_value = flags.get(field.name)
        expected = getattr(below, field.name) if given_value is None else given_value
        assert getattr(got, field.name) == expected


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from([f.name for f in dataclasses.fields(Recipe)]) | st.text(), JSON))
def test_any_flags_load_or_are_a_config_error(flags: dict[str, Any]) -> None:
    with contextlib.suppress(ConfigError):
        assert isinstance(load(Recipe, flags=flags), Recipe)
