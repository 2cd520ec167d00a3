"""Small English tasks to learn from, each made so that its answer is right: lists in a wished form, sorting, spelling, comparing,
counting, clock and calendar, rhymes, poems and notes. Makers yield chats as lists of turns, as in chats.py.
"""

from __future__ import annotations

import random
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sources import article

Turns = list[str]
Table = dict[str, Any]
Asker = Callable[[str, random.Random], str]
NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
MONTHS = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
]


def joined(parts: list[str], last: str = "and") -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} {last} {parts[-1]}"


def capital(text: str) -> str:
    return text[0].upper() + text[1:]


# ------------------------------------------------------------------------------------------------------ lists and kinds


def list_chats(groups: dict[str, list[str]], rng: random.Random) -> Iterator[Turns]:
    """Members of a group, as many and in the form that was asked for."""
    plain = ("Name {n} {g}.", "List {n} {g}.", "Give me {n} {g}.", "Tell me {n} {g}.", "Can you name {n} {g}?", "Please list {n} {g}.", "Think of {n} {g}.", "I need {n} {g}.",
             "What are {n} {g}?", "Write down {n} {g}.")  # fmt: skip
    numbered = (
        "Make a numbered list of {n} {g}.",
        "List {n} {g}, one on each line.",
        "Write a list of {n} {g} with numbers.",
        "Give me a numbered list with {n} {g}.",
    )
    for group, members in groups.items():
        for ask in plain * 2:
            number = rng.choice([count for count in (2, 3, 3, 4, 5) if count <= len(members)])
            chosen = joined(rng.sample(members, number))
            start = rng.choice((f"{capital(NUMBERS[number])} {group} are ", "Here are some: ", "For example ", ""))
            yield [ask.format(n=rng.choice((NUMBERS[number], str(number))), g=group), capital(f"{start}{chosen}.")]
        for ask in numbered:
            chosen = rng.sample(members, rng.choice((3, 3, 4)) if len(members) > 3 else 3)
            lines = [f"{at}. {capital(member)}" for at, member in enumerate(chosen, 1)]
            yield [ask.format(n=NUMBERS[len(chosen)], g=group), "\n".join(lines)]
        first, second = rng.sample(members, 2)
        yield [
            f"Name two {group}.",
            f"{capital(first)} and {second}.",
            "Name one more.",
            capital(next(each for each in members if each not in (first, second))) + ".",
        ]
        yield [f"Give me an example of {group}.", f"An example is {first}."]


def kind_chats(kinds: dict[str, str], rng: random.Random) -> Iterator[Turns]:
    """Which of these is a tool, is a carrot a fruit, which one does not belong."""
    names, groups = list(kinds), sorted(set(kinds.values()))
    for word, kind in kinds.items():
        other = rng.choice([each for each in groups if each != kind and (kind, each) != ("bird", "animal")])
        a_word = f"{article(word)} {word}"
        a_kind, a_other = f"{article(kind)} {kind}", f"{article(other)} {other}"
        first, second = (kind, other) if rng.random() < 0.5 else (other, kind)
        yield [
            f"Is {a_word} {article(first)} {first} or {article(second)} {second}?",
            f"{capital(a_word)} is {a_kind}.",
        ]
        yield [f"Is {a_word} {a_kind}?", f"Yes, {a_word} is {a_kind}."]
        yield [f"Is {a_word} {a_other}?", f"No, {a_word} is {a_kind}, not {a_other}."]
        yield [f"Is {a_word} {a_other}? Answer yes or no.", "No."]
        yield [f"Is {a_word} {a_kind}? Yes or no?", "Yes."]
        yield [
            f"What kind of thing is {a_word}? Answer in one word."
            if " " not in kind
            else f"What kind of thing is {a_word}?",
            f"{capital(kind)}." if " " not in kind else f"It is {a_kind}.",
        ]
        strangers = rng.sample(
            [each for each in names if kinds[each] != kind and not {kind, kinds[each]} <= {"bird", "animal"}], 2
        )
        shown = rng.sample([word, *strangers], 3)
        yield [f"Which of these is {a_kind}: {joined(shown, 'or')}?", f"{capital(a_word)} is {a_kind}."]
        same = [each for each in names if kinds[each] == kind and each != word]
        if len(same) >= 2:
            pair, odd = rng.sample(same, 2), strangers[0]
            shown = rng.sample([word, *pair, odd], 4)
            ask = rng.choice(
                (
                    "Which word does not belong: {}?",
                    "Which one is different: {}?",
                    "Find the odd one out: {}.",
                    "Which of these does not fit: {}?",
                )
            )
            yield [
                ask.format(", ".join(shown)),
                f"{capital(odd)} does not belong, because it is {article(kinds[odd])} {kinds[odd]}.",
            ]


# -------------------------------------------------------------------------------------------------------------- spelling


def spelling_chats(words: list[str], rng: random.Random) -> Iterator[Turns]:
    """Letters of a word: how many, the first, the last, one after the other."""
    for word in words:
        letters = "-".join(word.upper())
        yield [
            rng.choice(
                (
                    "How do you spell {}?",
                    "Spell the word {}.",
                    "Spell {}.",
                    "Can you spell {}?",
                    "How is {} spelled?",
                    "Please spell the word {}.",
                )
            ).format(word),
            f"{letters}.",
        ]
        count = NUMBERS[len(word)] if len(word) < 13 else str(len(word))
        yield [rng.choice(("How many letters does the word {} have?", "How many letters are in {}?", "How many letters has {}?", "Count the letters in {}.",
                           "How many letters are there in the word {}?")).format(word),
               rng.choice(("The word {w} has {n} letters: {l}.", "{W} has {n} letters: {l}.")).format(w=word, W=capital(word), n=count, l=letters)]  # fmt: skip
        yield [
            rng.choice(
                (
                    "What is the first letter of {}?",
                    "Which letter does {} start with?",
                    "With which letter does {} begin?",
                )
            ).format(word),
            f"The first letter of {word} is {word[0].upper()}.",
        ]
        yield [
            rng.choice(("What is the last letter of {}?", "Which letter does {} end with?")).format(word),
            f"The last letter of {word} is {word[-1].upper()}.",
        ]
        if rng.random() < 0.4:
            yield [
                rng.choice(("Write {} in capital letters.", "Write the word {} in big letters.")).format(word),
                word.upper(),
            ]
    for _ in range(300):
        short, long = sorted(rng.sample(words, 2), key=len)
        if len(short) != len(long):
            a, b = rng.sample((short, long), 2)
            yield [
                rng.choice(("Which word is longer, {a} or {b}?", "Which is the longer word: {a} or {b}?")).format(
                    a=a, b=b
                ),
                f"{capital(long)} is longer.",
            ]
    for _ in range(300):
        chosen = rng.sample(words, 3)
        if len({word[0] for word in chosen}) == 3:
            ask = rng.choice(
                (
                    "Put these words in alphabetical order: {}.",
                    "Sort these words from A to Z: {}.",
                    "Order alphabetically: {}.",
                )
            )
            yield [ask.format(", ".join(chosen)), f"{capital(', '.join(sorted(chosen)))}."]


REPEATED = ["I like apples", "The sun is warm", "Good things take time", "My house is blue", "We go home now", "The cat is on the roof", "Tea is good", "I am happy today", "Birds can sing",
            "Snow is white", "The train is late", "You are my friend", "Books are good friends", "The sea is calm"]  # fmt: skip


def repeat_chats(rng: random.Random) -> Iterator[Turns]:
    for text in REPEATED:
        for ask in (
            "Repeat after me: {}.",
            "Say: {}.",
            "Please repeat: {}.",
            'Say "{}".',
            "Write this down: {}.",
            "Repeat this sentence: {}.",
        ):
            yield [ask.format(text), f"{text}."]
        yield [f"Write this in capital letters: {text}.", f"{text.upper()}."]
        yield [f"How many words are in this sentence: {text}?", f"There are {NUMBERS[len(text.split())]} words in it."]
        yield [f"What is the last word of this sentence: {text}?", f"The last word is {text.split()[-1]}."]
        yield [f"What is the first word of this sentence: {text}?", f"The first word is {text.split()[0]}."]


# ------------------------------------------------------------------------------------------------------------- comparing

ORDERS = {
    "bigger": ("smaller", ["an ant", "a bee", "a mouse", "a squirrel", "a rabbit", "a fox", "a sheep", "a lion", "a horse", "an elephant", "a whale"]),
    "faster": ("slower", ["a snail", "a turtle", "a duck on land", "a person", "a bicycle", "a horse", "a car", "a fast train", "an airplane", "a rocket"]),
    "heavier": ("lighter", ["a feather", "a pencil", "an apple", "a book", "a chair", "a table", "a car", "a truck", "a ship"]),
    "taller": ("shorter", ["a flower", "a child", "a door", "a house", "a tree", "a tower", "a mountain"]),
    "hotter": ("colder", ["ice", "cold water", "warm milk", "boiling soup", "a fire", "the sun"]),
    "longer": ("shorter", ["a second", "a minute", "an hour", "a day", "a week", "a month", "a year", "a hundred years"]),
    "older": ("younger", ["a baby", "a schoolchild", "a father", "a grandfather"]),
}  # fmt: skip


def comparison_chats(rng: random.Random) -> Iterator[Turns]:
    for more, (less, row) in ORDERS.items():
        for at, small in enumerate(row):
            for large in row[at + 1 :]:
                a, b = rng.sample((small, large), 2)
                yes = f"Yes, {large} is {more} than {small}."
                yield [
                    rng.choice((f"Which is {more}, {a} or {b}?", f"What is {more}: {a} or {b}?")),
                    f"{capital(large)} is {more} than {small}.",
                ]
                yield [f"Which is {less}, {a} or {b}?", f"{capital(small)} is {less} than {large}."]
                yield [f"Is {a} {more} than {b}?", yes if a == large else f"No, {a} is {less} than {b}."]
        for _ in range(12):
            chosen = sorted(rng.sample(range(len(row)), 3))
            shown = joined([row[at] for at in rng.sample(chosen, 3)], "or")
            superlative = more[:-1] + "st"
            yield [f"Which is the {superlative}: {shown}?", f"{capital(row[chosen[-1]])} is the {superlative}."]


def number_order_chats(rng: random.Random) -> Iterator[Turns]:
    for _ in range(400):
        a, b = rng.sample(range(1, rng.choice((20, 100, 1000))), 2)
        high, low = max(a, b), min(a, b)
        yield rng.choice(([f"Which is bigger, {a} or {b}?", f"{high} is bigger than {low}."], [f"Which number is larger: {a} or {b}?", f"{high} is larger."],
                          [f"Which is smaller, {a} or {b}?", f"{low} is smaller than {high}."], [f"Is {a} more than {b}?", f"{'Yes' if a > b else 'No'}, {a} is {'more' if a > b else 'less'} than {b}."]))  # fmt: skip
    for _ in range(250):
        row = rng.sample(range(1, rng.choice((20, 100))), rng.choice((3, 4)))
        shown, up = ", ".join(map(str, row)), ", ".join(map(str, sorted(row)))
        yield rng.choice(([f"Put these numbers in order: {shown}.", f"{up}."], [f"Sort from small to big: {shown}.", f"{up}."],
                          [f"Which is the biggest number: {shown}?", f"The biggest number is {max(row)}."], [f"Which is the smallest of these numbers: {shown}?", f"The smallest number is {min(row)}."]))  # fmt: skip
    for start in range(1, 40):
        step = rng.choice((1, 2, 5, 10))
        row = [start + step * at for at in range(5)]
        yield [
            rng.choice(("What comes next: {}?", "Which number comes next? {}", "Go on: {}")).format(
                ", ".join(map(str, row[:4])) + ", ..."
            ),
            f"The next number is {row[4]}.",
        ]


# ----------------------------------------------------------------------------------------------------- counting and time

PARTS = {"cat": ("legs", 4), "horse": ("legs", 4), "cow": ("legs", 4), "bird": ("legs", 2), "hen": ("legs", 2), "spider": ("legs", 8), "ant": ("legs", 6), "bee": ("legs", 6),
         "car": ("wheels", 4), "bicycle": ("wheels", 2), "hand": ("fingers", 5), "week": ("days", 7), "year": ("months", 12), "child": ("eyes", 2), "triangle": ("sides", 3),
         "square": ("corners", 4), "octopus": ("arms", 8), "table": ("legs", 4), "tricycle": ("wheels", 3), "minute": ("seconds", 60), "hour": ("minutes", 60), "day": ("hours", 24)}  # fmt: skip
MANY = {"child": "children", "octopus": "octopuses"}
INSIDE = ("week", "year", "minute", "hour", "day")


def counting_chats(rng: random.Random) -> Iterator[Turns]:
    for thing, (part, each) in PARTS.items():
        for count in range(1, 7):
            many = thing if count == 1 else MANY.get(thing, thing + "s")
            told = f"{article(thing)} {thing}" if count == 1 else f"{NUMBERS[count]} {many}"
            total = each * count
            if thing in INSIDE:
                ask, answer = f"How many {part} are in {told}?", f"There are {total} {part} in {told}."
            else:
                verb, has = ("does", "has") if count == 1 else ("do", "have")
                ask, answer = f"How many {part} {verb} {told} have?", f"{capital(told)} {has} {total} {part}."
            yield [ask, answer]
            if count > 1:
                why = f"One {thing} has {each} {part}, so {told} have {total}."
                yield [rng.choice((f"{ask} Explain your answer.", f"Tell me how many {part} {told} have.")), why]
    things = ["apple", "star", "cat", "tree", "book", "ball", "fish", "cup", "bell", "leaf"]
    for _ in range(160):
        word, number = rng.choice(things), rng.randint(2, 7)
        row = " ".join([word] * number)
        yield [f"How many times do I say {word}? {capital(row)}.", f"You say {word} {NUMBERS[number]} times."]
    for _ in range(160):
        row = rng.sample(things, rng.randint(2, 6))
        yield [
            rng.choice(
                ("How many things are in this list: {}?", "Count the words: {}.", "How many words are these: {}?")
            ).format(", ".join(row)),
            f"There are {NUMBERS[len(row)]}: {joined(row)}.",
        ]


def calendar_chats(rng: random.Random) -> Iterator[Turns]:
    ordinal = {
        0: "first",
        1: "second",
        2: "third",
        3: "fourth",
        4: "fifth",
        5: "sixth",
        6: "seventh",
        7: "eighth",
        8: "ninth",
        9: "tenth",
        10: "eleventh",
        11: "twelfth",
    }
    for at, day in enumerate(DAYS):
        for steps in range(1, 7):
            later, before, many = (
                DAYS[(at + steps) % 7],
                DAYS[at - steps],
                f"{NUMBERS[steps]} day{'s' if steps > 1 else ''}",
            )
            yield [f"What day comes {many} after {day}?", f"{capital(many)} after {day} is {later}."]
            yield [f"If today is {day}, what day is it in {many}?", f"If today is {day}, it is {later} in {many}."]
            yield [f"What day was {many} before {day}?", f"{capital(many)} before {day} it was {before}."]
        yield [f"If today is {day}, what day is tomorrow?", f"Tomorrow is {DAYS[(at + 1) % 7]}."]
        yield [f"If today is {day}, what day was yesterday?", f"Yesterday was {DAYS[at - 1]}."]
        yield [
            f"Today is {day}. What day will it be the day after tomorrow?",
            f"The day after tomorrow will be {DAYS[(at + 2) % 7]}.",
        ]
        yield [
            f"Is {day} a day of the weekend?",
            f"Yes, {day} is a day of the weekend." if at > 4 else f"No, {day} is a weekday.",
        ]
    lengths = [31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31]
    seasons = [
        "winter",
        "winter",
        "spring",
        "spring",
        "spring",
        "summer",
        "summer",
        "summer",
        "autumn",
        "autumn",
        "autumn",
        "winter",
    ]
    for at, month in enumerate(MONTHS):
        days = f"{month} has {lengths[at]} days." if at != 1 else "February has 28 days, and 29 in a leap year."
        yield [f"How many days does {month} have?", days]
        yield [f"How many days are in {month}?", days]
        yield [f"Which month of the year is {month}?", f"{month} is the {ordinal[at]} month of the year."]
        yield [f"What is the {ordinal[at]} month of the year?", f"The {ordinal[at]} month is {month}."]
        yield [f"In which season is {month}?", f"In the north of the Earth, {month} is in {seasons[at]}."]
        yield [f"What comes after {month}?", f"After {month} comes {MONTHS[(at + 1) % 12]}."]
        yield [f"What comes before {month}?", f"Before {month} comes {MONTHS[at - 1]}."]


def clock_chats(rng: random.Random) -> Iterator[Turns]:
    for hour in range(1, 13):
        for steps in (1, 2, 3, 4, 5):
            later, before, many = (
                (hour + steps - 1) % 12 + 1,
                (hour - steps - 1) % 12 + 1,
                f"{NUMBERS[steps]} hour{'s' if steps > 1 else ''}",
            )
            yield [
                rng.choice(
                    (
                        f"It is {hour} o'clock. What time is it in {many}?",
                        f"If it is {hour} o'clock now, what time will it be in {many}?",
                    )
                ),
                f"In {many} it will be {later} o'clock.",
            ]
            yield [
                rng.choice(
                    (
                        f"It is {hour} o'clock. What time was it {many} ago?",
                        f"If it is {hour} o'clock, what time was it {many} before?",
                    )
                ),
                f"It was {before} o'clock.",
            ]
        yield [f"What does half past {NUMBERS[hour]} mean?", f"Half past {NUMBERS[hour]} means {hour}:30."]
        yield [f"How do I say {hour}:15?", f"You can say a quarter past {NUMBERS[hour]}."]
        yield [f"How do I say {hour}:45?", f"You can say a quarter to {NUMBERS[hour % 12 + 1]}."]
        yield [f"How do I say {hour}:30?", f"You can say half past {NUMBERS[hour]}."]


# ---------------------------------------------------------------------------------------------------- rhymes, poems, notes


def rhyme_chats(table: dict[str, list[str]], rng: random.Random) -> Iterator[Turns]:
    for word, rhymes in table.items():
        one = rng.choice(rhymes)
        for ask in (
            "What rhymes with {}?",
            "Which word rhymes with {}?",
            "Tell me a word that rhymes with {}.",
            "Give me a rhyme for {}.",
            "Find a rhyme for {}.",
        ):
            yield [
                ask.format(word),
                rng.choice(
                    (
                        f"{capital(one)} rhymes with {word}.",
                        f"{capital(joined(rhymes))} rhyme with {word}.",
                        f"A rhyme for {word} is {one}.",
                    )
                ),
            ]
        yield [f"Does {one} rhyme with {word}?", f"Yes, {one} and {word} rhyme."]
        other = rng.choice([each for each in table if each != word and not set(table[each]) & {*rhymes, word}])
        yield [f"Does {other} rhyme with {word}?", f"No, {other} does not rhyme with {word}, but {one} does."]


def poem_chats(table: dict[str, list[str]], rng: random.Random) -> Iterator[Turns]:
    asks = ("Write a poem about {}.", "Write a short poem about {}.", "Can you write a poem about {}?", "Please write a little poem about {}.", "I want a poem about {}.",
            "Give me a poem about {}.", "Write four lines about {}.", "Make a poem about {}.", "Tell me a poem about {}.", "A short poem about {}, please.")  # fmt: skip
    for subject, poems in table.items():
        for ask in asks:
            yield [ask.format(subject), rng.choice(poems).replace("|", "\n")]


RECIPIENTS = [
    "my teacher",
    "my friend Anna",
    "my grandmother",
    "my uncle",
    "my boss",
    "my sister",
    "my aunt",
    "my friend Tom",
    "my cousin",
    "my doctor",
]


def note_chats(table: dict[str, Any], rng: random.Random) -> Iterator[Turns]:
    asks = (
        "Write {a} {k} note to {who}.",
        "Write a short {k} note for {who}.",
        "Can you write {a} {k} card for {who}?",
        "Please write {a} {k} letter to {who}.",
        "Help me write {a} {k} note to {who}.",
    )
    for kind, (form, reasons) in table.items():
        for who in RECIPIENTS:
            name = who.removeprefix("my ").removeprefix("friend ")
            for ask in rng.sample(asks, 3):
                text = form.format(who=capital(name), why=rng.choice(reasons)).replace("|", "\n")
                yield [ask.format(a=article(kind), k=kind, who=who), text]


# ------------------------------------------------------------------------------------------------------------ short answers


def short_answer_chats(tables: Table, capitals: list[tuple[str, str]], rng: random.Random) -> Iterator[Turns]:
    """One word where one word was asked for, one sentence where one sentence was."""
    for country, city in capitals:
        if " " not in city:
            ask = rng.choice(
                ("{} Answer with one word.", "{} One word only.", "Answer in one word: {}", "{} Just the name.")
            )
            yield [ask.format(f"What is the capital of {country}?"), f"{city}."]
    for word, other in tables["opposite"].items():
        ask = rng.choice(("{} Answer with one word.", "{} One word only, please.", "Answer in one word: {}"))
        yield [ask.format(f"What is the opposite of {word}?"), f"{capital(other)}."]
    for word, meaning in tables["thing"].items():
        a_word = f"{article(word)} {word}"
        for ask in (
            "In one sentence, what is {}?",
            "Explain in one sentence what {} is.",
            "Tell me in one sentence what {} is.",
            "Describe {} in one sentence.",
        ):
            yield [ask.format(a_word), f"{capital(a_word)} is {meaning}."]
    for word, (kind, home, food, special, _) in tables["animal"].items():
        a_word = f"{article(word)} {word}"
        yield [f"Describe {a_word} in one sentence.", f"{capital(a_word)} is {kind}."]
        yield [f"Describe {a_word} in two sentences.", f"{capital(a_word)} is {kind}. {special}"]
        yield [f"Tell me two facts about {a_word}.", f"First, it lives {home}. Second, it eats {food}."]
        yield [
            f"Tell me three facts about {a_word}.",
            f"First, it is {kind}. Second, it lives {home}. Third, it eats {food}.",
        ]
        yield [f"I am thinking of {kind}. It eats {food}. What is it?", f"I think it is {a_word}."]


def all_skills(capitals: list[tuple[str, str]], loosely: Asker, rng: random.Random) -> Iterator[Turns]:
    """Every small task; one question in four is typed loosely."""
    talk = Path(__file__).parent / "talk"
    own: Table = tomllib.loads((talk / "skills.toml").read_text(encoding="utf-8"))
    shared: Table = tomllib.loads((talk / "tables.toml").read_text(encoding="utf-8"))
    words = sorted(
        {*own["kind"], *own["rhyme"], *shared["animal"], *shared["thing"], *shared["opposite"], *shared["job"]}
    )
    plain = [word for word in words if word.isalpha() and 3 <= len(word) <= 10]
    for makers in (
        list_chats(own["group"] | shared["group"], rng), kind_chats(own["kind"], rng), kind_chats(own["kind"], rng), spelling_chats(plain, rng), repeat_chats(rng), comparison_chats(rng),
        number_order_chats(rng), counting_chats(rng), calendar_chats(rng), clock_chats(rng), rhyme_chats(own["rhyme"], rng), poem_chats(own["poem"], rng),
        note_chats(own["note"], rng), short_answer_chats(shared, capitals, rng),
    ):  # fmt: skip
        for turns in makers:
            yield [loosely(turns[0], rng), *turns[1:]] if rng.random() < 0.25 and ":" not in turns[0] else turns
