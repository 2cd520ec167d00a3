"""Every golden check of one model folder, in order."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from leadline.checkpoint.generation import read_generation_config
from leadline.checkpoint.load import usable_machine
from leadline.checkpoint.verify.model import model_checks
from leadline.checkpoint.verify.numbers import number_checks
from leadline.checkpoint.verify.report import Check, run_check
from leadline.checkpoint.verify.text import text_checks
from leadline.errors import LeadlineError
from leadline.model.config import ModelConfig
from leadline.tokenizer import Tokenizer


def verify_folder(folder: Path, *, whole: bool = True) -> Iterator[Check]:
    """The checks as they end. Raises only when there is no configuration to check against."""
    config = ModelConfig.from_folder(folder)
    yield from _verify_text(config, folder)
    for name, function in number_checks(config, folder):
        yield run_check(name, function)
    for name, function in model_checks(config, folder, usable_machine(), whole=whole):
        yield run_check(name, function)


def _verify_text(config: ModelConfig, folder: Path) -> Iterator[Check]:
    try:
        tokenizer = Tokenizer.from_folder(folder)
        generation = read_generation_config(folder).with_eos(tokenizer.eos_id)
    except LeadlineError as error:
        yield Check("tokenizer", "fail", error.message)
        return
    for name, function in text_checks(config, tokenizer, generation):
        yield run_check(name, function)
