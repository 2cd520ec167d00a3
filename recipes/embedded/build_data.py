"""Make the embedded model's data: clean documents for pre-training, conversations for fine-tuning.

    python recipes/embedded/build_data.py documents RAW OUT     OUT/documents/<source>.jsonl, for corpus.toml
    python recipes/embedded/build_data.py recall RAW OUT        OUT/documents/recall.jsonl, and OUT/long for the extension
    python recipes/embedded/build_data.py chats RAW OUT         OUT/sft/train.jsonl and valid.jsonl, for sft.toml
    python recipes/embedded/build_data.py lessons RAW OUT       OUT/lessons: long passages and some chats, for renew_sft.toml
    python recipes/embedded/build_data.py tokenizer RAW OUT     OUT/tokenizer, trained on both
    python recipes/embedded/build_data.py alignment RAW OUT     OUT/preferences, questions, solutions: reward models, GRPO
    python recipes/embedded/build_data.py check RAW OUT         fails when OUT holds a test prompt, eight words of one, or a held-out sum

RAW is the folder with the raw sources (leadline/embedded/ATTRIBUTION.md). The same input gives the same bytes.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import chats
import chinese
import preferences
import recall
import sources
import sums
from sources import Document

from leadline.tokenizer import train_bpe
from leadline.train.corpus import clean_text, document_key, is_valid_split

VOCAB_SIZE = 8192
VALID_PERMILLE = 10  # as in corpus.toml
PROMPTS = (Path(__file__).parent / "prompts.txt", Path(__file__).parents[2] / "tests" / "e2e" / "prompts.txt")


def write_jsonl(path: Path, documents: Iterable[Document]) -> int:
    """Write atomically; the number of lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    count = 0
    with partial.open("w", encoding="utf-8", newline="\n") as out:
        for document in documents:
            out.write(json.dumps(document, ensure_ascii=False) + "\n")
            count += 1
    partial.replace(path)
    return count


# ----------------------------------------------------------------------------------------------------- pre-training


def document_sources(raw: Path, words: Counter[str]) -> dict[str, Iterable[Document]]:
    return {
        "asp_stories": sources.storybooks(raw / "asp_stories"),
        "pratham_stories": sources.storybooks(raw / "pratham_stories"),
        "classics_children": sources.classics(raw / "classics_children"),
        "enwiki_core_leads": sources.encyclopaedia_documents(raw / "enwiki_core_leads"),
        "self_dialogue": sources.self_dialogue_documents(raw / "self_dialogue", words),
        "sgd": sources.sgd_documents(raw / "sgd"),
        "taskmaster4": sources.coffee_documents(raw / "taskmaster4"),
        "wordset": sources.dictionary_documents(raw / "wordset", words),
        "opentriviaqa": sources.trivia_documents(raw / "opentriviaqa"),
        "factbook": sources.factbook_documents(raw / "factbook"),
        "tatoeba": sources.sentence_documents(raw / "tatoeba_cmn_eng", words),
        "zhwiki": chinese.encyclopaedia_documents(raw / "zhwiki_simplified"),
        "kdconv": chinese.dialogue_documents(raw / "kdconv_zh"),
        "translations": chinese.translation_documents(raw / "tatoeba_cmn_eng"),
        "sums": sums.documents(),
    }


def documents(raw: Path, out: Path) -> None:
    words, tested = sources.count_words(raw), Tested()
    for name, found in document_sources(raw, words).items():
        kept = (document for document in found if not tested.touches(texts_of(document)))
        print(f"{name:20s} {write_jsonl(out / 'documents' / f'{name}.jsonl', kept):7,d} documents")


# ------------------------------------------------------------------------------------------------------ fine-tuning


def normalised(text: str) -> list[str]:
    """The words of a text; a Chinese character counts as a word."""
    return re.findall(r"[a-z0-9]+|[\u4e00-\u9fff]", text.lower())


def repeats_itself(answer: str) -> bool:
    """Whether four words in a row, or eight Chinese characters, come more than twice: what a model must not learn from."""
    words = normalised(answer)
    length = 8 if chinese.HAN.search(answer) else 4
    grams = Counter(tuple(words[at : at + length]) for at in range(len(words) - length + 1))
    return max(grams.values(), default=0) > 2


def write_recall(raw: Path, out: Path) -> None:
    """What asks for something that stands above it, to 500 tokens and to 4,096, and the long texts of other sources."""
    folder, tested = out / "documents", Tested()
    filler = recall.Filler(folder)
    made = {
        "documents/recall": recall.documents(filler, recall.COUNTS["documents"], long=False, seed=1),
        "long/recall": recall.documents(filler, recall.COUNTS["long"], long=True, seed=2),
        "long/books": recall.long_ones(folder, "classics_children", 4000),
        "long/articles": recall.long_ones(folder, "zhwiki", 1200),
    }
    for name, found in made.items():
        clean = (document for document in found if not tested.touches(texts_of(document)))
        print(f"{name}: {write_jsonl(out / f'{name}.jsonl', clean):,}")


class Tested:
    """The fixed test prompts: no document may hold one of them or eight words of one in a row, nor a held-out sum.

    In Chinese eight characters count as eight words."""

    def __init__(self) -> None:
        prompts = [normalised(line) for path in PROMPTS for line in path.read_text(encoding="utf-8").split("\n")
                   if line and not line.startswith("#")]  # fmt: skip
        self.whole = {" ".join(prompt) for prompt in prompts}
        self.grams = {tuple(prompt[at : at + 8]) for prompt in prompts for at in range(len(prompt) - 7)}

    def touches(self, texts: list[str]) -> bool:
        return any(self._touches(normalised(text)) or sums.tells_held_out(text) for text in texts)

    def _touches(self, words: list[str]) -> bool:
        long_run = any(tuple(words[at : at + 8]) in self.grams for at in range(len(words) - 7))
        return long_run or " ".join(words) in self.whole


def texts_of(document: Document) -> list[str]:
    if "prompt" in document:
        return [document["prompt"] + document["completion"]]
    return [document["text"]] if "text" in document else [turn["content"] for turn in document["messages"]]


def conversations(raw: Path, out: Path) -> Iterator[tuple[str, Document]]:
    """(kind, chat), each once, none that touches a test prompt."""
    tested, seen = Tested(), set[str]()
    kinds = {kind: list(found) for kind, found in chats.all_chats(raw, sources.count_words(raw)).items()}
    pairs = [turns for found in kinds.values() for turns in found if len(turns) == 2 and sum(map(len, turns)) < 300]
    kinds["recall"] = list(recall.chats(recall.Filler(out / "documents"), pairs))
    for kind, found in kinds.items():
        for turns in found:
            key = "\n".join(turns)
            if key not in seen and not tested.touches(turns) and not any(map(repeats_itself, turns[1::2])):
                seen.add(key)
                yield kind, sources.chat(*turns)


def held_out_of_pretraining(document: Document) -> bool:
    turns = [{"role": turn["role"], "content": clean_text(turn["content"])} for turn in document["messages"]]
    return is_valid_split(document_key(turns), VALID_PERMILLE)


def write_chats(raw: Path, out: Path) -> None:
    """Two in a hundred are held out, by the hash of the first question, so that a question is on one side only.

    So is what pre-training holds out: its held-out text must not come in by fine-tuning.
    """
    sides: dict[bool, list[Document]] = {False: [], True: []}
    counts: Counter[str] = Counter()
    for kind, document in conversations(raw, out):
        counts[kind] += 1
        question = " ".join(normalised(document["messages"][0]["content"]))
        asked_once = kind != "identity" and sources.share(question, 2)
        sides[asked_once or held_out_of_pretraining(document)].append(document)
    for held_out, name in ((False, "train"), (True, "valid")):
        ordered = sorted(sides[held_out], key=lambda document: sources.order_key(json.dumps(document)))
        print(f"{name}: {write_jsonl(out / 'sft' / f'{name}.jsonl', ordered):,} conversations")
    print(", ".join(f"{kind} {count:,}" for kind, count in counts.items()))


LESSON_CHATS = 26_000
"""Conversations beside the lessons: about half of the tokens."""


def write_lessons(raw: Path, out: Path) -> None:
    """What `renew_sft.toml` learns: long passages with questions, and some of the conversations."""
    tested = Tested()
    made = recall.lessons(recall.Filler(out / "documents"), recall.COUNTS["lessons"])
    lessons = [lesson for lesson in made if not tested.touches(texts_of(lesson))]
    known = {name: list(sources.read_jsonl(out / "sft" / f"{name}.jsonl")) for name in ("train", "valid")}
    mixed = [*lessons, *known["train"][:LESSON_CHATS]]
    for name, documents in (("train", mixed), ("valid", known["valid"])):
        ordered = sorted(documents, key=lambda document: sources.order_key(json.dumps(document)))
        print(f"lessons {name}: {write_jsonl(out / 'lessons' / f'{name}.jsonl', ordered):,}")


# --------------------------------------------------------------------------------------------------------- tokenizer


LONGEST_TOKEN = 15  # bytes: five Chinese characters. Without a limit whole sentences of the makers would become tokens.


def tokenizer_texts(out: Path) -> Iterator[str]:
    """Half of all documents, a chat as the template writes it: the words that open a turn deserve tokens of their own.

    Not the documents of made-up names, which deserve none."""
    paths = (path for path in sorted((out / "documents").glob("*.jsonl")) if path.stem != "recall")
    for path in (*paths, out / "sft" / "train.jsonl"):
        for document in sources.read_jsonl(path):
            turns = document.get("messages", [])
            forms = {"user": "User: {}\n\n", "assistant": "Assistant: {}"}
            text = document.get("text") or "".join(forms[turn["role"]].format(turn["content"]) for turn in turns)
            if sources.share(text, 50):
                yield text


def train_tokenizer(raw: Path, out: Path) -> None:
    train_bpe(tokenizer_texts(out), VOCAB_SIZE, out / "tokenizer", max_token_length=LONGEST_TOKEN)


# --------------------------------------------------------------------------------------------------------- alignment

HELPFUL, SAFETY = {"train": 16_000, "valid": 1000}, {"train": 4000, "valid": 300}
WISHES = {"train": 4000, "valid": 200}


def alignment(raw: Path, out: Path) -> None:
    """Pairs for the two reward models and questions for the two stages of GRPO, from the conversations in OUT/sft; and the
    first stage's questions worked out, to see what fine-tuning alone makes of them."""
    asked, solved = list(sums.questions()), [sources.chat(*turns) for turns in sums.solutions()]
    for place, name in enumerate(("train", "valid")):
        known = [document for document in sources.read_jsonl(out / "sft" / f"{name}.jsonl")
                 if document["messages"][-1]["role"] == "assistant"]  # fmt: skip
        helpful = preferences.helpful(known, HELPFUL[name], seed=50 + place)
        safety = preferences.safety(known, SAFETY[name], seed=60 + place, held_out=name == "valid")
        wishes = [{"messages": document["messages"][:-1]} for document in preferences.in_order(known, seed=70 + place)]
        part = slice(None, -300) if name == "train" else slice(-300, None)
        made: dict[str, list[Any]] = {
            "preferences/helpful": preferences.in_order(helpful, seed=80 + place),
            "preferences/safety": preferences.in_order(safety, seed=90 + place),
            "questions/sums": asked[part],
            "questions/wishes": wishes[: WISHES[name]],
            "solutions": solved[part],
        }
        for folder, records in made.items():
            print(f"{folder} {name}: {write_jsonl(out / folder / f'{name}.jsonl', records):,}")


# ------------------------------------------------------------------------------------------------------------- check


CHECKED = ("documents", "long", "sft", "lessons")


def check(raw: Path, out: Path) -> None:
    """Fail when a document or a conversation touches a test prompt."""
    tested = Tested()
    for path in (path for folder in CHECKED for path in sorted((out / folder).glob("*.jsonl"))):
        touched = sum(tested.touches(texts_of(document)) for document in sources.read_jsonl(path))
        print(f"{path.name:30s} {touched} touch a test prompt")
        if touched:
            sys.exit(1)


STEPS = {
    "documents": documents,
    "recall": write_recall,
    "chats": write_chats,
    "lessons": write_lessons,
    "tokenizer": train_tokenizer,
    "alignment": alignment,
    "check": check,
}


def main(arguments: list[str]) -> None:
    if len(arguments) != 3 or arguments[0] not in STEPS:
        sys.exit(__doc__)
    STEPS[arguments[0]](Path(arguments[1]), Path(arguments[2]))


if __name__ == "__main__":
    main(sys.argv[1:])
