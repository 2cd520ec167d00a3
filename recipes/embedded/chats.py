"""The conversations for fine-tuning, made from the project's own texts in talk/ and from the cleaned sources.

Every maker yields chats, a list of turns: user, assistant, user, assistant... Nothing here is random but through the
generator it is given, so the same sources give the same chats.
"""

from __future__ import annotations

import json
import random
import re
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import chinese_chats
import skills
import sources
import stories
import sums

Turns = list[str]
HERE = Path(__file__).parent
PERSONS = ["Anna", "Tom", "Maria", "Ben", "Lucy", "Sam", "Emma", "Paul", "Nina", "Jack", "Sara", "David", "Laura", "Mark",
           "Julia", "Peter", "Kate", "Alex", "Mia", "John", "Lena", "Oscar", "Grace", "Henry", "Sofia", "Adam", "Ella",
           "Daniel", "Olivia", "Max", "Alice", "Leo", "Rosa", "Simon", "Clara", "Victor", "Eva", "Robert", "Helen"]  # fmt: skip

# ------------------------------------------------------------------------------------------------------- own texts


def read_talk(name: str) -> list[tuple[list[str], list[str]]]:
    """(questions, answers) of every block of talk/<name>.txt; " / " in an answer ends a line of verse."""
    blocks = []
    for block in (HERE / "talk" / f"{name}.txt").read_text(encoding="utf-8").split("\n\n"):
        lines = block.split("\n")
        questions = [part.strip() for line in lines if line.startswith("? ") for part in line[2:].split(" | ")]
        answers = [line[2:].strip().replace(" / ", "\n") for line in lines if line.startswith("= ")]
        if questions and answers:
            blocks.append((questions, answers))
    return blocks


def loosely(question: str, rng: random.Random) -> str:
    """The question as people type it: often as written, sometimes small, without its stop, or with a greeting before."""
    way = rng.random()
    small = question[0].lower() + question[1:] if not re.match(r"I\b|[A-Z]{2}|I'", question) else question
    if way < 0.5:
        return question
    if way < 0.62:
        return question.lower().rstrip("?.!") or question
    if way < 0.72:
        return question.rstrip("?.!") or question
    if way < 0.80:
        return question.lower()
    if len(question.split()) < 3:
        return question
    if way < 0.92:
        return rng.choice(("Hi! ", "Hello! ", "Hey, ", "Hi, ", "Hello, ", "Well, ", "So, ", "Okay, ")) + small
    return (
        rng.choice(("Please tell me: ", "I have a question. ", "One more question: ", "Tell me, ", "Quick question: "))
        + small
        if question.endswith("?")
        else question
    )


def talk(name: str, rng: random.Random, times: int) -> Iterator[Turns]:
    """Every question `times` times, each time with the next answer and in another form."""
    for questions, answers in read_talk(name):
        order = rng.sample(range(len(answers)), len(answers))
        at = 0
        for repeat in range(times):
            for question in questions:
                asked = question if repeat == 0 else loosely(question, rng)
                yield [asked, answers[order[at % len(answers)]]]
                at += 1


FILLINGS = {
    "person": PERSONS, "animals": ["dogs", "cats", "horses", "elephants", "whales", "owls", "foxes", "rabbits", "bees", "penguins", "lions", "turtles", "dolphins", "bears"],
    "activity": ["read a book", "bake a cake", "call a friend", "draw a picture", "play a game", "write a letter", "listen to music", "cook a soup", "learn a new song", "clean your desk"],
    "dish": ["pasta with tomatoes", "vegetable soup", "rice with beans", "an omelet", "fish with potatoes"], "dish2": ["pancakes", "a big salad", "pizza", "potato soup", "chicken with rice"],
    "pet": ["dog", "cat", "rabbit", "hamster", "parrot", "kitten", "puppy"], "petname": ["Milo", "Luna", "Bella", "Max", "Coco", "Charlie", "Lucky", "Snowy", "Rocky", "Daisy"],
    "topic": ["pirates", "animals", "the sea", "music", "space", "trees", "old castles", "football", "ships", "cooking", "dragons", "the stars"],
    "place": ["park", "zoo", "beach", "cinema", "market", "museum", "lake", "library", "garden"], "age": ["seven", "ten", "twelve", "sixteen", "twenty", "thirty", "forty", "fifty"],
    "weather": ["raining", "sunny", "cold and windy", "snowing", "warm and sunny", "cloudy"], "relative": ["mother", "father", "sister", "brother", "grandmother", "friend", "teacher"],
    "gift": ["a good book", "some flowers", "a warm scarf", "a box of chocolates", "a picture that you made", "a nice cup"],
    "country": ["Italy", "France", "Spain", "Japan", "Norway", "Greece", "Ireland", "Mexico", "Canada", "Portugal"],
    "skill": ["to play the piano", "to swim", "to cook", "to draw", "to dance", "to play chess", "to sing", "to play the guitar", "a new language", "to ride a horse"],
}  # fmt: skip


def dialogs(rng: random.Random, times: int) -> Iterator[Turns]:
    """Each dialog of talk/dialogs.txt `times` times with other words filled in."""
    for block in (HERE / "talk" / "dialogs.txt").read_text(encoding="utf-8").split("\n\n"):
        turns = [line[3:] for line in block.strip().split("\n") if line.startswith(("U: ", "A: "))]
        for _ in range(times if "{" in block else 2):
            words = {key: rng.choice(choices) for key, choices in FILLINGS.items()}
            filled = [turn.format(**words, Animals=words["animals"].capitalize()) for turn in turns]
            if turns:
                yield (
                    filled
                    if rng.random() < 0.6
                    else [turn if at % 2 else loosely(turn, rng) for at, turn in enumerate(filled)]
                )


# ----------------------------------------------------------------------------------------------------------- identity

ASK_NAME = ["{} your name{}", "{} me your name{}", "{} what your name is{}", "{} what you are called{}"]
NAME_ANSWERS = ["My name is leadline.", "I am leadline.", "I am called leadline.", "You can call me leadline.",
                "My name is leadline. How can I help you?", "My name is leadline. What is yours?", "I'm leadline. It is nice to meet you!"]  # fmt: skip


def name_questions() -> list[str]:
    """Many ways to ask for a name, out of parts."""
    direct = [
        f"{start}{core}{end}"
        for start in (
            "",
            "Hi! ",
            "Hello, ",
            "Good morning! ",
            "Excuse me, ",
            "Sorry, ",
            "Okay, ",
            "By the way, ",
            "Oh, and ",
            "Before we start, ",
            "Hello leadline, ",
        )
        for core in (
            "what is your name",
            "what's your name",
            "what are you called",
            "do you have a name",
            "who are you",
            "what should I call you",
            "how can I call you",
            "what name do you have",
            "may I ask your name",
        )
        for end in ("?", "")
    ]
    polite = [
        f"{start} {core}{end}"
        for start in (
            "Can you tell me",
            "Could you tell me",
            "Would you tell me",
            "Please tell me",
            "Tell me",
            "Will you please tell me",
            "I want to know",
            "I would like to know",
            "I'd like to know",
            "Let me know",
            "I am curious about",
            "I wonder",
        )
        for core in (
            "your name",
            "what your name is",
            "what you are called",
            "who you are",
            "what I should call you",
            "how I should call you",
            "the name they gave you",
            "by what name I can call you",
        )
        for end in (".", "?")
    ]
    usable = [
        question
        for question in polite
        if question.endswith("?") == question.startswith(("Can", "Could", "Would", "Will"))
        and not question.startswith(
            (
                "I am curious about what",
                "I am curious about who",
                "I am curious about how",
                "I am curious about by",
                "I wonder your",
                "I wonder the",
            )
        )
    ]
    named = [
        f"My name is {person}. {core}"
        for person in PERSONS
        for core in ("What is yours?", "What is your name?", "And you?", "What are you called?", "Who are you?")
    ]
    return [question[0].upper() + question[1:] for question in direct + usable + named]


def names(rng: random.Random) -> Iterator[Turns]:
    for question in name_questions():
        told = re.match(r"My name is (\w+)", question)
        answers = (
            [f"Nice to meet you, {told[1]}! My name is leadline.", f"Hello, {told[1]}! I am leadline."]
            if told
            else NAME_ANSWERS
        )
        yield [question if rng.random() < 0.7 else question.lower(), rng.choice(answers)]


def remembered_names(rng: random.Random, count: int) -> Iterator[Turns]:
    """The user says a name and asks for it, or for leadline's, later on."""
    for _ in range(count):
        person = rng.choice(PERSONS)
        hello = rng.choice(
            (
                f"My name is {person}.",
                f"I am {person}.",
                f"Hi, I'm {person}.",
                f"Hello, my name is {person}.",
                f"You can call me {person}.",
                f"my name is {person.lower()}",
            )
        )
        greeting = rng.choice(
            (
                f"Nice to meet you, {person}! I am leadline.",
                f"Hello, {person}! My name is leadline. How can I help you?",
                f"It is nice to meet you, {person}.",
            )
        )
        mine = rng.choice(
            (
                ["What is my name?", f"Your name is {person}."],
                ["Do you remember my name?", f"Yes, your name is {person}."],
                ["Who am I?", f"You are {person}."],
                ["What's my name?", f"You told me that your name is {person}."],
            )
        )
        yours = [
            rng.choice(("What is your name?", "And who are you?", "And what is your name?", "What are you called?")),
            "My name is leadline.",
        ]
        follow = rng.choice((mine, yours, [*yours, *mine], mine))
        yield [hello, greeting, *follow]


AUTHOR = "the independent leadline project"


def filled_identity(raw: Path) -> Iterator[Turns]:
    """The English identity examples of LLaMA-Factory with the name and the author filled in."""
    for record in json.loads((raw / "llama_factory_demo" / "identity.json").read_text(encoding="utf-8")):
        if record["instruction"].isascii():
            yield [
                record["instruction"],
                record["output"].replace("{{name}}", "leadline").replace("{{author}}", AUTHOR),
            ]


# -------------------------------------------------------------------------------------------------------------- tables


def an(noun: str) -> str:
    return f"{sources.article(noun)} {noun}"


def plural(noun: str) -> str:
    odd = {
        "mouse": "mice",
        "wolf": "wolves",
        "sheep": "sheep",
        "deer": "deer",
        "goose": "geese",
        "fox": "foxes",
        "butterfly": "butterflies",
        "monkey": "monkeys",
    }
    return odd.get(noun, noun + ("es" if noun.endswith(("s", "x", "ch", "sh")) else "s"))


def animal_chats(table: dict[str, list[str]], rng: random.Random) -> Iterator[Turns]:
    for name, (kind, home, food, special, sound) in table.items():
        many = plural(name)
        about = f"{an(name).capitalize()} is {kind}. It lives {home} and eats {food}. {special}"
        short = f"{an(name).capitalize()} is {kind}. {special}"
        for question in (
            f"Tell me about {many}.",
            f"Tell me about the {name}.",
            f"Tell me something about {many}.",
            f"What do you know about {many}?",
            f"Describe {an(name)}.",
            f"I want to know more about {many}.",
            f"Can you tell me about {many}?",
            f"Explain to me what {an(name)} is.",
        ):
            yield [loosely(question, rng), about]
        for question in (
            f"What is {an(name)}?",
            f"What kind of animal is {an(name)}?",
            f"What is special about {many}?",
            f"Tell me a fact about {many}.",
        ):
            yield [loosely(question, rng), rng.choice((short, about))]
        for question in (f"Where does {an(name)} live?", f"Where do {many} live?", f"Where can you find {many}?"):
            yield [loosely(question, rng), f"{many.capitalize()} live {home}."]
        for question in (f"What does {an(name)} eat?", f"What do {many} eat?", f"What do {many} like to eat?"):
            yield [loosely(question, rng), f"{many.capitalize()} eat {food}."]
        if "no sound" not in sound and "silent" not in sound:
            for question in (
                f"What sound does {an(name)} make?",
                f"What noise does {an(name)} make?",
                f"What does {an(name)} say?",
            ):
                yield [loosely(question, rng), f"{an(name).capitalize()} {sound}."]
        yield [f"What is {an(name)}?", short, "What does it eat?", f"It eats {food}."]
        yield [
            f"Do you know what {an(name)} is?",
            f"Yes! {short}",
            "Where does it live?",
            f"It lives {home}.",
            "Thank you!",
            "You are welcome!",
        ]
        yield [f"I like {many}.", f"{many.capitalize()} are wonderful! {special} What do you like about them?"]
        yield [f"I saw {an(name)} today.", f"How nice! {an(name).capitalize()} is {kind}. Where did you see it?"]


def table_chats(rng: random.Random) -> Iterator[Turns]:
    tables: dict[str, Any] = tomllib.loads((HERE / "talk" / "tables.toml").read_text(encoding="utf-8"))
    yield from animal_chats(tables["animal"], rng)
    yield from thing_chats(tables["thing"], rng)
    yield from use_chats(tables["use"], rng)
    yield from job_chats(tables["job"], rng)
    for name, (asks, answers) in WORD_GAMES.items():
        for word, other in tables[name].items():
            for ask in asks:
                yield [loosely(ask.format(word), rng), rng.choice(answers).format(word, other)]
    for group, members in tables["group"].items():
        yield from group_chats(group, members, rng)


WORD_GAMES = {
    "opposite": (("What is the opposite of {}?", "What is the opposite of the word {}?", "Tell me the opposite of {}.", "Give me the opposite of {}.", "Which word is the opposite of {}?", "What word means the opposite of {}?", "opposite of {}"),
                 ("The opposite of {} is {}.", "The opposite of {} is {}.", "It is {1}.")),
    "synonym": (("What is another word for {}?", "Give me another word for {}.", "Which word means the same as {}?", "Tell me a synonym of {}.", "What is a synonym for {}?"),
                ("Another word for {} is {}.", "You can also say {1}.")),
    "plural": (("What is the plural of {}?", "Tell me the plural of {}.", "One {}, two what?"), ("The plural of {} is {}.",)),
    "past": (("What is the past tense of {}?", "Tell me the past of {}.", "What is the past form of {}?"), ("The past tense of {} is {}.",)),
}  # fmt: skip


def thing_chats(table: dict[str, str], rng: random.Random) -> Iterator[Turns]:
    for word, meaning in table.items():
        answer = f"{an(word).capitalize()} is {meaning}."
        for ask in (
            "What is {a}?",
            "What does {w} mean?",
            "What does the word {w} mean?",
            "What is the meaning of {w}?",
            "Explain what {a} is.",
            "Can you explain what {a} is?",
            "Tell me what {a} is.",
            "Do you know what {a} is?",
            "Explain to a child what {a} is.",
            "Can you explain {w} in simple words?",
        ):
            yield [loosely(ask.format(a=an(word), w=word), rng), f"Yes. {answer}" if ask.startswith("Do") else answer]


def use_chats(table: dict[str, str], rng: random.Random) -> Iterator[Turns]:
    for word, use in table.items():
        many = word in ("scissors", "glasses")
        thing, verb = (word if many or word == "soap" else an(word)), "are" if many else "is"
        answers = [
            f"You use {thing} to {use}.",
            f"{capital(thing)} {verb} used to {use}.",
            f"With {thing} you can {use}.",
        ]
        for ask in (
            "What {v} {t} for?",
            "What {v} {t} used for?",
            "What can I do with {t}?",
            "What do you need {t} for?",
            "Why do people use {t}?",
            "What {v} {t} good for?",
        ):
            yield [loosely(ask.format(v=verb, t=thing), rng), rng.choice(answers)]
        yield [f"What do I need to {use}?", f"You need {thing}."]


def job_chats(table: dict[str, str], rng: random.Random) -> Iterator[Turns]:
    for word, does in table.items():
        does_it, is_it = f"{capital(an(word))} {does}.", f"{capital(an(word))} is a person who {does}."
        for ask in (
            "What does {} do?",
            "What is the job of {}?",
            "Tell me what {} does.",
            "What does {} do all day long?",
            "What does {} do at work?",
        ):
            yield [loosely(ask.format(an(word)), rng), does_it]
        for ask in (f"What is {an(word)}?", f"Who is {an(word)}?", f"What do {plural(word)} do?"):
            yield [loosely(ask, rng), is_it]
        yield [f"Who {does.split(' or ')[0]}?", f"{capital(an(word))} does that."]
        yield [f"I am {an(word)}.", f"That is a fine job! {does_it} Do you like your work?"]
        yield [f"I want to be {an(word)}.", f"That is a good dream! {does_it} Why do you like this job?"]


NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen",
           "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty"]  # fmt: skip


def joined(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def group_chats(group: str, members: list[str], rng: random.Random) -> Iterator[Turns]:
    for _ in range(3):
        for ask in (
            "Name {n} {g}.",
            "Tell me {n} {g}.",
            "Can you name {n} {g}?",
            "List {n} {g}.",
            "Give me {n} {g}.",
            "Give me a list of {n} {g}.",
            "Please name {n} {g}.",
            "I need {n} {g}.",
        ):
            number = rng.choice([count for count in (2, 3, 3, 4, 5) if count <= len(members)])
            chosen = joined(rng.sample(members, number))
            start = rng.choice((f"{NUMBERS[number].capitalize()} {group} are ", "Here are some: ", "For example "))
            yield [loosely(ask.format(n=NUMBERS[number], g=group), rng), f"{start}{chosen}."]
    for ask in (
        "Name some {g}.",
        "What {g} do you know?",
        "Give me some {g}.",
        "Tell me some {g}.",
        "Do you know any {g}?",
        "Can you give me examples of {g}?",
    ):
        yield [
            loosely(ask.format(g=group), rng),
            rng.choice(("Some {} are {}.", "I know these {}: {}.", "Examples of {} are {}.")).format(
                group, joined(rng.sample(members, min(4, len(members))))
            ),
        ]
    if members[0].startswith(("a ", "an ")) and group.endswith("s") and " " not in group:
        single = {"clothes": ""}.get(group, group[:-1])
        if single:
            yield [f"Name {an(single)}.", f"{capital(rng.choice(members))} is {an(single)}."]


def capital(text: str) -> str:
    return text[0].upper() + text[1:]


def number_chats(rng: random.Random) -> Iterator[Turns]:
    for a in range(1, 11):
        for b in range(1, 11):
            if sums.may_be_taught(a, "+", b) and sums.may_be_taught(a + b, "-", b):
                ask = rng.choice(
                    (
                        f"What is {a} plus {b}?",
                        f"How much is {a} + {b}?",
                        f"What is {NUMBERS[a]} plus {NUMBERS[b]}?",
                        f"{a} + {b} = ?",
                        f"Add {a} and {b}.",
                    )
                )
                yield [ask, rng.choice((f"{a} plus {b} is {a + b}.", f"The answer is {a + b}."))]
                yield [f"What is {a + b} minus {b}?", f"{a + b} minus {b} is {a}."]
    for number in range(3, 16):
        yield [
            f"Count to {number}." if number % 2 else f"Count from one to {NUMBERS[number]}.",
            ", ".join(str(at) for at in range(1, number + 1)) + ".",
        ]
    for number in range(1, 20):
        yield [f"What number comes after {number}?", f"The number after {number} is {number + 1}."]
        yield [f"Which number comes before {number + 1}?", f"The number before {number + 1} is {number}."]
        yield [f"Is {number} odd or even?", f"{number} is {'even' if number % 2 == 0 else 'odd'}."]
    for names_, what in ((skills.DAYS, "day"), (skills.MONTHS, "month")):
        for at, name in enumerate(names_):
            after, before = names_[(at + 1) % len(names_)], names_[at - 1]
            yield [f"What {what} comes after {name}?", f"After {name} comes {after}."]
            yield [f"Which {what} is before {name}?", f"{before} comes before {name}."]
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    for ask in (
        "Say the alphabet.",
        "Tell me the alphabet.",
        "What is the alphabet?",
        "What are the letters of the alphabet?",
    ):
        yield [ask, "The letters are " + ", ".join(alphabet[:-1]) + " and Z."]
    for at in range(25):
        yield [f"Which letter comes after {alphabet[at]}?", f"After {alphabet[at]} comes {alphabet[at + 1]}."]


# ------------------------------------------------------------------------------------------------------------- stories


def story_chats(raw: Path, words: Counter[str], rng: random.Random, count: int) -> Iterator[Turns]:
    for _ in range(count):
        text, about = stories.tell(rng)
        way = rng.random()
        ask = (
            stories.wish(rng, about)
            if way < 0.78
            else rng.choice(stories.BEDTIME if about["plot"] == "sleep" else stories.OPEN_WISHES)
        )
        chat = [
            loosely(ask, rng) if rng.random() < 0.3 else ask,
            text if rng.random() < 0.85 else f"Here is a story for you. {text}",
        ]
        if rng.random() < 0.15:
            chat += rng.choice(
                (
                    ["Thank you, that was a nice story.", "You are welcome! I am glad that you liked it."],
                    ["I like this story.", "I am happy to hear that! Shall I tell you another one?"],
                    [f"What was the name of the {about['kind']}?", f"The {about['kind']} was called {about['name']}."],
                    [f"Who helped {about['name']}?", f"The {about['friend']} helped {about['name']}."],
                )
            )
        yield chat
    yield from book_story_chats(raw, words, rng)


def book_story_chats(raw: Path, words: Counter[str], rng: random.Random) -> Iterator[Turns]:
    """Short stories and fables of the books, asked for by their titles."""
    for title, body in sources.stories(raw / "asp_stories" / "stories.jsonl"):
        whole = body[0].isupper() and body.endswith((".", "!", "?", '"')) and not sources.RUDE.search(body)
        if (
            whole
            and len(body) < 1100
            and title.isascii()
            and 1 < len(title.split()) < 8
            and sources.fluent([body], words)
        ):
            ask = rng.choice(
                (
                    "Tell me the story of {}.",
                    "Tell me a story called {}.",
                    "Write a story with the title {}.",
                    "Can you tell me the story {}?",
                )
            )
            yield [ask.format(f'"{title}"'), " ".join(body.split())]
    fables = (raw / "classics_children" / "Aesop__Aesop's Fables.md").read_text(encoding="utf-8")
    for title, body in re.findall(r"\n## ([^\n]+)\n(.*?)(?=\n## |\Z)", sources.tidy(fables), flags=re.DOTALL):
        text = re.sub(r"[*_]", "", " ".join(body.split())).replace("--", " - ")
        if 200 < len(text) < 650 and not sources.RUDE.search(text):
            yield [
                rng.choice(
                    (
                        "Tell me the fable of {}.",
                        "Tell me a fable about {}.",
                        "Do you know the fable of {}?",
                        "Tell me the story of {}.",
                    )
                ).format(title.lower().strip()),
                text,
            ]


# ------------------------------------------------------------------------------------------------------------- sources


def trivia_chats(raw: Path) -> Iterator[Turns]:
    for category, question, answer in sources.trivia(raw / "opentriviaqa"):
        if (
            category in ("for-kids", "animals", "general", "geography", "science-technology")
            and len(question) < 100
            and not re.search(r"\d", answer)
            and sources.share(question, 35)
        ):
            yield [question, sources.trivia_answer(question, answer)]


ODD_MEANING = r"(followed by|usually|often|chiefly|of|used|expletive|an expletive|covering|being|having|a \w+ of the Greek|the \w+ letter|United|\(?especially|in|to)\b|the act of"


def word_chats(raw: Path, words: Counter[str], rng: random.Random) -> Iterator[Turns]:
    asks = (
        "What does {} mean?",
        "What does the word {} mean?",
        'What does "{}" mean?',
        "What is the meaning of {}?",
        "Explain the word {}.",
        "Can you explain the word {}?",
        "Define {}.",
        "Tell me what {} means.",
    )
    for word, meaning in sources.meanings(raw / "wordset", words, at_least=40):
        sentence = sources.definition(word, meaning)
        plain = meaning.get("speech_part") in ("noun", "verb", "adjective") and not re.match(
            ODD_MEANING, meaning["def"]
        )
        if (
            plain
            and len(sentence) < 150
            and sources.share(word, 60)
            and not re.search(rf"\b{word}\w*\b", meaning["def"])
        ):
            yield [loosely(rng.choice(asks).format(word), rng), sentence]


def country_chats(raw: Path, rng: random.Random) -> Iterator[Turns]:
    for fact in sources.countries(raw / "factbook"):
        name, capital_answer = fact["name"], f"The capital of {fact['name']} is {fact['capital']}."
        for ask in (
            "What is the capital of {}?",
            "Tell me the capital of {}.",
            "Which city is the capital of {}?",
            "What's the capital of {}?",
        ):
            yield [loosely(ask.format(name), rng), capital_answer]
        yield [
            rng.choice(("Tell me about {}.", "What do you know about {}?", "Tell me something about {}.")).format(name),
            sources.country_text(fact),
        ]
        if fact["languages"]:
            yield [f"What language do people speak in {name}?", f"People in {name} speak {fact['languages']}."]
        if fact["people"]:
            yield [f"How many people live in {name}?", f"{capital(fact['people'])} live in {name}."]
        if (
            fact["place"].isascii()
            and 10 < len(fact["place"]) < 120
            and ":" not in fact["place"]
            and not fact["place"].startswith(("island", "archipelago", "between", "group"))
        ):
            yield [f"Where is {name}?", sources.country_text(fact).split(". ")[0].rstrip(".") + "."]
        yield [
            f"What is the capital of {name}?",
            capital_answer,
            "Thank you!",
            rng.choice(("You are welcome!", "I am glad I could help.")),
        ]


def capitals(raw: Path) -> list[tuple[str, str]]:
    return [(fact["name"], fact["capital"]) for fact in sources.countries(raw / "factbook")]


def sentence_chats(raw: Path, words: Counter[str], rng: random.Random, percent: int) -> Iterator[Turns]:
    wishes = (
        "Make a sentence with the word {}.",
        "Use {} in a sentence.",
        "Write a short sentence with the word {}.",
        "Can you give me a sentence with {}?",
        "Write a sentence with {}.",
    )
    for sentence in sources.sentences(raw / "tatoeba_cmn_eng"):
        word = sources.rarest_word(sentence, words)
        if word and sources.share(sentence, percent) and words[word] > 60:
            yield [rng.choice(wishes).format(word), sentence]


def encyclopaedia_chats(raw: Path, words: Counter[str]) -> Iterator[Turns]:
    """What common things are: the first two sentences of a lead whose title is a common word."""
    for title, text in sources.encyclopaedia(raw / "enwiki_core_leads"):
        question = sources.definition_question(title, text)
        first = re.split(r"(?<=[a-z)]\.)\s+(?=[A-Z])", text.split("\n")[0])
        answer = " ".join(first[:2]) if len(" ".join(first[:2])) < 260 else first[0]
        if (
            question
            and words[title.lower()] >= 8
            and title.lower().isalpha()
            and 30 < len(answer) < 260
            and not sources.RUDE.search(answer)
            and question.startswith("What is")
            and answer.isascii()
        ):
            yield [question, answer]


def instruction_chats(raw: Path) -> Iterator[Turns]:
    for record in sources.read_jsonl(raw / "dolly_hh_small" / "dolly_hhrlhf_train_small.jsonl"):
        prompt = sources.tidy(record["prompt"].split("### Instruction:\n")[1].split("\n\n### Response")[0])
        answer = " ".join(sources.tidy(record["response"]).split())
        fits = (
            "\n" not in prompt
            and 10 < len(prompt) < 140
            and 25 < len(answer) < 330
            and answer.endswith((".", "!"))
            and answer[0].isupper()
        )
        plain = (
            (prompt + answer).isascii()
            and not sources.RUDE.search(prompt + answer)
            and "?" not in answer
            and "http" not in answer
        )
        if (
            fits
            and plain
            and not re.search(
                r"\d{3,}|\balive\b|\bextinct\b|Identify which|string or|Human:|Assistant", prompt + answer
            )
        ):
            yield [prompt, answer]


PERSONAL = re.compile(r"\b(my|mine|our) (wife|husband|kids?|son|sons|daughters?|mom|mum|mother|dad|father|brother|sister|girlfriend|boyfriend|"
                      r"family|friend|friends|house|car|job|boss|school|teacher|phone|nephew|niece|cousin|parents)\b|"
                      r"\bI (saw|went|watched|grew|bought|live|lived|work|worked|drive|was born|remember|used to|own|had|took|paid)\b|"
                      r"\bI'm (from|going|\d)|\bI've (seen|been|never)|years old", re.IGNORECASE)  # fmt: skip


def small_dialogues(raw: Path, words: Counter[str], count: int) -> Iterator[Turns]:
    """Beginnings of the self-dialogues, four turns, in which the second speaker says nothing that only a person could."""
    kept = 0
    for turns in sources.self_dialogues(raw / "self_dialogue", words):
        head, answers = turns[:4], turns[1:4:2]
        natural = all(
            4 < len(turn.split()) < 25 and not re.search(r"(\w)\1\1|\b(omg|lol|hes|yea|ya)\b|\.\w", turn, re.IGNORECASE)
            for turn in head
        ) and not any(PERSONAL.search(answer) for answer in answers)
        if natural and " ".join(head).isascii() and not answers[-1].endswith("?.") and sources.share(head[0], 60):
            yield head
            kept += 1
        if kept == count:
            return


# ----------------------------------------------------------------------------------------------------------- together

THANKS = [("Thank you!", "You are welcome!"), ("Thanks!", "You're welcome! Is there anything else?"), ("thank you", "It was a pleasure."), ("Thanks a lot.", "I am happy to help."),
          ("Great, thanks.", "You are welcome. Just ask if you need more."), ("Ok, thanks", "You are welcome!")]  # fmt: skip
BYES = [
    ("Bye!", "Goodbye! Have a nice day."),
    ("Goodbye.", "Goodbye! It was nice talking with you."),
    ("I have to go.", "Goodbye! Come back soon."),
    ("See you!", "See you soon! Take care."),
    ("bye", "Bye! Have a lovely day."),
]
HELLOS = [("Hi!", "Hello! How can I help you?"), ("Hello!", "Hello! What can I do for you?"), ("hi", "Hi there! How can I help you today?"), ("Hey", "Hello! What would you like to talk about?"), ("Good morning!", "Good morning! How can I help you?"),
          ("Hello, how are you?", "I am fine, thank you. What can I do for you?")]  # fmt: skip


def long_chats(singles: list[Turns], rng: random.Random, count: int) -> Iterator[Turns]:
    """Two to four short exchanges in a row, with a greeting before and thanks after some of them."""
    short = [
        chat
        for chat in singles
        if len(chat) == 2 and len(chat[1]) < 300 and chat[0][:2] not in ("Hi", "He") and chat[1][-1] != "?"
    ]
    for _ in range(count):
        chat: Turns = list(rng.choice(HELLOS)) if rng.random() < 0.5 else []
        for pair in rng.sample(short, rng.choice((1, 2, 2, 3))):
            chat += pair
        chat += list(rng.choice(THANKS)) if rng.random() < 0.4 else []
        chat += list(rng.choice(BYES)) if rng.random() < 0.25 else []
        if len(chat) > 2:
            yield chat


def all_chats(raw: Path, words: Counter[str], seed: int = 20) -> dict[str, list[Turns]]:
    """Every kind of chat by name, in a fixed order."""
    rng = random.Random(seed)
    kinds: dict[str, list[Turns]] = {
        "identity": [
            *talk("identity", rng, 6),
            *names(rng),
            *names(rng),
            *remembered_names(rng, 300),
            *list(filled_identity(raw)) * 3,
        ],
        "smalltalk": list(talk("smalltalk", rng, 4)),
        "dialogs": list(dialogs(rng, 30)),
        "refusals": list(talk("refusals", rng, 3)),
        "explain": list(talk("explain", rng, 4)),
        "howto": list(talk("howto", rng, 4)),
        "tables": list(table_chats(rng)),
        "skills": list(skills.all_skills(capitals(raw), loosely, rng)),
        "numbers": list(number_chats(rng)),
        "stories": list(story_chats(raw, words, rng, 7000)),
        "trivia": list(trivia_chats(raw)),
        "words": list(word_chats(raw, words, rng)),
        "countries": list(country_chats(raw, rng)),
        "sentences": list(sentence_chats(raw, words, rng, 10)),
        "encyclopaedia": list(encyclopaedia_chats(raw, words)),
        "instructions": list(instruction_chats(raw)),
        "dialogues": list(small_dialogues(raw, words, 700)),
    }
    singles = [
        chat
        for kind, chats in kinds.items()
        if kind not in ("dialogues", "dialogs", "stories", "sentences")
        for chat in chats
    ]
    kinds["long"] = list(long_chats(singles, rng, 5000))
    short = [chat for chat in singles if len(chat) == 2 and len(chat[1]) < 200]
    kinds |= chinese_chats.all_chats(raw, short)
    kinds["sums"] = list(sums.conversations())
    return kinds
