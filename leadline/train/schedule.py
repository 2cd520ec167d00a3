"""How large each step is: the batch grows over the first tokens of a run (section 3.1.2).

V2 grew from 2304 to 9216 sequences over its first 225B tokens. A batch is counted in passes, so that every pass has a
number of its own from the start of training: data is a function of that number, whatever the ramp.
"""

from __future__ import annotations

import dataclasses
import itertools

from leadline.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class RampConfig:
    """From `start_batch_tokens` evenly up to the recipe's `batch_tokens` while the first `tokens` are seen; 0: no
    ramp."""

    start_batch_tokens: int = 0
    tokens: int = 0

    def check(self, micro_batch_tokens: int, batch_tokens: int) -> None:
        """Raise `ConfigError` for a ramp that is none."""
        if bool(self.start_batch_tokens) != bool(self.tokens) or min(self.start_batch_tokens, self.tokens) < 0:
            raise ConfigError("ramp.start_batch_tokens and ramp.tokens go together, both more than 0 or both 0")
        if self.start_batch_tokens % micro_batch_tokens:
            raise ConfigError("ramp.start_batch_tokens is not a multiple of micro_batch_tokens")
        if self.start_batch_tokens > batch_tokens:
            raise ConfigError("ramp.start_batch_tokens is more than batch_tokens")


class BatchSchedule:
    """The passes of each step. `steps` is where the run is complete: the first at which all tokens were seen."""

    def __init__(self, tokens: int, batch_tokens: int, micro_batch_tokens: int, ramp: RampConfig) -> None:
        self.full = batch_tokens // micro_batch_tokens
        self.firsts = [0]  # of the steps of the ramp and the one after
        while (seen := self.firsts[-1] * micro_batch_tokens) < min(ramp.tokens, tokens):
            share = seen / ramp.tokens
            batch = ramp.start_batch_tokens + share * (batch_tokens - ramp.start_batch_tokens)
            self.firsts.append(self.firsts[-1] + int(batch / micro_batch_tokens))
        left = max(0, tokens - self.firsts[-1] * micro_batch_tokens)
        self.steps = len(self.firsts) - 1 + -(-left // batch_tokens)

    def first(self, step: int) -> int:
        """The number of the first pass of step 0, 1, ..."""
        ramped = len(self.firsts) - 1
        return self.firsts[step] if step <= ramped else self.firsts[-1] + (step - ramped) * self.full

    def passes(self, step: int) -> int:
        return self.first(step + 1) - self.first(step)

    def share(self, step: int) -> float:
        """How much of the run's passes are done before a step, from 0 to 1."""
        return self.first(step) / max(1, self.first(self.steps))

    def sizes(self) -> list[int]:
        """The passes of the ramp's steps and, last, of every step after."""
        return [b - a for a, b in itertools.pairwise(self.firsts)] + [self.full]
