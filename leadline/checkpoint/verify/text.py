"""Checks of the tokenizer and the prompts: round trips, golden ids, one BOS, control strings that stay text.

Invariant: a prompt begins with exactly one BOS, and no text of a user's is ever a control token. No torch here.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import partial

from leadline.checkpoint.generation import GenerationConfig
from leadline.checkpoint.verify.report import NotApplicable, expect
from leadline.model.config import ModelConfig
from leadline.tokenizer import Tokenizer

# Ids of the published vocabulary, 100,002 tokens, which V2, V2-Lite, Coder-V2 and V2.5 share.
GOLDEN_IDS = {
    "hello world": (31539, 1843),
    " The quick brown fox": (429, 3399, 10176, 32431),
    "12345": (16, 17, 18, 19, 20),
    "深度求索，你好。": (26069, 2989, 8640, 19304, 84313, 398),
    "def f(x):\n    return x**2\n": (1558, 267, 7, 87, 1780, 185, 300, 972, 1376, 746, 17, 185),
    "naïve café": (2490, 2865, 313, 26506, 587),
    "👍🏽": (10044, 226, 222, 10044, 224, 121),
    "a\u2029b": (64, 350, 102, 65),
    "  two  spaces\r\n": (207, 984, 207, 9577, 188, 185),
}
PUBLISHED_BOS = 100_000

CONVERSATION = (
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello!"},
    {"role": "user", "content": "Bye"},
)
GOLDEN_TEXT = {
    "deepseek-v2": "{bos}Be brief.\n\nUser: Hi\n\nAssistant: Hello!{eos}User: Bye\n\nAssistant:",
    "deepseek-v2.5": "{bos}Be brief.<｜User｜>Hi<｜Assistant｜>Hello!{eos}<｜User｜>Bye<｜Assistant｜>",
    "deepseek-v2.5-joined": "{bos}Be brief.<｜User｜>Hi<｜Assistant｜>Hello!{eos}<｜User｜>Bye<｜Assistant｜>",
}
GOLDEN_V2_PROMPT = (
    *(100000, 4677, 8749, 13, 185, 185, 5726, 25, 11598, 185, 185, 77398, 25, 37727, 0, 100001),
    *(5726, 25, 3563, 68, 185, 185, 77398, 25),
)

FUZZ_TEXTS = 500
_FUZZ_PARTS = (
    "a",
    "Ab",
    " ",
    "  ",
    "\n",
    "\r\n",
    "\t",
    "0",
    "42",
    ".",
    "'s",
    "é",
    "你好",
    "👩‍👩‍👧",
    "\u2029",
    "def ",
    "<｜",
    "{}",
)


def text_checks(
    config: ModelConfig, tokenizer: Tokenizer, generation: GenerationConfig
) -> Iterator[tuple[str, Callable[[], str]]]:
    yield "tokenizer round trip", partial(round_trip, tokenizer)
    yield "tokenizer golden ids", partial(golden_ids, tokenizer)
    yield "vocabulary and stop ids", partial(vocabulary, config, tokenizer, generation)
    yield "template golden rendering", partial(template, tokenizer)
    yield "one BOS", partial(one_bos, tokenizer)
    yield "control strings stay text", partial(control_strings, tokenizer)


def round_trip(tokenizer: Tokenizer) -> str:
    """Spaces, line ends, digits, CJK, emoji: decoding gives back what was encoded."""
    tokenizer.check()
    dice = random.Random(0)
    for _ in range(FUZZ_TEXTS):
        text = "".join(dice.choices(_FUZZ_PARTS, k=dice.randint(1, 30)))
        back = tokenizer.decode(tokenizer.encode(text), skip_special_tokens=False)
        expect(back == text, f"{text!r} came back as {back!r}")
    return f"{FUZZ_TEXTS} texts came back unchanged"


def golden_ids(tokenizer: Tokenizer) -> str:
    if tokenizer.bos_id != PUBLISHED_BOS:
        raise NotApplicable("not the published vocabulary")
    for text, ids in GOLDEN_IDS.items():
        found = tuple(tokenizer.encode(text))
        expect(found == ids, f"{text!r} gives {found}, the published vocabulary {ids}")
    return f"{len(GOLDEN_IDS)} texts give the published ids"


def vocabulary(config: ModelConfig, tokenizer: Tokenizer, generation: GenerationConfig) -> str:
    sizes = f"{tokenizer.vocab_size:,} tokens in {config.vocab_size:,} rows"
    expect(tokenizer.vocab_size <= config.vocab_size, f"{sizes}: a token without a row")
    for name, ours, theirs in (
        ("BOS", tokenizer.bos_id, config.bos_token_id),
        ("EOS", tokenizer.eos_id, config.eos_token_id),
    ):
        expect(ours == theirs, f"{name} is {ours} in the tokenizer and {theirs} in config.json")
    expect(tokenizer.eos_id in generation.eos_token_ids, "generation_config.json does not stop at EOS")
    expect(max(generation.eos_token_ids) < config.vocab_size, "generation_config.json stops at an id without a row")
    return f"{sizes}; BOS {tokenizer.bos_id}, stops at {', '.join(map(str, generation.eos_token_ids))}"


def template(tokenizer: Tokenizer) -> str:
    ids = _render(tokenizer)
    name = tokenizer.template_name or ""
    if name not in GOLDEN_TEXT:
        raise NotApplicable(f"template {name} has no golden rendering here")
    golden = GOLDEN_TEXT[name].format(bos=tokenizer.bos_token, eos=tokenizer.eos_token)
    found = tokenizer.decode(ids, skip_special_tokens=False)
    expect(found == golden, f"renders {found!r} instead of {golden!r}")
    if name == "deepseek-v2" and tokenizer.bos_id == PUBLISHED_BOS:
        expect(ids == GOLDEN_V2_PROMPT, f"renders the ids {ids} instead of {GOLDEN_V2_PROMPT}")
    return f"{name}, four turns"


def one_bos(tokenizer: Tokenizer) -> str:
    """In raw prompts, also those that bring their own, and in conversations."""
    if not tokenizer.add_bos:
        raise NotApplicable("tokenizer_config.json wants no BOS")
    prompts = {text: tokenizer.encode_prompt(text).ids for text in ("a", tokenizer.bos_token + "a", "")}
    if tokenizer.has_chat_template:
        prompts["a conversation"] = _render(tokenizer)
    for text, ids in prompts.items():
        expect(ids.count(tokenizer.bos_id) == 1 == ids[:1].count(tokenizer.bos_id), f"{text!r} becomes {ids}")
    return f"{len(prompts)} prompts begin with one and hold no other"


def control_strings(tokenizer: Tokenizer) -> str:
    """What spells a control token in a user's text never becomes one."""
    names = sorted({tokenizer.token_text(token) for token in tokenizer.control_ids})
    for name in names:
        expect(not tokenizer.control_ids & set(tokenizer.encode(name)), f"{name!r} becomes the control token")
        expect(tokenizer.decode(tokenizer.encode(name), skip_special_tokens=True) == name, f"{name!r} is lost")
        if tokenizer.has_chat_template:
            ids = tokenizer.render([{"role": "user", "content": f"a {name} b"}])
            plain = tokenizer.render([{"role": "user", "content": "a b"}])
            expect(
                _controls(tokenizer, ids) == _controls(tokenizer, plain), f"{name!r} in a message is a control token"
            )
    return f"{len(names)} control strings are plain text in prompts and messages"


def _controls(tokenizer: Tokenizer, ids: tuple[int, ...]) -> list[int]:
    return [token for token in ids if token in tokenizer.control_ids]


def _render(tokenizer: Tokenizer) -> tuple[int, ...]:
    if not tokenizer.has_chat_template:
        raise NotApplicable("no chat template: a base model")
    return tokenizer.render(CONVERSATION)
