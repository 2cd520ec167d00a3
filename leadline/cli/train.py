"""`leadline train`: a stage of the paper's training from a recipe in TOML."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from cyclopts import App

if TYPE_CHECKING:
    from leadline.train.config import TrainConfig

Recipe = TypeVar("Recipe")
Stage = Literal["pretrain", "extend", "sft", "reward", "grpo"]

app = App(name="train", help="Train a model: a recipe in TOML, resumable at any moment.")


def _flags(overrides: tuple[str, ...]) -> dict[str, str]:
    from leadline.errors import ConfigError

    pairs = [item.partition("=") for item in overrides]
    if bad := [name for name, equals, _ in pairs if not equals]:
        raise ConfigError(f"--set takes NAME=VALUE, not {bad[0]!r}")
    return {name: value for name, _, value in pairs}


def _load(cls: type[Recipe], recipe: Path, overrides: tuple[str, ...]) -> Recipe:
    from leadline.config import load

    return load(cls, recipe, os.environ, _flags(overrides), prefix="LEADLINE_TRAIN_")


def _config(recipe: Path, overrides: tuple[str, ...]) -> TrainConfig:
    from leadline.train.config import TrainConfig

    return _load(TrainConfig, recipe, overrides)


def _stage(name: str, recipe: Path, overrides: tuple[str, ...]) -> int:
    from leadline.train import stages

    config = _config(recipe, overrides)
    return _ended(getattr(stages, name)(config), config.out)


def _export(recipe: Path, folder: Path, stage: Stage, overrides: tuple[str, ...]) -> int:
    """The step that was written."""
    from leadline.train import grpo, reward, run, stages

    if stage == "reward":
        rewarding = _load(reward.RewardConfig, recipe, overrides)
        return run.export_newest(rewarding, reward.starting_model(rewarding.init), folder)
    if stage == "grpo":
        reinforcing = _load(grpo.GrpoConfig, recipe, overrides)
        return run.export_newest(reinforcing, grpo.language_model(reinforcing.init), folder)
    return stages.export_newest(_config(recipe, overrides), folder)


def _ended(complete: bool, out: Path) -> int:
    told = f"complete: {out / 'model'}" if complete else "stopped and saved; the same command goes on from here"
    if os.environ.get("RANK", "0") == "0":  # of the processes that torchrun starts, the first tells
        print(told)
    return 0 if complete else 130


@app.command
def pretrain(recipe: Path, /, *, set: tuple[str, ...] = ()) -> int:
    """Pre-train on a corpus folder (`leadline train data` makes one).

    Args:
        recipe: The recipe, a TOML file.
        set: Override a field of the recipe, NAME=VALUE; may be repeated.
    """
    return _stage("pretrain", recipe, set)


@app.command
def extend(recipe: Path, /, *, set: tuple[str, ...] = ()) -> int:
    """Give a trained model a longer context by YaRN: pre-training goes on with longer rows.

    Args:
        recipe: The recipe, a TOML file, with `init` and `yarn.factor`.
        set: Override a field of the recipe, NAME=VALUE; may be repeated.
    """
    return _stage("extend", recipe, set)


@app.command
def sft(recipe: Path, /, *, set: tuple[str, ...] = ()) -> int:
    """Fine-tune on conversations: train.jsonl and valid.jsonl of {"messages": [...]} or {"prompt", "completion"} lines.

    Args:
        recipe: The recipe, a TOML file.
        set: Override a field of the recipe, NAME=VALUE; may be repeated.
    """
    return _stage("sft", recipe, set)


@app.command
def reward(recipe: Path, /, *, set: tuple[str, ...] = ()) -> int:
    """Train a reward model: train.jsonl and valid.jsonl of chosen and rejected answers, or of answers and scores.

    Args:
        recipe: The recipe, a TOML file.
        set: Override a field of the recipe, NAME=VALUE; may be repeated.
    """
    from leadline.train.reward import RewardConfig, reward

    config = _load(RewardConfig, recipe, set)
    return _ended(reward(config), config.out)


@app.command
def preferences(recipe: Path, /, *, set: tuple[str, ...] = ()) -> None:
    """Make data for a reward model: a model's answers to questions that can be verified, right against wrong.

    Args:
        recipe: The recipe, a TOML file.
        set: Override a field of the recipe, NAME=VALUE; may be repeated.
    """
    from leadline.train.preferences import PreferencesConfig, make_preferences

    config = _load(PreferencesConfig, recipe, set)
    for split, count in make_preferences(config).items():
        print(f"{config.out / split}.jsonl: {count:,} {config.kind}")


@app.command
def grpo(recipe: Path, /, *, set: tuple[str, ...] = ()) -> int:
    """Reinforce better answers: groups sampled by the engine, rewarded, GRPO's objective.

    Args:
        recipe: The recipe, a TOML file.
        set: Override a field of the recipe, NAME=VALUE; may be repeated.
    """
    from leadline.train.grpo import GrpoConfig, grpo

    config = _load(GrpoConfig, recipe, set)
    return _ended(grpo(config), config.out)


@app.command
def export(recipe: Path, folder: Path, /, *, stage: Stage = "pretrain", set: tuple[str, ...] = ()) -> None:
    """Write the newest checkpoint of a run, finished or not, as a model folder.

    Args:
        recipe: The recipe of the run, a TOML file.
        folder: Where to write the model.
        stage: What the recipe is for; recipes of pretrain, extend and sft are of one kind.
        set: Override a field of the recipe, NAME=VALUE; may be repeated.
    """
    print(f"step {_export(recipe, folder, stage, set)}: {folder}")


@app.command
def data(recipe: Path, /, *, folder: Path | None = None) -> None:
    """Build a corpus folder: clean, deduplicate, split, tokenise, with a licence for every source.

    Args:
        recipe: The corpus recipe, a TOML file.
        folder: What its paths are relative to; the recipe's own folder by default.
    """
    from leadline.train.corpus import build_corpus, load_recipe

    manifest = build_corpus(load_recipe(recipe, folder=folder))
    for split, counts in manifest["splits"].items():
        print(f"{split}: {counts['documents']:,} documents, {counts['tokens']:,} tokens")


@app.command
def plot(out: Path, /, *, picture: Path | None = None) -> None:
    """Draw a run, finished or not: loss, learning rate, every expert's load.

    Args:
        out: The run's folder, `out` of its recipe.
        picture: Where to draw to, a .png, .pdf or .svg; metrics.png in the run's folder by default.
    """
    from leadline.train.plot import plot_run

    picture = picture or out / "metrics.png"
    plot_run(out, picture)
    print(picture)
