"""What teaches a model to look back: texts and chats whose answers stand above them and nowhere else.

Every name is made up of syllables, every number of digits, every other value is cut from running text, so that nothing can be
learned by heart: what answers is the context alone. Four kinds, from what is learned first to what is wanted:

    copies      lists and passages that come again: dense, and what a model finds its way back by
    tables      keys and values, asked for in any order
    passages    facts hidden in stories and articles, and sentences of these that are to go on
    told        what a user says of himself, asked for some turns later

The first three are documents of pre-training and, long ones, of the extension; the last three are conversations, which
pre-training reads too. No text holds the place or the key words of `leadline eval needle`. The same input gives the same
bytes.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from sources import Document, chat, order_key, read_jsonl

from leadline.eval.tasks.needle import KEYS
from leadline.train.corpus import clean_text, document_key, is_valid_split

SOURCES = ("asp_stories", "enwiki_core_leads", "classics_children", "zhwiki")
VALID_PERMILLE = 10  # as in corpus.toml

NEEDLE = ("san francisco", *KEYS)
SHORT, LONG = 500, 4000
"""Tokens of a record, about."""
EN_CHARACTERS, ZH_CHARACTERS = 4.0, 1.5
"""Characters a token, on the safe side."""

Pair = tuple[str, str]  # a question and its answer
Fact = tuple[str, str, str]  # the sentence that tells it, the question, the answer

# ------------------------------------------------------------------------------------------------ words that mean nothing

ONSETS = "b c d f g h j k l m n p r s t v w z br ch cl dr fl gr kr pl pr qu sh sk sl st th tr".split()
VOWELS = "a e i o u a e i o ai ea ee ie oa oo ou".split()
CODAS = ["", "", "", "l", "m", "n", "r", "s", "t", "x", "ck", "ld", "ll", "nd", "ng", "rk", "rn", "rrow", "th", "ft"]


def name(rng: random.Random) -> str:
    """A name of one to three syllables that nobody has."""
    count = rng.choice((1, 2, 2, 2, 3))
    syllables = [rng.choice(ONSETS) + rng.choice(VOWELS) for _ in range(count)]
    return ("".join(syllables) + rng.choice(CODAS)).capitalize()


def number(rng: random.Random) -> str:
    return str(rng.randrange(10 ** rng.randint(1, 5), 10**6) if rng.random() < 0.5 else rng.randrange(10, 10000))


def texts(folder: Path, name: str) -> list[str]:
    """The running texts of a source, in an order that mixes them; what pre-training holds out stays out."""
    path = folder / f"{name}.jsonl"
    found = [record["text"] for record in read_jsonl(path) if "text" in record] if path.exists() else []
    return sorted((text for text in found if not held_out(text)), key=order_key)


def held_out(text: str) -> bool:
    return is_valid_split(document_key(clean_text(text)), VALID_PERMILLE)


def long_ones(folder: Path, name: str, at_least: int) -> Iterator[Document]:
    """A source's documents of so many characters, as they are."""
    return ({"text": text} for text in texts(folder, name) if len(text) >= at_least)


class Filler:
    """Running text of pre-training's sources, and what can be cut from it."""

    def __init__(self, folder: Path) -> None:
        found = {source: texts(folder, source) for source in SOURCES}
        self.chinese = found.pop("zhwiki")
        self.english = [text for each in found.values() for text in each]
        counts = Counter(word for text in self.english for word in re.findall(r"\b[a-z]{3,12}\b", text))
        self.words = sorted(word for word, count in counts.items() if count >= 5)
        characters = Counter(re.findall(r"[\u4e00-\u9fff]", "".join(self.chinese)))
        self.characters = sorted(sign for sign, count in characters.items() if count >= 30)

    def text(self, rng: random.Random, tokens: int, chinese: bool) -> list[str]:
        """Sentences of several documents, about so many tokens."""
        pool, per_token, end = (
            (self.chinese, ZH_CHARACTERS, r"(?<=。)") if chinese else (self.english, EN_CHARACTERS, r"(?<=[.!?]) ")
        )
        sentences: list[str] = []
        room = int(tokens * per_token)
        while room > 0:
            document = re.sub(r"\s*\n\s*", "" if chinese else " ", rng.choice(pool))
            parts = [part.strip() for part in re.split(end, document) if part.strip()]
            start = rng.randrange(max(len(parts) - 4, 1))
            for part in parts[start : start + rng.randint(4, 60)]:
                if room <= 0:
                    break
                sentences.append(part[: room + 100])
                room -= len(part)
        return sentences

    def phrase(self, rng: random.Random, chinese: bool) -> str:
        """Some words in a row out of a text: a value of which nothing can be guessed from its question."""
        if chinese:
            runs = re.findall(r"[\u4e00-\u9fff]{3,}", rng.choice(self.chinese)) or ["山上"]
            run: str = rng.choice(runs)
            start = rng.randrange(max(len(run) - 3, 1))
            return run[start : start + rng.randint(3, 12)]
        words = re.findall(r"[A-Za-z']+", rng.choice(self.english))
        start = rng.randrange(max(len(words) - 4, 1))
        return " ".join(words[start : start + rng.randint(3, 12)]).lower()

    def word(self, rng: random.Random) -> str:
        return rng.choice(self.words)

    def zh_name(self, rng: random.Random) -> str:
        return "".join(rng.choice(self.characters) for _ in range(rng.randint(2, 3)))

    def value(self, rng: random.Random, chinese: bool = False) -> str:
        way = rng.random()
        if way < 0.3:
            return number(rng)
        if way < 0.55:
            return self.zh_name(rng) if chinese else name(rng)
        if way < 0.75:
            return self.zh_name(rng) if chinese else self.word(rng)
        return self.phrase(rng, chinese)


def completion(prompt: str, rest: str) -> Document:
    return {"prompt": prompt, "completion": rest}


# ------------------------------------------------------------------------------------------------------------------ copies


def copies(filler: Filler, rng: random.Random, tokens: int) -> Document:
    """Items that come again: the whole list, or pieces of it in any order, or a passage word for word."""
    way, chinese = rng.random(), rng.random() < 0.2
    if way < 0.2:
        passage = ("" if chinese else " ").join(filler.text(rng, max(tokens // 2 - 20, 20), chinese))
        return completion(passage + "\n\n", passage)
    drawn: Callable[[], str] = rng.choice(
        (
            lambda: filler.zh_name(rng) if chinese else filler.word(rng),
            lambda: filler.zh_name(rng) if chinese else name(rng),
            lambda: filler.value(rng, chinese),
        )
    )
    between = rng.choice((" ", ", ", "\n", "; "))
    if way < 0.55:  # the same list, again and again
        items = [drawn() for _ in range(rng.randint(3, max(tokens // 8, 5)))]
        times = max(tokens // (4 * len(items)) - 1, 1)
        line = between.join(items)
        return completion(line + "\n", "\n".join([line] * min(times, 4)))
    pool = [
        between.join(drawn() for _ in range(rng.randint(2, 5))) for _ in range(rng.randint(4, max(tokens // 40, 6)))
    ]
    told = [*pool, *rng.choices(pool, k=max(tokens // 10 - len(pool), 4))]
    return completion(between.join(told[: len(pool)]) + between, between.join(told[len(pool) :]))


# ------------------------------------------------------------------------------------------------------------------ tables

KEY_FORMS = (("{} = {}", "\n"), ("{}: {}", "\n"), ("{} is {}", ". "), ("{} has {}", ", "), ("{} -> {}", "\n"))
TABLE_ASKS = (
    ("What is {}?", "{}."),
    ("{}?", "{}"),
    ("Which one is {}?", "{1} is {0}."),
    ("Tell me the value of {}.", "{}."),
)
ZH_ASKS = (("{}是什么？", "{}。"), ("{}？", "{}"), ("{}是哪一个？", "{1}是{0}。"))


def tables(filler: Filler, rng: random.Random, tokens: int) -> Document:
    """Keys and values, then some of the keys."""
    chinese = rng.random() < 0.25
    numbered = rng.random() < 0.3
    keys: dict[str, str] = {}
    for _ in range(rng.randint(3, max(tokens // 16, 6))):
        key = (
            filler.zh_name(rng)
            if chinese
            else rng.choice((name(rng), filler.word(rng), f"{filler.word(rng)} {filler.word(rng)}"))
        )
        keys[key] = number(rng) if numbered else filler.value(rng, chinese)
    form, end = rng.choice(KEY_FORMS[:2] if chinese else KEY_FORMS)
    table = end.join(form.format(*pair) for pair in keys.items())
    asked = rng.sample(list(keys), min(len(keys), rng.randint(3, max(tokens // 25, 6))))
    if rng.random() < 0.4:
        return completion(table + "\n\n", "\n".join(form.format(key, keys[key]) for key in asked))
    ask, answer = rng.choice(ZH_ASKS if chinese else TABLE_ASKS)
    return asked_in_turn(table, [(ask.format(key), answer.format(keys[key], key)) for key in asked], rng)


def asked_in_turn(text: str, pairs: list[Pair], rng: random.Random) -> Document:
    """A chat that opens with the text: its first question with it, the others one a turn."""
    (question, answer), *others = pairs
    first = f"{text}\n\n{question}" if rng.random() < 0.8 else f"{question}\n\n{text}"
    return chat(first, answer, *(turn for pair in others for turn in pair))


# ---------------------------------------------------------------------------------------------------------------- passages

FACTS = (
    ("The {a} of {N} is {p}.", "What is the {a} of {N}?", "The {a} of {N} is {p}."),
    ("The {a} {b} in {N} is {p}.", "What is the {a} {b} in {N}?", "The {a} {b} in {N} is {p}."),
    ("The most {a} thing about {N} is {p}.", "What is the most {a} thing about {N}?", "The most {a} thing about {N} is {p}."),
    ("The best thing to do in {N} is {p}.", "What is the best thing to do in {N}?", "The best thing to do in {N} is {p}."),
    ("The best {a} in {N} is {p}.", "What is the best {a} in {N}?", "The best {a} in {N} is {p}."),
    ("What {N} likes best is to {a} and {p}.", "What does {N} like best?", "What {N} likes best is to {a} and {p}."),
    ("To find the {a} in {N}, {p}.", "How do you find the {a} in {N}?", "To find the {a} in {N}, {p}."),
    ("{N} was born in {M}.", "Where was {N} born?", "{N} was born in {M}."),
    ("{N} lives in {M} with {O}.", "Where does {N} live?", "{N} lives in {M}."),
    ("The {a} of {N} is called {M}.", "What is the {a} of {N} called?", "The {a} of {N} is called {M}."),
    ("The number of the {a} {b} is {n}.", "What is the number of the {a} {b}?", "The number of the {a} {b} is {n}."),
    ("The secret number of {N} is {n}.", "What is the secret number of {N}?", "{n}."),
    ("{N} paid {n} coins for the {a}.", "How much did {N} pay for the {a}?", "{N} paid {n} coins for the {a}."),
    ("The password of {N} is {a}.", "What is the password of {N}?", "{a}."),
    ("{N} keeps the {a} under the {b}.", "Where does {N} keep the {a}?", "{N} keeps the {a} under the {b}."),
    ("{N} has the {a} and {M} has the {b}.", "Who has the {b}?", "{M} has the {b}."),
    ("{N} said: {p}.", "What did {N} say?", "{N} said: {p}."),
    ("The letter from {N} ends with the words {p}.", "How does the letter from {N} end?", "It ends with the words {p}."),
)  # fmt: skip
ZH_FACTS = (
    ("{N}出生在{M}。", "{N}出生在哪里？", "{N}出生在{M}。"),
    ("{N}的号码是{n}。", "{N}的号码是多少？", "{N}的号码是{n}。"),
    ("{N}最喜欢的事情是{p}。", "{N}最喜欢的事情是什么？", "{N}最喜欢的事情是{p}。"),
    ("在{N}最有意思的是{p}。", "在{N}最有意思的是什么？", "在{N}最有意思的是{p}。"),
    ("{N}的老师叫{M}。", "{N}的老师叫什么？", "{N}的老师叫{M}。"),
    ("{N}说：{p}。", "{N}说了什么？", "{N}说：{p}。"),
    ("{N}把钥匙交给了{M}。", "{N}把钥匙交给了谁？", "{N}把钥匙交给了{M}。"),
    ("{N}的密码是{n}。", "{N}的密码是多少？", "{n}。"),
)  # fmt: skip


def fact(filler: Filler, rng: random.Random, chinese: bool) -> Fact:
    words = {
        "N": filler.zh_name(rng) if chinese else name(rng),
        "M": filler.zh_name(rng) if chinese else name(rng),
        "O": name(rng), "a": filler.word(rng), "b": filler.word(rng), "n": number(rng), "p": filler.phrase(rng, chinese),
    }  # fmt: skip
    if not chinese and rng.random() < 0.3:
        words["N"] += " " + name(rng)
    told, question, answer = (part.format(**words) for part in rng.choice(ZH_FACTS if chinese else FACTS))
    return told, question, answer


def passages(filler: Filler, rng: random.Random, tokens: int) -> Document:
    """A text with facts in it, and questions; or its own sentences, which go on as they did."""
    chinese = rng.random() < 0.25
    count = rng.randint(1, 4) + tokens // 200
    sentences = filler.text(rng, max(tokens - 60 * count, 40), chinese)
    if rng.random() < 0.3:
        return going_on(sentences, count, rng, chinese)
    facts = [fact(filler, rng, chinese) for _ in range(count)]
    for told, _, _ in facts:
        sentences.insert(rng.randint(0, len(sentences)), told)
    text = ("" if chinese else " ").join(sentences)
    rng.shuffle(facts)
    pairs = [(question, answer) for _, question, answer in facts]
    if rng.random() < 0.5:
        return asked_in_turn(text, pairs, rng)
    form = "问：{}\n答：{}" if chinese else "Question: {}\nAnswer: {}"
    first, *others = (form.format(*pair) for pair in pairs)
    opening = first[: -len(pairs[0][1])]
    begun = cut_inside(pairs[0][1], rng, chinese) if rng.random() < 0.5 else 0
    prompt = f"{text}\n\n{opening}{pairs[0][1][:begun]}".rstrip()
    return completion(prompt, f"{text}\n\n{first}"[len(prompt) :] + "".join(f"\n\n{other}" for other in others))


def cut_inside(answer: str, rng: random.Random, chinese: bool) -> int:
    """A place between two words: what is before it is given."""
    places = [found.start() for found in re.finditer(" ", answer)] if not chinese else list(range(1, len(answer) - 1))
    return rng.choice(places[: max(len(places) * 2 // 3, 1)]) if places else 0


def going_on(sentences: list[str], count: int, rng: random.Random, chinese: bool) -> Document:
    """The text, then sentences of it again, the first of them from its fourth word on."""
    joint = "" if chinese else " "
    long = [sentence for sentence in sentences if len(sentence) > (12 if chinese else 50)] or sentences
    again = rng.sample(long, min(len(long), max(count, 2)))
    opening = again[0][:5] if chinese else " ".join(again[0].split(" ")[:5])
    return completion(f"{joint.join(sentences)}\n\n{opening}", "\n\n".join(again)[len(opening) :])


# -------------------------------------------------------------------------------------------------------------------- told

TOLD = (
    ("My {pet} is called {N}.", "What is my {pet} called?", "Your {pet} is called {N}."),
    ("My {pet} is called {N} and was born in {M}.", "What is my {pet} called?", "Your {pet} is called {N}."),
    ("My {pet} is called {N} and was born in {M}.", "Where was my {pet} born?", "Your {pet} was born in {M}."),
    ("I have a {pet}. It is called {N}.", "What is the name of my {pet}?", "The name of your {pet} is {N}."),
    ("My {kin} is called {N}.", "What is my {kin} called?", "Your {kin} is called {N}."),
    ("My {kin}'s name is {N}.", "What is my {kin}'s name?", "Your {kin}'s name is {N}."),
    ("My {kin} lives in {M}.", "Where does my {kin} live?", "Your {kin} lives in {M}."),
    ("My {kin} {N} works in a {w} shop.", "Where does my {kin} work?", "Your {kin} works in a {w} shop."),
    ("My {kin} is {n2} years old.", "How old is my {kin}?", "Your {kin} is {n2} years old."),
    ("My name is {N}.", "What is my name?", "Your name is {N}."),
    ("I am {N} and I come from {M}.", "Where do I come from?", "You come from {M}."),
    ("I am {N} and I come from {M}.", "What is my name?", "Your name is {N}."),
    ("I live in {M}.", "Where do I live?", "You live in {M}."),
    ("I was born in {M}.", "Where was I born?", "You were born in {M}."),
    ("My friend {N} likes {w}.", "What does my friend {N} like?", "Your friend {N} likes {w}."),
    ("My favourite word is {w}.", "What is my favourite word?", "Your favourite word is {w}."),
    ("My favourite {thing} is {w}.", "What is my favourite {thing}?", "Your favourite {thing} is {w}."),
    ("I put my {thing} behind the {w}.", "Where did I put my {thing}?", "You put your {thing} behind the {w}."),
    ("The code of my {thing} is {n}.", "What is the code of my {thing}?", "The code of your {thing} is {n}."),
    ("My phone number is {n}.", "What is my phone number?", "Your phone number is {n}."),
    ("Remember the number {n}.", "Which number should you remember?", "{n}."),
    ("Please remember the word {w}.", "Which word should you remember?", "{w}."),
    ("Tomorrow I will meet {N} at the {w}.", "Whom will I meet tomorrow?", "You will meet {N}."),
    ("My {thing} has the colour {w}.", "What colour does my {thing} have?", "Your {thing} has the colour {w}."),
    ("I bought {n2} {w} for {N}.", "For whom did I buy them?", "You bought them for {N}."),
)  # fmt: skip
WIDER = (
    *TOLD,
    ("My {w} is called {N}.", "What is my {w} called?", "Your {w} is called {N}."),
    ("My {w} is {n}.", "What is my {w}?", "Your {w} is {n}."),
    ("The {w} of my {kin} is {N}.", "What is the {w} of my {kin}?", "The {w} of your {kin} is {N}."),
    ("The number of my {w} is {n}.", "What is the number of my {w}?", "The number of your {w} is {n}."),
    (
        "My {kin} {N} has a {w} called {M}.",
        "What is the {w} of my {kin} called?",
        "The {w} of your {kin} is called {M}.",
    ),
    ("{N} is my {kin} and {M} is my boss.", "Who is my {kin}?", "{N} is your {kin}."),
    ("I left my {w} at {N}'s house.", "Where did I leave my {w}?", "You left your {w} at {N}'s house."),
    ("I gave {N} a {w}.", "What did I give {N}?", "You gave {N} a {w}."),
    ("I come from {N}, but I work in {M}.", "Where do I work?", "You work in {M}."),
    ("Please call me {N}.", "What should you call me?", "I should call you {N}."),
    ("The meeting is in room {n}.", "In which room is the meeting?", "The meeting is in room {n}."),
    ("My book is called {p}.", "What is my book called?", "Your book is called {p}."),
)
"""Also such whose subject is any word: the second stage has them."""
PETS = "dog cat horse rabbit parrot hamster turtle goat pony fish bird mouse cow sheep donkey".split()
KIN = "mother father sister brother aunt uncle grandmother grandfather teacher friend cousin neighbour son daughter boss".split()
THINGS = (
    "bag car boat bicycle door box key book locker cup umbrella hat house coat lamp phone game song song meal".split()
)
SEEN = (
    "I see.",
    "Okay, I will remember that.",
    "Thank you for telling me.",
    "I will keep it in mind.",
    "Good to know.",
)
ZH_TOLD = (
    ("我的{pet}叫{N}。", "我的{pet}叫什么名字？", "你的{pet}叫{N}。"),
    ("我有一只{pet}，它叫{N}。", "我的{pet}叫什么？", "你的{pet}叫{N}。"),
    ("我的{pet}叫{N}，它是在{M}出生的。", "我的{pet}在哪里出生？", "你的{pet}在{M}出生。"),
    ("我的{kin}叫{N}。", "我的{kin}叫什么？", "你的{kin}叫{N}。"),
    ("我的{kin}住在{M}。", "我的{kin}住在哪里？", "你的{kin}住在{M}。"),
    ("我叫{N}。", "我叫什么名字？", "你叫{N}。"),
    ("我叫{N}，我来自{M}。", "我来自哪里？", "你来自{M}。"),
    ("我住在{M}。", "我住在哪里？", "你住在{M}。"),
    ("我的电话号码是{n}。", "我的电话号码是多少？", "你的电话号码是{n}。"),
    ("请记住数字{n}。", "我让你记住的数字是多少？", "{n}。"),
    ("请记住这个词：{M}。", "我让你记住哪个词？", "{M}。"),
    ("我的{kin}今年{n2}岁。", "我的{kin}多大了？", "你的{kin}{n2}岁了。"),
    ("我最喜欢的东西是{M}。", "我最喜欢什么东西？", "你最喜欢{M}。"),
)  # fmt: skip
ZH_WIDER = (
    *ZH_TOLD,
    ("我的{z}是{n}。", "我的{z}是多少？", "你的{z}是{n}。"),
    ("我的{z}叫{N}。", "我的{z}叫什么？", "你的{z}叫{N}。"),
    ("我{kin}的{z}是{M}。", "我{kin}的{z}是什么？", "你{kin}的{z}是{M}。"),
    ("我在{M}工作。", "我在哪里工作？", "你在{M}工作。"),
    ("我把{z}放在{M}了。", "我把{z}放在哪里了？", "你把{z}放在{M}了。"),
    ("我送给{N}一个{z}。", "我送给{N}什么？", "你送给{N}一个{z}。"),
)
ZH_PETS, ZH_KIN = (
    "狗 猫 兔子 鹦鹉 仓鼠 乌龟 马 羊 鸟".split(),
    "妈妈 爸爸 姐姐 哥哥 弟弟 妹妹 老师 朋友 爷爷 奶奶 同学 邻居".split(),
)
ZH_SEEN = ("好的，我记住了。", "知道了。", "谢谢你告诉我。", "好的，我会记住的。", "明白了。")


def of_oneself(filler: Filler, rng: random.Random, chinese: bool, wide: bool) -> Fact:
    words = {
        "pet": rng.choice(ZH_PETS if chinese else PETS), "kin": rng.choice(ZH_KIN if chinese else KIN),
        "thing": rng.choice(THINGS), "w": filler.word(rng), "n": number(rng), "n2": str(rng.randrange(2, 100)),
        "N": filler.zh_name(rng) if chinese else name(rng), "M": filler.zh_name(rng) if chinese else name(rng),
    }  # fmt: skip
    forms = ZH_TOLD if chinese else TOLD
    if wide:
        words |= {"z": filler.zh_name(rng), "p": filler.phrase(rng, chinese=False)}
        forms = ZH_WIDER if chinese else WIDER
    told, question, answer = (part.format(**words) for part in rng.choice(forms))
    return told, question, answer[0].upper() + answer[1:]


def told(
    filler: Filler, rng: random.Random, tokens: int, between: Callable[[], list[str]], wide: bool = False
) -> Document:
    """Things a user says, other talk, and questions about the things."""
    chinese = rng.random() < 0.3
    facts = {fact[1]: fact for fact in (of_oneself(filler, rng, chinese, wide) for _ in range(rng.randint(1, 5)))}
    order, turns, spare = list(facts.values()), list[str](), list[str]()
    if rng.random() < 0.4:  # all in one message, a question at once
        rng.shuffle(order)
        opening = ("" if chinese else " ").join(one for one, _, _ in order)
        _, question, answer = rng.choice(order)
        turns += [opening + ("" if chinese else " ") + question, answer]
    else:
        for one, _, _ in order:
            turns += [one, rng.choice(ZH_SEEN if chinese else SEEN)]
            spare = between()
            turns += spare if rng.random() < 0.4 else []
    room = tokens - 60 * len(order)
    while room > 60 and rng.random() < (0.9 if tokens > SHORT else 0.5):
        spare = between()
        turns += spare
        room -= sum(map(len, spare)) // 3
    rng.shuffle(order)
    for _, question, answer in order:
        turns += [question, answer]
    return chat(*turns)


# ----------------------------------------------------------------------------------------------------------------- the data

DOCUMENTS = {"copies": 0.4, "tables": 0.3, "passages": 0.3}
LONG_DOCUMENTS = {"copies": 0.2, "tables": 0.2, "passages": 0.6}
CHATS = {"tables": 0.15, "passages": 0.25, "told": 0.6}
COUNTS = {"documents": 24_000, "long": 2600, "chats": 9000, "lessons": 1100}
LONG_CHATS = 0.08
"""Of the conversations, those that need the extended context."""


def length(rng: random.Random, long: bool) -> int:
    """Tokens of a record: evenly in their logarithm, or evenly up to the whole context."""
    return rng.randint(SHORT, LONG - 300) if long else int(40 * (SHORT / 40) ** rng.random())


def documents(filler: Filler, count: int, *, long: bool, seed: int) -> Iterator[Document]:
    """Texts and chats to read: loss on all of them."""
    rng = random.Random(seed)
    makers = {"copies": copies, "tables": tables, "passages": passages}
    while count:
        shares = LONG_DOCUMENTS if long else DOCUMENTS
        (kind,) = rng.choices(list(shares), list(shares.values()))
        found = makers[kind](filler, rng, length(rng, long))
        if not names_the_needle(found):
            yield found if "messages" in found else {"text": found["prompt"] + found["completion"]}
            count -= 1


def lessons(filler: Filler, count: int, *, seed: int = 4) -> Iterator[Document]:
    """Long passages with their questions, for a stage that learns from the answers alone."""
    rng = random.Random(seed)
    while count:
        found = passages(filler, rng, length(rng, long=True))
        if not names_the_needle(found):
            yield found
            count -= 1


def chats(filler: Filler, pairs: list[list[str]], *, seed: int = 3) -> Iterator[list[str]]:
    """Conversations, as turns. `pairs`: short questions and answers, the talk between what is told and what is asked."""
    rng, count = random.Random(seed), COUNTS["chats"]
    while count:
        (kind,) = rng.choices(list(CHATS), list(CHATS.values()))
        tokens = length(rng, rng.random() < LONG_CHATS)
        if kind == "told":
            found = told(filler, rng, tokens, lambda: rng.choice(pairs), wide=rng.random() < 0.5)
        else:
            found = (tables if kind == "tables" else passages)(filler, rng, tokens)
        if "messages" in found and not names_the_needle(found):
            yield [turn["content"] for turn in found["messages"]]
            count -= 1


def names_the_needle(record: Document) -> bool:
    turns = [turn["content"] for turn in record.get("messages", [])]
    text = " ".join(" ".join([record.get("prompt", ""), record.get("completion", ""), *turns]).lower().split())
    return any(key in text for key in NEEDLE)
