"""Sampler: from the rows of logits of a pass to one token a sequence.

Every row is worked on alone, and its random number is a hash of (seed, index of the answer, place in the answer), so a
sequence's tokens depend on nothing but itself: not on its company, on preemption, nor on what ran before. All math is
float32. Rows past the tokenizer's vocabulary are never sampled and never listed.

Log-probabilities are those of the model itself: the log-softmax of its logits before penalties, bias, masks and
temperature, over all of its rows.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import struct
from collections.abc import Callable
from collections.abc import Sequence as Items

import torch
from torch import Tensor

from leadline.engine.sequence import Sequence
from leadline.engine.types import TokenLogprob
from leadline.ops.sampling import distribution, draw, penalise


@dataclasses.dataclass(frozen=True, slots=True)
class Choice:
    """A sampled token, or why there is none."""

    token_id: int
    logprob: TokenLogprob | None = None
    error: str | None = None


Likeliest = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Each row's greatest logit and where it stands."""


def likeliest(logits_RV: Tensor) -> tuple[Tensor, Tensor]:
    peaks_R, ids_R = logits_RV.max(-1)
    return peaks_R, ids_R


class Sampler:
    """`vocab_size` is the tokenizer's; `token_bytes` spells a token in log-probabilities."""

    def __init__(self, vocab_size: int, token_bytes: Callable[[int], bytes], likeliest: Likeliest = likeliest) -> None:
        self.vocab_size = vocab_size
        self.token_bytes = token_bytes
        self.likeliest = likeliest

    def __call__(self, logits_RV: Tensor, sequences: Items[Sequence]) -> list[Choice]:
        """One choice a row; row r belongs to `sequences[r]`."""
        plain = [row for row, sequence in enumerate(sequences) if is_plain(sequence)]
        if len(plain) == len(sequences):
            return self._greedy(logits_RV)
        choices: dict[int, Choice] = {}
        if plain:
            choices.update(zip(plain, self._greedy(logits_RV[plain]), strict=True))
        for row, sequence in enumerate(sequences):
            if row not in choices:
                choices[row] = self._one(logits_RV[row].float(), sequence)
        return [choices[row] for row in range(len(sequences))]

    def _greedy(self, logits_RV: Tensor) -> list[Choice]:
        """The likeliest token of each row: no sort, no copy, one transfer."""
        peaks, ids = self.likeliest(logits_RV[:, : self.vocab_size])
        return [
            Choice(token) if math.isfinite(peak) else _not_finite()
            for token, peak in zip(ids.tolist(), peaks.tolist(), strict=True)
        ]

    def _one(self, logits_V: Tensor, sequence: Sequence) -> Choice:
        if not math.isfinite(logits_V.max().item()):
            return _not_finite()
        adjusted_V = self._adjust(logits_V[: self.vocab_size], sequence)
        if adjusted_V.max().item() == -math.inf:
            return Choice(-1, error="no token is allowed here by the grammar and the token limits")
        params = sequence.params
        if params.greedy:
            token = int(adjusted_V.argmax())
        else:
            probs_V = distribution(adjusted_V, params.temperature, params.top_k, params.top_p, params.min_p)
            token = int(draw(probs_V, uniform(sequence.seed, sequence.index, sequence.generated)))
        if params.logprobs is None:
            return Choice(token)
        return Choice(token, self.logprob(logits_V.log_softmax(-1), token, params.logprobs))

    def _adjust(self, logits_V: Tensor, sequence: Sequence) -> Tensor:
        """Penalties, bias and masks; a new tensor."""
        params, device = sequence.params, logits_V.device
        if params.repetition_penalty != 1.0 or params.presence_penalty or params.frequency_penalty:
            known = torch.tensor(sequence.ids, device=device)
            penalties = (params.repetition_penalty, params.presence_penalty, params.frequency_penalty)
            logits_V = penalise(logits_V, known, known[sequence.prompt_tokens :], *penalties)
        else:
            logits_V = logits_V.clone()
        if params.logit_bias:
            ids, values = zip(*params.logit_bias, strict=True)
            logits_V.index_add_(0, torch.tensor(ids, device=device), torch.tensor(values, device=device))
        if forbidden := sequence.forbidden():
            logits_V[sorted(forbidden)] = -math.inf
        if sequence.constraint is not None:
            logits_V.masked_fill_(~unpacked(sequence.constraint.allowed(), len(logits_V)).to(device), -math.inf)
        return logits_V

    def logprob(self, logprobs_V: Tensor, token: int, top: int) -> TokenLogprob:
        """The chosen token's, its rank, and the `top` likeliest."""
        chosen = logprobs_V[token]
        rank = int((logprobs_V[: self.vocab_size] > chosen).sum()) + 1
        values, ids = logprobs_V[: self.vocab_size].topk(min(top, self.vocab_size))
        best = tuple(
            TokenLogprob(other, self.token_bytes(other), value, place)
            for place, (other, value) in enumerate(zip(ids.tolist(), values.tolist(), strict=True), 1)
        )
        return TokenLogprob(token, self.token_bytes(token), chosen.item(), rank, best)


def is_plain(sequence: Sequence) -> bool:
    """Whether the likeliest token of the row is the answer, and nobody asks how likely."""
    return sequence.plain and not sequence.forbidden()


def unpacked(bits: bytes, count: int) -> Tensor:
    """The first `count` bits as booleans, the lowest of each byte first; what is not there is False."""
    whole = torch.frombuffer(bytearray(bits.ljust(-(-count // 8), b"\0")), dtype=torch.uint8)
    return (whole[:, None] >> torch.arange(8, dtype=torch.uint8) & 1).bool().flatten()[:count]


def uniform(seed: int, index: int, place: int) -> float:
    """A number in [0, 1) that (seed, answer, place) names, whatever else is drawn."""
    counter = struct.pack("<QQQ", seed & 0xFFFF_FFFF_FFFF_FFFF, index, place)
    return int.from_bytes(hashlib.blake2b(counter, digest_size=4).digest(), "little") / 2**32


def _not_finite() -> Choice:
    return Choice(-1, error="the model's logits are not finite (NaN or infinity)")
