"""A folder of made data for every benchmark."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

from tests.eval import samples, samples_appendix

MADE: dict[str, Callable[[Path], None]] = {
    "mmlu": samples.mmlu,
    "cmmlu": samples.cmmlu,
    "ceval": samples.ceval,
    "agieval": samples_appendix.agieval,
    "bbh": samples.bbh,
    "arc_easy": functools.partial(samples_appendix.arc, "Easy"),
    "arc_challenge": functools.partial(samples_appendix.arc, "Challenge"),
    "openbookqa": samples_appendix.openbookqa,
    "hellaswag": samples_appendix.hellaswag,
    "piqa": samples_appendix.piqa,
    "winogrande": samples_appendix.winogrande,
    "race_middle": functools.partial(samples_appendix.race, "middle"),
    "race_high": functools.partial(samples_appendix.race, "high"),
    "drop": samples_appendix.drop,
    "triviaqa": samples_appendix.triviaqa,
    "naturalquestions": samples_appendix.naturalquestions,
    "gsm8k": samples.gsm8k,
    "math": samples.math,
    "cmath": samples_appendix.cmath,
    "humaneval": samples.humaneval,
    "mbpp": samples.mbpp,
    "cruxeval_i": samples_appendix.cruxeval,
    "cruxeval_o": samples_appendix.cruxeval,
    "cluewsc": samples_appendix.cluewsc,
    "cmrc": samples_appendix.cmrc,
    "c3": samples_appendix.c3,
    "chid": samples_appendix.chid,
    "ccpm": samples_appendix.ccpm,
    "ifeval": samples.ifeval,
    "mt_bench": samples.mt_bench,
    "needle": samples.needle,
    "bits_per_byte": samples.bits_per_byte,
    "arithmetic": samples.nothing,
    "sums": samples.nothing,
    "instructions": samples.nothing,
}


def make_all(folder: Path) -> Path:
    for name, make in MADE.items():
        make(folder / name)
    return folder
