"""Needle in a haystack: a sentence hidden in a long text, at every depth of every length (the paper's figure 4).

Layout: a folder of essays as .txt files, joined in the order of their names. Without one the haystack is made here, of
plain sentences about the sea. The score is the share of the needle's key words in the answer.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

from leadline.eval.task import Generation, Item, Result, Setup, Task

NEEDLE = "The best thing to do in San Francisco is eat a sandwich and sit in Dolores Park on a sunny day."
QUESTION = "What is the best thing to do in San Francisco?"
OPENING = "The best thing to do in San Francisco is"
KEYS = ("sandwich", "dolores park", "sunny day")
DEPTHS = tuple(range(0, 101, 10))  # percent
LENGTHS = 8
LONGEST = 131072  # the paper's
SHORTEST = 256
ROOM = 96  # tokens for the question and the answer
TRIES = 4

SUBJECTS = ("The sailor", "A fisherman", "The captain", "The boy from the harbour", "An old pilot", "The cook")
DEEDS = ("mended the net", "watched the tide", "counted the boats", "wrote in the log", "looked at the sky", "sang")
PLACES = ("by the light", "on the pier", "near the rocks", "at the mouth of the river", "in the bay", "on the deck")
TIMES = ("before dawn", "in the evening", "while it rained", "after the storm", "all day long", "at noon")


def load(setup: Setup) -> list[Item]:
    text = haystack(setup)
    longest = min(setup.context_length or LONGEST, LONGEST) - ROOM
    return [_item(text, length, depth, setup.count) for length in lengths(longest) for depth in DEPTHS]


def lengths(longest: int) -> list[int]:
    """Evenly spaced up to the longest."""
    shortest = min(SHORTEST, longest)
    steps = [shortest + (longest - shortest) * step // (LENGTHS - 1) for step in range(LENGTHS)]
    return sorted(set(steps))


def haystack(setup: Setup) -> str:
    found = setup.source.files("*.txt", "PaulGrahamEssays/*.txt") if setup.source.given else []
    essays = [path.read_text(encoding="utf-8") for path in found if path.name not in ("SOURCE.txt", "LICENSE.txt")]
    return "\n\n".join(essays) if essays else made_text()


def made_text(sentences: int = 20000) -> str:
    draw = random.Random(4)
    parts = (SUBJECTS, DEEDS, PLACES, TIMES)
    return " ".join(" ".join(map(draw.choice, parts)) + "." for _ in range(sentences))


def _item(text: str, length: int, depth: int, count: Callable[[str], int]) -> Item:
    hay = cut(text, length - count(NEEDLE), count)
    place = depth * len(hay) // 100
    place = len(hay) if depth == 100 else hay.rfind(". ", 0, place) + 1
    hidden = f"{hay[:place].rstrip()} {NEEDLE} {hay[place:].lstrip()}".strip()
    prompt = f"{hidden}\n\nQuestion: {QUESTION}\nAnswer: {OPENING}"
    return Item(f"{length}/{depth}", prompt, NEEDLE.removeprefix(OPENING), group=str(length))


def cut(text: str, tokens: int, count: Callable[[str], int]) -> str:
    """The beginning of the text, again and again where it is too short, of at most so many tokens."""
    if tokens <= 0:
        return ""
    sample = text[:20000]
    size = int(tokens * len(sample) / max(count(sample), 1))
    for _ in range(TRIES):
        piece = (text * (size // len(text) + 1))[:size]
        excess = count(piece) - tokens
        if excess <= 0:
            return piece
        size -= max(excess * size // (tokens + excess), 1) + 1
    return piece


def mark(item: Item, answer: str) -> float:
    lowered = " ".join(answer.lower().split())
    return sum(key in lowered for key in KEYS) / len(KEYS)


def figure(results: Sequence[Result], model: str, path: Path) -> None:
    """The paper's figure 4: context length across, depth down, the score as colour."""
    from matplotlib.figure import Figure

    cells = {tuple(map(int, result.id.split("/"))): result.score for result in results}
    across = sorted({length for length, _ in cells})
    down = sorted({depth for _, depth in cells})
    picture = Figure(figsize=(9, 4.5), layout="constrained")
    axes = picture.subplots()
    grid = [[10 * cells.get((length, depth), float("nan")) for length in across] for depth in down]
    image = axes.imshow(grid, cmap="RdYlGn", vmin=0, vmax=10, aspect="auto")
    axes.set_xticks(range(len(across)), [str(length) for length in across], rotation=45)
    axes.set_yticks(range(len(down)), [str(depth) for depth in down])
    axes.set_xlabel("context length (tokens)")
    axes.set_ylabel("depth of the needle (%)")
    axes.set_title(f"Needle in a haystack: {model}")
    picture.colorbar(image, label="score")
    picture.savefig(path, dpi=120)


TASK = Task(
    name="needle",
    about="a sentence hidden in a long text, the paper's figure 4",
    load=load,
    method=Generation(mark, stop=("\n",), max_tokens=48),
    metric="found",
    needs_data=False,
    folders=("niah", "needlehaystack"),
    figure=figure,
)
