"""Money as integers: nano-units, 1e-9 of the installation's currency, so that the price of one token is exact.

A price is nano-units a token; people read and write it for a million tokens, where its finest step is 0.001.
"""

from __future__ import annotations

import dataclasses
import re

from leadline.engine.types import Usage
from leadline.errors import InvalidRequest

NANO = 1_000_000_000
MILLION = 1_000_000
MOST = 1_000_000 * NANO  # of one amount: sums of thousands of them fit 64 bits

_AMOUNT = re.compile(r"(\d{1,12})(?:\.(\d{1,9}))?", re.ASCII)


@dataclasses.dataclass(frozen=True, slots=True)
class Price:
    """Nano-units a token of one version: of the prompt found in the cache, of the rest of it, of the answer."""

    id: int
    model: str
    version: int
    hit: int
    miss: int
    output: int

    def cost(self, usage: Usage) -> int:
        misses = usage.prompt_tokens - usage.cached_tokens
        return self.hit * usage.cached_tokens + self.miss * misses + self.output * usage.completion_tokens

    def ceiling(self, prompt_tokens: int, completion_tokens: int) -> int:
        """The most that so many tokens can cost, whatever the cache holds."""
        return max(self.hit, self.miss) * prompt_tokens + self.output * completion_tokens


def parse_money(text: str, param: str = "amount") -> int:
    """`"12.5"` in nano-units. No sign, no exponent, at most nine decimals."""
    match = _AMOUNT.fullmatch(text)
    if match is None:
        text = f"{param} must be a decimal number such as 12.50, with up to nine decimals"
        raise InvalidRequest(text, param=param, code="invalid_amount")
    amount = int(match[1]) * NANO + int((match[2] or "").ljust(9, "0"))
    if amount > MOST:
        raise InvalidRequest(f"{param} must be at most {format_money(MOST)}", param=param, code="value_out_of_range")
    return amount


def format_money(amount: int) -> str:
    """All of it, with two decimals at least: 110.00, 0.000000014."""
    whole, rest = divmod(abs(amount), NANO)
    decimals = f"{rest:09d}".rstrip("0").ljust(2, "0")
    return f"{'-' if amount < 0 else ''}{whole}.{decimals}"


def parse_price(text: str, param: str) -> int:
    """The price of a million tokens as nano-units a token."""
    nano, rest = divmod(parse_money(text, param), MILLION)
    if rest:
        text = f"{param} is for a million tokens and has at most three decimals"
        raise InvalidRequest(text, param=param, code="invalid_amount")
    return nano


def format_price(nano: int) -> str:
    return format_money(nano * MILLION)
