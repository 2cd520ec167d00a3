"""The raw data folders of the embedded model, each turned into clean documents.

Every reader yields documents as `{"text": ...}` or `{"messages": [...]}` dictionaries, the two forms that
`leadline train data` reads. What is silly, rude or garbled in a source is dropped here, source by source; the general
cleaning (Unicode, white space, length, duplicates) is the corpus builder's.
"""

from __future__ import annotations

import hashlib
import html
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Document = dict[str, Any]

# Words that drop a whole document: this model answers strangers and is far too small to handle such a topic with care.
RUDE = re.compile(
    r"\b(nigg\w*|niggar|negro\w*|darky|darkies|coon|faggot\w*|fag|retard\w*|whore\w*|slut\w*|bitch\w*|fuck\w*|shit\w*|"
    r"cunt\w*|cock|dick|dicks|pussy|tits|boobs?|porn\w*|sex|sexy|sexual\w*|rape\w?|rapist|racist|racism|nazi\w*|hitler|"
    r"jews?|jewish|blacks|whites|slaves?|slavery|semit\w*|terroris\w*|suicid\w*|kill (my|your)self|asshole\w*|bastard\w*|"
    r"damn\w*|crap|piss\w*|penis\w*|vagina\w*|nude|naked|orgasm\w*|cocaine|heroin|meth|weed|masturbat\w*|prostitut\w*|"
    r"molest\w*|pedophil\w*|genocid\w*|holocaust|lynch\w*|savages?|gyps(y|ies)|chink|jap|japs|trump|clinton|obama)\b",
    re.IGNORECASE,
)
# The books and the encyclopaedia need the slurs out, not every grave word.
SLUR = re.compile(
    r"\b(nigg\w*|negro\w*|dark(y|ies)|fuck\w*|cunt\w*|faggot\w*|whore\w*|porn\w*|rape[sd]?|rapist)\b", re.IGNORECASE
)

STRAIGHT = str.maketrans(
    {"\u2018": "'", "\u2019": "'", "\u201a": "'", "\u201c": '"', "\u201d": '"', "\u201e": '"', "\u2032": "'", "\u00b4": "'",
     "\u0060": "'", "\u2013": "-", "\u2212": "-", "\u2010": "-", "\u2011": "-", "\u00a0": " ", "\u200b": "", "\ufeff": "",
     "\u2028": "\n", "\u2029": "\n\n", "\u0092": "'", "\u0093": '"', "\u0094": '"', "\u0096": "-"}
)  # fmt: skip


def read_jsonl(path: Path) -> Iterator[Document]:
    """One object a line; a line ends at \\n only, for texts may hold U+2028."""
    with path.open(encoding="utf-8", newline="\n") as lines:
        for line in lines:
            if line.strip():
                yield json.loads(line)


def tidy(text: str) -> str:
    """Plain quotes, dashes and spaces: a small vocabulary has no room for three kinds of quotation mark."""
    text = text.translate(STRAIGHT).replace("\u2026", "...").replace("\u2014", " - ")
    return re.sub(r"[ \t]+", " ", text).strip()


def share(key: str, percent: int) -> bool:
    """Whether this document is in the first `percent` of its source, by hash: the same choice on every machine."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=4).digest()) % 100 < percent


def order_key(key: str) -> bytes:
    """A place in an order that mixes everything, the same on every machine."""
    return hashlib.blake2b(key.encode(), digest_size=8).digest()


def chat(*turns: str) -> Document:
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[at % 2], "content": turn} for at, turn in enumerate(turns)]}


def article(noun: str) -> str:
    return "an" if re.match(r"(?!uni|use|usu|eu|one|ufo)[aeiou]|hour|honest|heir", noun, re.IGNORECASE) else "a"


# ---------------------------------------------------------------------------------------------------------- stories


def unwrap(text: str) -> str:
    """Hard-wrapped lines joined again; an empty line still parts two paragraphs."""
    blocks = re.split(r"\n\s*\n", text)
    return "\n\n".join(" ".join(block.split()) for block in blocks if block.strip())


def story_parts(text: str) -> tuple[str, str]:
    """(title, body) of a storybook page."""
    title, _, body = tidy(text).partition("\n")
    return title.strip(" .#*"), unwrap(re.sub(r"[*_#]+", "", body))


def stories(path: Path) -> Iterator[tuple[str, str]]:
    """(title, body) of every readable story: at least five sentences of running text."""
    for record in read_jsonl(path):
        title, body = story_parts(record["text"])
        sentences = len(re.findall(r"[.!?][\"')]*(\s|$)", body))
        letters = sum(ch.isascii() for ch in body) / max(len(body), 1)
        if sentences >= 5 and len(body) > 250 and letters > 0.98 and not SLUR.search(body):
            yield title, re.sub(r" ([,.!?])", r"\1", body)


def storybooks(folder: Path) -> Iterator[Document]:
    for title, body in stories(folder / "stories.jsonl"):
        yield {"text": f"{title}\n\n{body}"}


LEFT_OUT = ("Huckleberry Finn", "Captains Courageous")  # dialect and slurs on most pages


def book_chapters(path: Path) -> Iterator[str]:
    text = tidy(path.read_text(encoding="utf-8", errors="replace")).split("-------", 1)[-1]
    for chapter in re.split(r"\n#+[^\n]*\n", text):
        chapter = re.sub(r"(?<=\w)\s*--+\s*(?=\w)", " - ", chapter).replace("--", " - ")
        chapter = re.sub(r"\[[^\]]{0,60}\]|[*_#|]+", "", chapter)
        yield re.sub(r" +", " ", unwrap(chapter))


def classics(folder: Path) -> Iterator[Document]:
    for path in sorted(folder.glob("*.md")):
        if not path.name.startswith("README") and not any(name in path.name for name in LEFT_OUT):
            for chapter in book_chapters(path):
                if len(chapter) > 400 and not SLUR.search(chapter):
                    yield {"text": chapter}


# ----------------------------------------------------------------------------------------------------- encyclopaedia


def plain_lead(text: str) -> str:
    """A lead without the brackets of its first sentence (pronunciations, other scripts) and without leftovers of markup."""
    text = tidy(text).replace('""', '"')
    text = re.sub(r"\s*\([^()]*(?:[^\x00-\x7f]|:|;|\]|listen|pronounced|born|abbreviated|also )[^()]*\)", "", text)
    text = re.sub(r"\s*\(\s*\)|\[[^\]]*\]|\]|\[", "", text)
    text = re.sub(r"\s+([,.;])", r"\1", text)
    return re.sub(r"[ \t]+", " ", text).strip()


def readable_lead(text: str) -> bool:
    digits = sum(ch.isdigit() for ch in text) / max(len(text), 1)
    plain = sum(ch.isascii() for ch in text) / max(len(text), 1)
    return (
        len(text) > 150 and digits < 0.05 and plain > 0.99 and "may refer to" not in text and text.endswith((".", '"'))
    )


def encyclopaedia(folder: Path) -> Iterator[tuple[str, str]]:
    for record in read_jsonl(folder / "enwiki.jsonl"):
        text = plain_lead(record["text"])
        if readable_lead(text) and not SLUR.search(text):
            yield record["title"], text


def encyclopaedia_documents(folder: Path) -> Iterator[Document]:
    for title, text in encyclopaedia(folder):
        question = definition_question(title, text)
        yield chat(question, text) if question and share(title, 40) else {"text": text}


def definition_question(title: str, text: str) -> str | None:
    """ "What is a cycloid?" when the lead begins as a definition of its title; None when it does not."""
    name = re.escape(title)
    if re.match(rf"(A|An) {name}s? (is|was) ", text, re.IGNORECASE):
        return f"What is {article(title)} {title[0].lower() + title[1:]}?"
    if re.match(rf"The {name} (is|was) ", text, re.IGNORECASE) and "(" not in title:
        return f"What is the {title[0].lower() + title[1:] if title[1:].islower() else title}?"
    if re.match(rf"{name} (is|was) (a|an|the|one) ", text) and "(" not in title and "," not in title:
        common = title.lower() in text[len(title) :]  # written small later on: a thing, not a name
        asked = title.lower() if common else title
        return f"{'Who' if is_person(text) else 'What'} {'was' if ' was ' in text[: len(title) + 6] else 'is'} {asked}?"
    return None


def is_person(text: str) -> bool:
    first = text.split(". ")[0]
    return bool(re.search(r"\b(actor|actress|singer|writer|author|poet|king|queen|emperor|politician|player|philosopher|"
                          r"mathematician|scientist|physicist|chemist|composer|painter|artist|general|president|saint|"
                          r"musician|director|novelist|engineer|inventor|explorer|bishop|pope|lawyer|economist|journalist|"
                          r"astronomer|historian|architect|footballer|comedian|philanthropist|officer|biologist)\b", first))  # fmt: skip


# --------------------------------------------------------------------------------------------------------- dialogues


SPELLING = {
    "i": "I", "im": "I'm", "ive": "I've", "dont": "don't", "didnt": "didn't", "doesnt": "doesn't", "cant": "can't",
    "isnt": "isn't", "wasnt": "wasn't", "wont": "won't", "couldnt": "couldn't", "wouldnt": "wouldn't", "thats": "that's",
    "whats": "what's", "youre": "you're", "theyre": "they're", "hes": "he's", "shes": "she's", "havent": "haven't",
    "arent": "aren't", "alot": "a lot", "u": "you", "ur": "your", "definately": "definitely", "gonna": "going to",
    "wanna": "want to", "kinda": "kind of", "favourite": "favorite", "i'm": "I'm", "i've": "I've", "i'd": "I'd",
    "i'll": "I'll", "Im": "I'm", "Ive": "I've", "Dont": "Don't", "Thats": "That's", "Whats": "What's", "didn;t": "didn't",
}  # fmt: skip


def tidy_turn(turn: str) -> str:
    """One spoken turn with its commonest slips mended: capital, apostrophes, final stop."""
    turn = re.sub(r"[A-Za-z';]+", lambda word: SPELLING.get(word[0], word[0]), tidy(turn))
    turn = re.sub(r"\s+([,.!?])", r"\1", re.sub(r"([!?.])\1{1,}", lambda run: "..." if run[1] == "." else run[1], turn))
    turn = re.sub(r",(?=[A-Za-z])", ", ", turn)
    turn = turn[:1].upper() + turn[1:]
    return turn if turn.endswith((".", "!", "?", '"', "'")) or not turn else turn + "."


def fluent(turns: list[str], words: Counter[str]) -> bool:
    """Whether nearly every word is one that the other texts use too (names pass by their capital)."""
    spoken = re.findall(r"[A-Za-z']+", " ".join(turns))
    odd = [word for word in spoken if words[word.lower().strip("'")] < 3 and not word[0].isupper()]
    shouted = [word for word in spoken if len(word) > 3 and word.isupper()]
    return bool(spoken) and len(odd) <= 0.015 * len(spoken) and len(shouted) <= 0.02 * len(spoken)


def alternating(turns: list[str]) -> list[str]:
    """Turns for user, assistant, user, ...: an even number, so that the assistant has the last word."""
    return turns[: len(turns) // 2 * 2]


def self_dialogues(folder: Path, words: Counter[str]) -> Iterator[list[str]]:
    for record in read_jsonl(folder / "dialogues.jsonl"):
        turns = [tidy_turn(turn) for turn in record["t"]]
        said = " ".join(turns)
        distinct = len(set(turns)) >= 0.9 * len(turns)
        if (
            len(turns) >= 4
            and distinct
            and len(said) > 25 * len(turns)
            and not RUDE.search(said)
            and fluent(turns, words)
        ):
            yield alternating(turns)


def sgd_dialogues(folder: Path) -> Iterator[list[str]]:
    for record in read_jsonl(folder / "dialogues.jsonl"):
        turns = [tidy_turn(turn) for turn in record["t"]]
        if len(turns) >= 4 and not RUDE.search(" ".join(turns)):
            yield alternating(turns)


def coffee_dialogues(folder: Path) -> Iterator[list[str]]:
    for record in read_jsonl(folder / "dialogues.jsonl"):
        speakers = [speaker for speaker, _ in record["t"]]
        if speakers == [("u", "a")[at % 2] for at in range(len(speakers))] and len(speakers) >= 2:
            yield alternating([tidy_turn(turn) for _, turn in record["t"]])


def self_dialogue_documents(folder: Path, words: Counter[str]) -> Iterator[Document]:
    """Two in three as a chat, the others as plain spoken lines."""
    for turns in self_dialogues(folder, words):
        if share(turns[0] + turns[-1], 67):
            yield chat(*turns)
        else:
            yield {"text": "\n".join(f'"{turn}"' for turn in turns)}


def sgd_documents(folder: Path) -> Iterator[Document]:
    """A third of them: they are many, long and alike."""
    return (chat(*turns) for turns in sgd_dialogues(folder) if share(turns[0] + turns[-1], 35))


def coffee_documents(folder: Path) -> Iterator[Document]:
    return (chat(*turns) for turns in coffee_dialogues(folder) if share(turns[0], 40))


# ------------------------------------------------------------------------------------------------------- dictionary


def meanings(folder: Path, words: Counter[str], at_least: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """(word, meaning) of every first meaning of a word that the stories and dialogues really use."""
    for record in read_jsonl(folder / "wordset.jsonl"):
        word, found = record["w"], record.get("m") or []
        if words[word] < at_least or not re.fullmatch(r"[a-z]{2,}", word) or not found or not found[0].get("def"):
            continue
        if not RUDE.search(word + " " + found[0]["def"]) and len(found[0]["def"]) > 12:
            yield word, found[0]


def definition(word: str, meaning: dict[str, Any]) -> str:
    """A meaning as a sentence."""
    text, part = tidy(meaning["def"]).rstrip(". ").replace("(", "").replace(")", ""), meaning.get("speech_part")
    text = text[:1].lower() + text[1:] if text[1:2].islower() else text
    if part == "verb":
        sentence = f"To {word} means to {text}."
    elif part == "noun" and re.match(r"(a|an|the|any|some|someone|something|one)\b", text):
        sentence = f"The word {word} means {text}."
    else:
        sentence = f'"{word[0].upper() + word[1:]}" means {text}.'
    example = tidy(meaning.get("example") or "")
    if example and re.search(rf"\b{word}", example) and 3 < len(example.split()) < 15:
        sentence += f' For example: "{example[0].upper() + example[1:].rstrip(".")}."'
    return sentence


def dictionary_documents(folder: Path, words: Counter[str]) -> Iterator[Document]:
    for word, meaning in meanings(folder, words, at_least=2):
        yield chat(
            f"What does {word} mean?" if share(word, 50) else f'What is the meaning of "{word}"?',
            definition(word, meaning),
        )


# ----------------------------------------------------------------------------------------------------------- trivia


def trivia(folder: Path) -> Iterator[tuple[str, str, str]]:
    """(category, question, right answer) where the question stands without its options."""
    for path in sorted(folder.iterdir()):
        if path.name in ("LICENSE", "SOURCE.txt"):
            continue
        raw = path.read_bytes()
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError:
            text = raw.decode("cp1252", errors="replace")
        for block in text.split("#Q ")[1:]:
            question, _, rest = block.partition("\n^")
            question, answer = " ".join(tidy(question).split()), tidry(rest)
            if stands_alone(question, answer):
                yield path.name, question, answer


def tidry(rest: str) -> str:
    return tidy(rest.split("\n", 1)[0]).strip(" .")


def stands_alone(question: str, answer: str) -> bool:
    needs_options = re.search(r"\b(NOT|EXCEPT|following|these|true or false|finish|complete|which one|latest|currently|"
                              r"last year|this year|newest|recent\w*)\b|_{2,}|\.\.\.", question, re.IGNORECASE)  # fmt: skip
    bad_answer = re.search(r"\b(all|none|both|neither|any) of|^(true|false|yes|no)$|\d\d\d\d-", answer, re.IGNORECASE)
    plain = (question + answer).isascii() and "?" not in answer
    asks = bool(re.match(r"(who|what|which|where|when|how many|in what|in which|the)\b", question, re.IGNORECASE))
    ends = question.endswith("?")
    return (asks and ends and plain and not needs_options and not bad_answer and 2 <= len(answer) <= 60
            and 20 <= len(question) <= 200 and not RUDE.search(question + " " + answer))  # fmt: skip


def trivia_answer(question: str, answer: str) -> str:
    """The bare answer as a sentence that fits its question."""
    answer = (
        answer[0].upper() + answer[1:]
        if re.match(r"(the|a|an|he|she|it|they|because|to|in|on)\b", answer, re.IGNORECASE)
        else answer
    )
    if len(answer.split()) > 5 or answer.startswith(("He ", "She ", "It ", "They ", "Because ", "To ", "In ", "On ")):
        return f"{answer}."
    lower = answer[0].lower() + answer[1:] if answer.startswith(("The ", "A ", "An ")) else answer
    openings = (
        ("The answer is {}.", "It is {}.", "That is {}.")
        if re.match(r"what|which", question, re.IGNORECASE)
        else ("The answer is {}.",)
    )
    if re.match(r"who\b", question, re.IGNORECASE):
        openings = (
            ("It was {}.", "That was {}.", "The answer is {}.")
            if re.match(r"who (was|did|wrote|\w+ed)\b", question, re.IGNORECASE)
            else ("It is {}.", "The answer is {}.")
        )
    pick = int.from_bytes(hashlib.blake2b(question.encode(), digest_size=2).digest()) % len(openings)
    return openings[pick].format(lower)


SIMPLE_TRIVIA = {"animals", "for-kids", "general", "geography", "science-technology", "history", "world", "humanities",
                 "literature", "hobbies", "rated", "sports"}  # fmt: skip


def trivia_documents(folder: Path) -> Iterator[Document]:
    """Half the questions alone, half in runs of three of one category: a chat may go on."""
    waiting: list[str] = []
    for category, question, answer in trivia(folder):
        if category not in SIMPLE_TRIVIA and not share(question, 25):
            continue
        turns = [question, trivia_answer(question, answer)]
        if share("alone" + question, 50):
            yield chat(*turns)
        else:
            waiting += turns
        if len(waiting) == 6:
            yield chat(*waiting)
            waiting = []


# --------------------------------------------------------------------------------------------------------- factbook


def strip_markup(text: str) -> str:
    return " ".join(tidy(html.unescape(re.sub(r"<[^>]+>", " ", text))).split())


def field(country: dict[str, Any], *path: str) -> str:
    """The first statement of one field; empty where the book has none."""
    node: Any = country
    for key in path:
        node = node.get(key, {}) if isinstance(node, dict) else {}
    return strip_markup(node.get("text", "") if isinstance(node, dict) else "")


def countries(folder: Path) -> Iterator[dict[str, str]]:
    """The few facts of each country that a child would ask for."""
    for path in sorted(folder.glob("*/*.json")):
        if path.parent.name in ("meta", "world", "oceans", "antarctica"):
            continue
        book = json.loads(path.read_text(encoding="utf-8"))
        name = field(book, "Government", "Country name", "conventional short form")
        name = re.sub(r"\s*\(.*\)$", "", name)
        capital = re.split(r"[;(,]", field(book, "Government", "Capital", "name"))[0].strip()
        name = {"DRC": "Congo"}.get(name, name)
        if name and name != "none" and capital and name.isascii() and capital.isascii() and "no " not in capital:
            yield {
                "name": spoken_name(name), "capital": capital, "background": field(book, "Introduction", "Background"),
                "people": rounded_people(field(book, "People and Society", "Population", "total")),
                "place": re.sub("^Middle East", "the Middle East", re.split(r"[;(]", field(book, "Geography", "Location"))[0].strip()),
                "climate": re.split(r"[;(]", field(book, "Geography", "Climate"))[0].strip(),
                "languages": first_languages(field(book, "People and Society", "Languages", "Languages")),
                "adjective": field(book, "People and Society", "Nationality", "adjective"),
            }  # fmt: skip


def spoken_name(name: str) -> str:
    takes_the = re.search(r"(Islands|States|Kingdom|Emirates|Philippines|Netherlands|Maldives|Republic|Bahamas)$", name)
    return f"the {name}" if takes_the and not name.lower().startswith("the ") else name.replace("The ", "the ")


def rounded_people(text: str) -> str:
    found = re.match(r"[\d,]+", text)
    if not found or not found[0].strip(","):
        return ""
    people = int(found[0].replace(",", ""))
    if people >= 1_500_000:
        return f"about {round(people / 1e6)} million people"
    return f"about {round(people, -3):,} people" if people >= 2000 else ""


def first_languages(text: str) -> str:
    names = [re.sub(r"\s*(\(.*?\)|[\d.]+%|less than.*)", "", part).strip() for part in re.split(r"[,;]", text)]
    names = [name for name in names if re.fullmatch(r"[A-Z][a-z]+( [A-Z][a-z]+)?", name)][:3]
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1] if names else ""


def capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]


DIRECTION = re.compile(r"^(North|South|East|West|Central)(ern|eastern|western)?(?= )(?! America| Africa)")


def country_text(fact: dict[str, str]) -> str:
    name = capitalised(fact["name"])
    are = "are" if re.search(r"(Islands|Philippines|Maldives|Bahamas)$", name) else "is"
    sentences = [f"The capital of {fact['name']} is {fact['capital']}."]
    if fact["place"] and fact["place"].isascii() and not fact["place"].endswith(":") and len(fact["place"]) < 160:
        place = re.sub(
            r"^(north|south|east|west)",
            lambda word: word[0],
            fact["place"][0].lower() + fact["place"][1:]
            if fact["place"].startswith(("Island", "Islands", "Between"))
            else fact["place"],
        )
        sentences.insert(
            0,
            f"{name} {are} in {re.sub('^in ', '', place)}."
            if not place.startswith(("island", "between"))
            else f"{name} {are} {'an ' if place.startswith('island ') else ''}{place}.",
        )
    if fact["people"]:
        sentences.append(f"{capitalised(fact['people'])} live there.")
    if fact["languages"]:
        sentences.append(f"People there speak {fact['languages']}.")
    return " ".join(sentences)


def factbook_documents(folder: Path) -> Iterator[Document]:
    for fact in countries(folder):
        yield {"text": country_text(fact)}
        yield chat(f"Tell me about {fact['name']}.", country_text(fact))
        yield chat(f"What is the capital of {fact['name']}?", f"The capital of {fact['name']} is {fact['capital']}.")
        background = re.sub(
            r"\b([A-Z]{3,})\b",
            lambda word: word[0].title() if word[0] not in KEPT_UPPER else word[0],
            fact["background"],
        )
        if len(background) > 200 and not SLUR.search(background):
            yield {"text": background}


KEPT_UPPER = {
    "NATO",
    "USA",
    "USSR",
    "UAE",
    "ASEAN",
    "OPEC",
    "OECD",
    "UNESCO",
    "WTO",
    "IMF",
    "CIS",
    "NGO",
    "GDP",
    "DRC",
    "UAR",
    "UNSC",
}

# --------------------------------------------------------------------------------------------------------- sentences


def sentences(folder: Path) -> Iterator[str]:
    seen: set[str] = set()
    for line in (folder / "cmn.txt").read_text(encoding="utf-8").split("\n"):
        text = tidy(line.split("\t")[0])
        if text not in seen and text.isascii() and 3 <= len(text.split()) <= 16 and not RUDE.search(text):
            seen.add(text)
            yield text


def rarest_word(sentence: str, words: Counter[str]) -> str | None:
    found = [word for word in re.findall(r"\b[a-z]{4,}\b", sentence) if words[word] >= 20]
    return min(found, key=lambda word: (words[word], word)) if found else None


def sentence_documents(folder: Path, words: Counter[str]) -> Iterator[Document]:
    """Each sentence as the answer to a wish for a sentence with its rarest word."""
    wishes = ("Make a sentence with the word {}.", "Use {} in a sentence.", "Write a short sentence with the word {}.",
              "Can you give me a sentence with {}?")  # fmt: skip
    for at, sentence in enumerate(sentences(folder)):
        word = rarest_word(sentence, words)
        if word:
            yield chat(wishes[at % len(wishes)].format(word), sentence)


# ---------------------------------------------------------------------------------------------------------- counting


def count_words(raw: Path) -> Counter[str]:
    """How often the stories, the books and the dialogues use each word: what counts as a common word."""
    words: Counter[str] = Counter()
    for name in ("asp_stories", "pratham_stories"):
        for record in read_jsonl(raw / name / "stories.jsonl"):
            words.update(re.findall(r"[a-z']+", tidy(record["text"]).lower()))
    for path in sorted((raw / "classics_children").glob("*.md")):
        words.update(re.findall(r"[a-z']+", tidy(path.read_text(encoding="utf-8", errors="replace")).lower()))
    for name in ("sgd", "self_dialogue"):
        for record in read_jsonl(raw / name / "dialogues.jsonl"):
            words.update(re.findall(r"[a-z']+", tidy(" ".join(record["t"])).lower()))
    return words
