"""Options that several verbs share, under the same words: which model and how to run it, and how to sample."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Literal

from cyclopts import Parameter

from leadline.engine.types import SamplingParams

if TYPE_CHECKING:
    from leadline.engine.load import LoadedEngine


@Parameter(name="*")
@dataclasses.dataclass(frozen=True)
class ModelOptions:
    """The words of `LLM`.

    Args:
        model: A folder or a hub id; the embedded model by default.
        dtype: The weights' type; auto is the model's own, float32 for a small model on a CPU.
        device: auto, cpu, cuda or cuda:N.
        max_model_len: Tokens of context; by default what fits, at most what the model was released with.
        max_memory: What weights, cache and activations may take together, as 8GiB or 500MB; what is free by default.
    """

    model: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: str = "auto"
    max_model_len: int | None = None
    max_memory: str | None = None

    def load(self, *, max_num_seqs: int = 1, name: str | None = None) -> LoadedEngine:
        """Load the model and make its engine; imports torch. `name` is what the API calls it."""
        from leadline.engine.load import load_engine

        return load_engine(**dataclasses.asdict(self), max_num_seqs=max_num_seqs, name=name)


def default_params(loaded: LoadedEngine) -> SamplingParams:
    """How the model's authors sample; `SamplingParams`' own defaults where they do not say."""
    defaults: dict[str, Any] = loaded.generation.sampling_defaults()
    return SamplingParams(**defaults)


@Parameter(name="*")
@dataclasses.dataclass(frozen=True)
class SamplingOptions:
    """The words of `SamplingParams`; what is not given is the model's own default.

    Args:
        temperature: 0 is the likeliest token, always.
        top_p: Sample from the likeliest tokens that make up this share of the probability.
        top_k: Sample from this many of the likeliest tokens; 0 is all.
        min_p: Sample from tokens at least this likely, measured by the likeliest.
        repetition_penalty: Above 1: tokens that were there before become less likely.
        presence_penalty: From -2 to 2: subtracted once for a token that was generated before.
        frequency_penalty: From -2 to 2: subtracted for each time that a token was generated before.
        seed: The same seed gives the same answer.
        max_tokens: Tokens of an answer, at most; until the context is full by default.
        min_tokens: Tokens of an answer, at least.
        stop: End before this text; may be given up to 16 times.
        ignore_eos: Go on where the model would end.
    """

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False

    def params(self, defaults: SamplingParams) -> SamplingParams:
        """The model's `defaults`, changed by what was given."""
        given = {name: value for name, value in vars(self).items() if value is not None and value != ()}
        return dataclasses.replace(defaults, **given)


MODEL = ModelOptions()
SAMPLING = SamplingOptions()
