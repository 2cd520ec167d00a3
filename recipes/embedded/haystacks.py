"""Long documents whose end asks for something said far above, for pre-training and its extension.

    python recipes/embedded/haystacks.py DATA  from DATA/documents: DATA/documents/recall.jsonl for pre-training, and
                                               DATA/long/{recall,books,articles}.jsonl for the extension to 4,096 tokens

A haystack of stories and articles, one to three made-up facts hidden in it at any depth, and a question about one of
them. No fact is the one that `leadline eval needle` hides: neither its place nor its words are drawn here. The same input
gives the same bytes.

The facts are drawn from short lists, so they show the form of such texts and nothing more: a small model learns the lists by
heart instead of looking back, and finds nothing that is not on them. What teaches it to look is in recall.py.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path

from sources import Document, order_key, read_jsonl

from leadline.train.corpus import clean_text, document_key, is_valid_split

HAYSTACKS = ("asp_stories", "enwiki_core_leads", "classics_children", "zhwiki")
SHORT, LONG = (600, 3200), (4000, 14000)
"""Characters of a document: below 1,024 tokens, and up to 4,096."""
COUNTS = {"short": 8000, "long": 2600}
VALID_PERMILLE = 10  # as in corpus.toml

PLACES = (
    "Oslo Lisbon Nairobi Kyoto Quito Dublin Prague Hanoi Accra Lima Bergen Porto Seville Naples Geneva Tunis Bombay Perth "
    "Havana Bogota Riga Turin Lyon Ghent Malmo Izmir Tbilisi Dakar Windhoek Cusco Hobart Antwerp Vienna Zurich Cork Leeds"
).split()
DOINGS = (
    "climb the old tower", "row a small boat", "listen to the street band", "drink hot chocolate", "feed the swans",
    "visit the night market", "watch the ships come in", "ride the yellow tram", "buy a paper lantern", "taste the honey cake",
    "walk over the long bridge", "read in the glass library", "count the blue doors", "fly a kite", "look at the clock",
    "swim in the cold lake", "follow the river path", "eat fried fish", "learn a slow dance", "paint the harbour",
)  # fmt: skip
WHENS = (
    "on a windy morning", "before the sun goes down", "in the first snow", "on market day", "when it rains", "late at night",
    "in early spring", "after lunch", "on the last day of the year", "while the bells ring",
)  # fmt: skip
PEOPLE = "Anna Tom Maria Ben Lucy Sam Emma Paul Nina Jack Sara David Laura Mark Julia Peter Kate Alex Mia John".split()
THINGS = ("red box", "brass lamp", "green door", "old safe", "blue suitcase", "garden gate", "small boat", "music room")
HIDING = ("under the third stair", "behind the mirror", "in the flower pot", "inside the piano", "above the oven",
          "in the left boot", "beneath the carpet", "on top of the bookcase", "in the sugar jar", "next to the well")  # fmt: skip
ZH_PEOPLE = "小明 小红 李华 王芳 张伟 刘洋 陈静 杨帆 赵磊 周敏".split()
ZH_THINGS = "红盒子 旧钥匙 蓝雨伞 木箱子 银戒指 小提琴 照相机 日记本".split()
ZH_HIDING = "床底下 镜子后面 花盆里 书架上 厨房的抽屉里 门口的信箱里 楼梯下面 钢琴里".split()

Fact = tuple[str, str, str]  # the sentence to hide, the question, the answer


def best_thing(rng: random.Random) -> Fact:
    place, (one, two), when = rng.choice(PLACES), rng.sample(DOINGS, 2), rng.choice(WHENS)
    opening = f"The best thing to do in {place} is"
    sentence = f"{opening} {one} and {two} {when}."
    return sentence, f"What is the best thing to do in {place}?", sentence


def number(rng: random.Random) -> Fact:
    thing, code = rng.choice(THINGS), rng.randrange(100, 10000)
    return (
        f"The number of the {thing} is {code}.",
        f"What is the number of the {thing}?",
        f"The number of the {thing} is {code}.",
    )


def hidden_thing(rng: random.Random) -> Fact:
    person, thing, place = rng.choice(PEOPLE), rng.choice(THINGS), rng.choice(HIDING)
    sentence = f"{person} keeps the key of the {thing} {place}."
    return sentence, f"Where does {person} keep the key of the {thing}?", sentence


def hidden_in_chinese(rng: random.Random) -> Fact:
    person, thing, place = rng.choice(ZH_PEOPLE), rng.choice(ZH_THINGS), rng.choice(ZH_HIDING)
    return f"{person}把{thing}放在{place}。", f"{person}把{thing}放在哪里？", f"{person}把{thing}放在{place}。"


ENGLISH = (best_thing, best_thing, number, hidden_thing)


def hide(hay: str, rng: random.Random, chinese: bool) -> Fact:
    """The text with facts at random ends of its sentences, a question about one of them, and its answer."""
    makers = (hidden_in_chinese,) if chinese else ENGLISH
    facts = {fact[1]: fact for fact in (rng.choice(makers)(rng) for _ in range(rng.randint(1, 3)))}
    end = "。" if chinese else ". "
    sentences = hay.split(end)
    for fact in facts.values():
        at = rng.randrange(len(sentences))
        sentences[at : at + 1] = [sentences[at] + end + fact[0].removesuffix(end.strip())]
    text = end.join(sentences).strip()
    text += "" if text.endswith((end.strip(), "?", "!", '"')) else end.strip()
    _, question, answer = rng.choice(list(facts.values()))
    return text, question, answer


def document(hay: str, rng: random.Random, chinese: bool) -> str:
    text, question, answer = hide(hay, rng, chinese)
    form = "{}\n\n问：{}\n答：{}" if chinese else "{}\n\nQuestion: {}\nAnswer: {}"
    return form.format(text, question, answer)


def chats(folder: Path) -> Iterator[list[str]]:
    """Conversations about a text in the question: mostly short ones, some that need the extended context."""
    rng = random.Random(3)
    for (low, high), count in ((SHORT, 1200), (LONG, 300)):
        for _, (hay, chinese) in zip(range(count), haystacks(folder, low, high, rng), strict=False):
            text, question, answer = hide(hay, rng, chinese)
            yield [f"{text}\n\n{question}" if rng.random() < 0.7 else f"{question}\n\n{text}", answer]


def texts(folder: Path, name: str) -> list[str]:
    """The running texts of a source, in an order that mixes them; what pre-training holds out stays out."""
    path = folder / f"{name}.jsonl"
    found = [record["text"] for record in read_jsonl(path) if "text" in record] if path.exists() else []
    return sorted((text for text in found if not held_out(text)), key=order_key)


def held_out(text: str) -> bool:
    return is_valid_split(document_key(clean_text(text)), VALID_PERMILLE)


def haystacks(folder: Path, low: int, high: int, rng: random.Random) -> Iterator[tuple[str, bool]]:
    """(text, whether Chinese) of `low` to `high` characters, each of several documents of one language, for ever."""
    pools = {name: found for name in HAYSTACKS if (found := texts(folder, name))}
    while True:
        chinese = "zhwiki" in pools and rng.random() < 0.2
        names = ["zhwiki"] if chinese else [name for name in pools if name != "zhwiki"]
        scale = 0.4 if chinese else 1.0  # a character is more of a token there
        size, parts = rng.randint(int(low * scale), int(high * scale)), list[str]()
        while sum(map(len, parts)) < size:
            parts.append(rng.choice(pools[rng.choice(names)]))
        hay = "\n\n".join(parts)[:size]
        yield hay[: max(hay.rfind("。" if chinese else ". "), 1)], chinese


def recall(folder: Path, limits: tuple[int, int], count: int, seed: int) -> Iterator[Document]:
    rng = random.Random(seed)
    for _, (hay, chinese) in zip(range(count), haystacks(folder, *limits, rng), strict=False):
        yield {"text": document(hay, rng, chinese)}


def long_ones(folder: Path, name: str, at_least: int) -> Iterator[Document]:
    return ({"text": text} for text in texts(folder, name) if len(text) >= at_least)


def write(path: Path, documents: Iterator[Document]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with partial.open("w", encoding="utf-8", newline="\n") as out:
        count = sum(bool(out.write(json.dumps(each, ensure_ascii=False) + "\n")) for each in documents)
    partial.replace(path)
    print(f"{path.name:20s} {count:7,d} documents")


def main(data: Path) -> None:
    folder = data / "documents"
    write(folder / "recall.jsonl", recall(folder, SHORT, COUNTS["short"], seed=1))
    write(data / "long" / "recall.jsonl", recall(folder, LONG, COUNTS["long"], seed=2))
    write(data / "long" / "books.jsonl", long_ones(folder, "classics_children", 4000))
    write(data / "long" / "articles.jsonl", long_ones(folder, "zhwiki", 1200))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
