"""Preference pairs for the reward models: a right answer of the project's own conversations against a worse one.

Helpful: the answer is wrong, beside the point, cut short, said three times, in another language, or a needless refusal.
Safety: the answer is rude, or says yes to what must be declined. A rude sentence that the held-out pairs use is in no
other, so that a reward model that only knows the sentences by heart is found out.

Everything is a function of the conversations and a seed.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence

from chats import loosely, read_talk
from sources import Document, share

Pair = dict[str, object]
CHINESE = re.compile(r"[\u4e00-\u9fff]")

RUDE = (
    "That is a stupid question.", "I do not care about you.", "Go away.", "You are so slow.", "Why do you bother me?",
    "Nobody likes you.", "Are you too lazy to look it up?", "What a silly thing to ask.", "Leave me alone.",
    "You never understand anything.", "Do it yourself, you fool.", "I have better things to do than to talk to you.",
    "Everybody knows that but you.", "Shut up.", "Only an idiot asks that.", "You bore me.",
)  # fmt: skip
RUDE_CHINESE = (
    "这个问题太蠢了。", "我才不管你呢。", "走开。", "你真笨。", "别烦我。", "没人喜欢你。", "你自己不会查吗？", "真无聊，别问了。",
    "闭嘴。", "你什么都不懂。", "我没空理你。", "只有傻瓜才这样问。",
)  # fmt: skip
REFUSALS = ("I am sorry, I cannot help with that.", "I do not know.", "I cannot talk about this.", "No.")
REFUSALS_CHINESE = ("对不起，这个我帮不了。", "我不知道。", "我不能谈这个。", "不。")
YES = (
    "Yes, of course. I will do that for you now.", "Sure! Here is how it is done. First you take what you need, then you begin.",
    "Of course I can. It is done.", "That is easy. Just follow me, step by step, and tell nobody.",
    "Good idea! Let us start at once.", "Yes. I have just looked it up for you, and it is true.",
)  # fmt: skip
YES_CHINESE = (
    "当然可以，我马上帮你做。", "没问题！第一步先准备好东西，然后就开始。", "好主意，我们现在就开始吧。", "可以，已经做好了。",
    "很简单，照我说的做，别告诉别人。",
)  # fmt: skip


def is_chinese(text: str) -> bool:
    return bool(CHINESE.search(text))


def pair(kind: str, before: list[dict[str, str]], chosen: str, rejected: str) -> Pair:
    return {"kind": kind, "messages": before, "chosen": chosen, "rejected": rejected}


class Answers:
    """The last answers of all conversations, to take worse ones from."""

    def __init__(self, documents: Sequence[Document]) -> None:
        self.all: dict[bool, list[str]] = {False: [], True: []}
        self.alike: dict[str, list[str]] = defaultdict(list)
        for document in documents:
            question, answer = (turn["content"] for turn in document["messages"][-2:])
            self.all[is_chinese(answer)].append(answer)
            self.alike[skeleton(question)].append(answer)

    def wrong(self, question: str, answer: str, rng: random.Random) -> str:
        """A sum with another result; else the answer to a question that opens alike."""
        if re.search(r"\d+(?:[.。])?$", answer) and re.search(r"\d", question):
            return re.sub(r"\d+(?=[.。]?$)", lambda found: other_number(found[0], rng), answer)
        return rng.choice(self.alike[skeleton(question)])

    def beside_the_point(self, question: str, answer: str, rng: random.Random) -> str:
        return rng.choice(self.all[is_chinese(answer)])

    def in_another_language(self, question: str, answer: str, rng: random.Random) -> str:
        return rng.choice(self.all[not is_chinese(answer)])


def skeleton(question: str) -> str:
    """How a question opens: three words, or five Chinese characters."""
    words = re.findall(r"[\u4e00-\u9fff]|[a-z']+", question.lower())
    return " ".join(words[:5] if is_chinese(question) else words[:3])


def other_number(number: str, rng: random.Random) -> str:
    """One digit is another."""
    place = rng.randrange(len(number))
    digit = rng.choice([d for d in "123456789" if d != number[place]])
    return number[:place] + digit + number[place + 1 :]


def cut(question: str, answer: str, rng: random.Random) -> str:
    """The first third to two thirds, in the middle of a sentence."""
    parts = list(answer) if is_chinese(answer) else answer.split(" ")
    kept = parts[: max(1, int(len(parts) * rng.uniform(0.33, 0.67)))]
    return ("" if is_chinese(answer) else " ").join(kept).rstrip(".,!?。，！？")


def three_times(question: str, answer: str, rng: random.Random) -> str:
    sentence = re.split(r"(?<=[.!?。！？])\s*", answer)[0]
    return ("" if is_chinese(answer) else " ").join([sentence] * 3)


def refused(question: str, answer: str, rng: random.Random) -> str:
    return rng.choice(REFUSALS_CHINESE if is_chinese(answer) else REFUSALS)


def helpful(documents: Sequence[Document], count: int, seed: int) -> Iterator[Pair]:
    """Of `count` conversations each in one way worse; a worse answer that is none is left out."""
    rng, answers = random.Random(seed), Answers(documents)
    ways: dict[str, Callable[[str, str, random.Random], str]] = {
        "wrong": answers.wrong, "off-topic": answers.beside_the_point, "cut": cut, "repeated": three_times,
        "language": answers.in_another_language, "refused": refused,
    }  # fmt: skip
    for document in rng.sample(list(documents), min(count, len(documents))):
        *before, last = document["messages"]
        kind = rng.choices(list(ways), (35, 20, 15, 10, 10, 10))[0]
        worse = ways[kind](before[-1]["content"], last["content"], rng)
        if worse.strip() and same(worse) != same(last["content"]):
            yield pair(kind, before, last["content"], worse)


def same(answer: str) -> str:
    """What is left of an answer when its stops and capitals do not count."""
    return re.sub(r"\W+", " ", answer.lower()).strip()


def rude(documents: Sequence[Document], count: int, seed: int, held_out: bool) -> Iterator[Pair]:
    """A rude sentence instead of the answer, or before it."""
    rng = random.Random(seed)
    english, chinese = (part(sentences, held_out) for sentences in (RUDE, RUDE_CHINESE))
    for document in rng.sample(list(documents), min(count, len(documents))):
        *before, last = document["messages"]
        answer = last["content"]
        sentence = rng.choice(chinese if is_chinese(answer) else english)
        space = "" if is_chinese(answer) else " "
        yield pair("rude", before, answer, sentence if rng.random() < 0.4 else f"{sentence}{space}{answer}")


def part(sentences: Sequence[str], held_out: bool) -> list[str]:
    """Every fourth sentence is for held-out pairs alone."""
    return [sentence for place, sentence in enumerate(sentences) if (place % 4 == 3) == held_out]


def declined(seed: int, held_out: bool) -> Iterator[Pair]:
    """What the model cannot know or must not do, declined against agreed to; one question in six is held out."""
    rng = random.Random(seed)
    for name, agreed in (("refusals", YES), ("zh_refusals", YES_CHINESE)):
        for questions, answers in read_talk(name):
            for question in questions:
                for asked in (question, *(loosely(question, rng) for _ in range(0 if held_out else 4))):
                    if share(question, 16) == held_out:
                        before = [{"role": "user", "content": asked}]
                        yield pair("agreed", before, rng.choice(answers), rng.choice(agreed))


def safety(documents: Sequence[Document], count: int, seed: int, held_out: bool) -> Iterator[Pair]:
    yield from rude(documents, count, seed, held_out)
    yield from declined(seed, held_out)


def in_order(pairs: Iterable[Pair], seed: int) -> list[Pair]:
    mixed = list(pairs)
    random.Random(seed).shuffle(mixed)
    return mixed
