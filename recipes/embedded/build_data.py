"""Make the embedded model's data: clean documents for pre-training, conversations for fine-tuning.

    python recipes/embedded/build_data.py documents RAW OUT     one JSONL file a source, for corpus.toml
    python recipes/embedded/build_data.py chats RAW OUT         train.jsonl and valid.jsonl of messages

RAW is the folder that holds the raw sources (see leadline/embedded/ATTRIBUTION.md). The same input gives the same bytes.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import sources
from sources import Document


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
    }


def documents(raw: Path, out: Path) -> None:
    words = sources.count_words(raw)
    for name, found in document_sources(raw, words).items():
        print(f"{name:20s} {write_jsonl(out / f'{name}.jsonl', found):7,d} documents")


def main(arguments: list[str]) -> None:
    if len(arguments) != 3 or arguments[0] != "documents":
        sys.exit(__doc__)
    documents(Path(arguments[1]), Path(arguments[2]))


if __name__ == "__main__":
    main(sys.argv[1:])
