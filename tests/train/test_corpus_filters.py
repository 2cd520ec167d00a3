"""What the corpus keeps and in which proportions: near duplicates, evaluation sets, languages, mix, other formats."""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import table
from pyarrow.parquet import write_table

from leadline.errors import ConfigError, ConnectionFailed, DataError
from leadline.tokenizer import Tokenizer, train_bpe
from leadline.train.corpus import CorpusRecipe, SourceSpec, build_corpus, load_recipe
from leadline.train.corpus import build as building
from leadline.train.corpus import read as reading
from leadline.train.corpus.clean import repeated_lines
from leadline.train.corpus.duplicates import NearDuplicates, shingles, signature
from leadline.train.corpus.language import language_of
from leadline.train.corpus.overlap import EvaluationSets, pieces
from leadline.train.corpus.parts import REASONS
from leadline.train.data import PackedCorpus

WORDS = [f"word{n}" for n in range(400)]
ENGLISH = "The boat was in the harbour and the men of the town had come to see it, for it was new."
GERMAN = "Das Boot lag im Hafen und die Leute aus der Stadt waren gekommen, um es zu sehen, denn es war neu. " * 3
CHINESE = "船停在港口里，城里的人都来看它，因为它是新的。"
JAPANESE = "船は港にあり、町の人々はそれを見に来ました。新しかったからです。"


def made_text(seed: int, words: int = 120) -> str:
    draw = random.Random(seed)
    return " ".join(draw.choice(WORDS) for _ in range(words))


def changed(text: str, every: int) -> str:
    return " ".join("other" if at % every == every - 1 else word for at, word in enumerate(text.split(" ")))


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_bpe([ENGLISH, CHINESE], 300, folder, min_frequency=1)
    return folder


@pytest.fixture
def recipe(tmp_path: Path, tokenizer_folder: Path) -> CorpusRecipe:
    return CorpusRecipe(
        tokenizer=str(tokenizer_folder),
        output="out",
        sources=(SourceSpec(name="texts", path="texts.jsonl", licence="MIT"),),
        valid_permille=0,
        folder=str(tmp_path),
    )


def write_texts(recipe: CorpusRecipe, *texts: str, name: str = "texts.jsonl") -> None:
    lines = (json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
    recipe.locate(name).write_text("".join(lines), encoding="utf-8")


def build(recipe: CorpusRecipe, **changes: Any) -> dict[str, Any]:
    return build_corpus(dataclasses.replace(recipe, **changes), show_progress=False)


def texts_of(recipe: CorpusRecipe) -> list[str]:
    """The training documents."""
    corpus = PackedCorpus(recipe.locate(recipe.output), "train", 1, rows=1)
    tokenizer = Tokenizer.from_folder(Path(recipe.tokenizer))
    spans = zip(corpus.starts, corpus.starts[1:], strict=False)
    return [tokenizer.decode(corpus.tokens[a + 1 : b - 1].tolist()) for a, b in spans]


def left_out(manifest: dict[str, Any], source: int = 0) -> dict[str, int]:
    return {reason: count for reason, count in manifest["sources"][source]["left_out"].items() if count}


# ---- near duplicates


@given(st.integers(0, 50), st.sampled_from([2, 5, 20, 60]))
def test_signatures_agree_as_often_as_texts_are_similar(seed: int, every: int) -> None:
    first, second = made_text(seed), changed(made_text(seed), every)
    a, b = (set(shingles(text).tolist()) for text in (first, second))
    jaccard = len(a & b) / len(a | b)
    assert float((signature(first) == signature(second)).mean()) == pytest.approx(jaccard, abs=0.17)


def test_what_lies_between_letters_does_not_count() -> None:
    assert np.array_equal(signature("Seven fathoms, and sand!"), signature("seven  FATHOMS and\nsand"))
    assert len(signature("")) == 128


def test_the_bands_find_what_is_similar_enough() -> None:
    near = NearDuplicates(0.8)
    for seed in range(60):
        near.add(signature(made_text(seed)))
    assert all(near.has(signature(changed(made_text(seed), 60))) for seed in range(60))
    assert not any(near.has(signature(changed(made_text(seed), 3))) for seed in range(60))
    assert not any(near.has(signature(made_text(seed))) for seed in range(100, 130))


def test_near_duplicates_are_left_out_across_sources_and_restarts(recipe: CorpusRecipe) -> None:
    write_texts(recipe, *map(made_text, range(5)))
    write_texts(recipe, changed(made_text(0), 60), changed(made_text(1), 3), made_text(2), name="more.jsonl")
    both = dataclasses.replace(
        recipe, sources=(*recipe.sources, SourceSpec(name="more", path="more.jsonl", licence="MIT"))
    )
    manifest = build(both, near_duplicates=0.8)
    assert left_out(manifest, 1) == {"duplicate": 1, "near_duplicate": 1}
    first = recipe.locate("out/train.bin").read_bytes()
    shutil.rmtree(recipe.locate("out/parts/001-more"))
    assert build(both, near_duplicates=0.8) == manifest
    assert recipe.locate("out/train.bin").read_bytes() == first
    assert left_out(build(both), 1) == {"duplicate": 1}


# ---- evaluation sets


def test_a_document_with_a_piece_of_an_evaluation_set_is_left_out(recipe: CorpusRecipe) -> None:
    question = "How many fathoms does the lead line show when the boat lies three miles off the northern light?"
    recipe.locate("eval").mkdir()
    (recipe.locate("eval") / "sums.jsonl").write_text(json.dumps({"q": {"text": [question]}, "id": 3}) + "\n")
    inside = "Before. " + question.upper().replace(" ", "  ") + " And after it a good deal more is said."
    outside = "How many fathoms does the lead line show? Nobody knows, and the northern light is out."
    write_texts(recipe, inside, outside, ENGLISH)
    manifest = build(recipe, decontaminate=("eval/*.jsonl",))
    assert left_out(manifest) == {"evaluation": 1}
    assert texts_of(recipe) != []
    assert not any("NORTHERN" in text for text in texts_of(recipe))
    assert left_out(build(recipe, decontaminate=("eval",), overlap_words=5)) == {"evaluation": 2}


def test_chinese_is_compared_by_characters() -> None:
    assert len(pieces(CHINESE, 13)) == len([ch for ch in CHINESE if ch.isalnum()]) - 12
    assert len(pieces("one two three", 13)) == 0


def test_an_evaluation_file_may_be_any_text_and_must_be_readable(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(made_text(1))
    (tmp_path / "b.json").write_text(json.dumps([[made_text(2)]]))
    sets = EvaluationSets([tmp_path / "a.txt", tmp_path / "b.json"], 13)
    assert sets.meets("so " + made_text(1))
    assert sets.meets(made_text(2) + " so")
    assert not sets.meets(made_text(3))
    (tmp_path / "c.jsonl").write_text('{"a": "b"}\n{"a": \n')
    with pytest.raises(DataError, match=r"c\.jsonl, line 2: broken JSON"):
        EvaluationSets([tmp_path / "c.jsonl"], 13)


def test_an_evaluation_set_that_is_not_there_is_an_error(recipe: CorpusRecipe) -> None:
    write_texts(recipe, ENGLISH)
    with pytest.raises(DataError, match=r"decontaminate: no file at .*nowhere"):
        build(recipe, decontaminate=("nowhere/*.jsonl",))


# ---- quality and language


@pytest.mark.parametrize(
    ("text", "language"),
    [
        (ENGLISH, "en"),
        ("Lead: a metal.", "en"),
        (GERMAN, "other"),
        (CHINESE, "zh"),
        (f"{CHINESE} DeepSeek", "zh"),
        (JAPANESE, "other"),
        ("Лодка стояла в гавани", "other"),
        ("1234", "other"),
    ],
)
def test_languages_are_told_apart(text: str, language: str) -> None:
    assert language_of(text) == language


def test_languages_are_kept_or_left_out(recipe: CorpusRecipe) -> None:
    write_texts(recipe, ENGLISH, CHINESE, GERMAN)
    manifest = build(recipe, languages=("en", "zh"))
    assert left_out(manifest) == {"language": 1}
    assert manifest["splits"]["train"]["languages"]["other"] == 0
    assert sorted(texts_of(recipe)) == sorted([ENGLISH, CHINESE])


def test_a_document_of_repeated_lines_is_left_out(recipe: CorpusRecipe) -> None:
    menu = "Home\nAbout us\nContact\n" * 10
    assert repeated_lines(menu) == pytest.approx(0.9)
    assert repeated_lines(ENGLISH) == 0.0
    write_texts(recipe, ENGLISH, menu)
    assert left_out(build(recipe, max_repeated_lines=0.5)) == {"repeated": 1}
    assert left_out(build(recipe)) == {}


def test_the_reasons_are_those_that_are_counted(recipe: CorpusRecipe) -> None:
    write_texts(recipe, ENGLISH, "short", "%$ #@ ^& *( +_ {} |: <> ~` %$ #@", ENGLISH)
    manifest = build(recipe)
    assert tuple(manifest["sources"][0]["left_out"]) == REASONS
    assert left_out(manifest) == {"short": 1, "odd": 1, "duplicate": 1}


# ---- weights and mix


def test_a_source_is_there_as_often_as_its_weight_says(recipe: CorpusRecipe) -> None:
    write_texts(recipe, *(f"{ENGLISH} Boat number {n}." for n in range(400)))
    for weight in (0.25, 1, 2.5):
        source = dataclasses.replace(recipe.sources[0], repeat=weight)
        manifest = build(recipe, sources=(source,))
        assert manifest["splits"]["train"]["documents"] == pytest.approx(400 * weight, rel=0.15)
        counts = {text: texts_of(recipe).count(text) for text in set(texts_of(recipe))}
        assert set(counts.values()) <= {int(weight), int(weight) + 1} - {0}


def test_the_mix_is_of_tokens(recipe: CorpusRecipe) -> None:
    english = [f"{ENGLISH} Boat number {n}." for n in range(600)]
    chinese = [f"{CHINESE}{n}" for n in range(300)]
    write_texts(recipe, *english, *chinese, *(f"{GERMAN} {n}" for n in range(9)))
    manifest = build(recipe, mix={"en": 0.4, "zh": 0.6})
    tokens = manifest["splits"]["train"]["languages"]
    assert tokens["other"] == 0
    assert tokens["en"] / (tokens["en"] + tokens["zh"]) == pytest.approx(0.4, abs=0.05)
    kept = texts_of(recipe)
    assert sum(text in set(chinese) for text in kept) == 300 or sum(text in set(english) for text in kept) == 600
    again = build(recipe, mix={"en": 0.4, "zh": 0.6})
    assert again == manifest


def test_a_document_keeps_its_place_when_others_come(recipe: CorpusRecipe) -> None:
    texts = [f"{ENGLISH} Boat number {n}." for n in range(200)]
    half = dataclasses.replace(recipe, sources=(dataclasses.replace(recipe.sources[0], repeat=0.5),))
    write_texts(recipe, *texts[:100])
    build(half)
    before = texts_of(recipe)
    write_texts(recipe, *texts)
    build(half)
    after = texts_of(recipe)
    assert [text for text in after if text in set(before)] == before
    assert {text for text in after if text in set(texts[:100])} == set(before)


# ---- formats


def write_parquet(path: Path, columns: dict[str, list[Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_table(table(columns), path)


def test_parquet_rows_are_documents(recipe: CorpusRecipe, tmp_path: Path) -> None:
    texts = [f"{ENGLISH} Boat number {n}." for n in range(30)]
    write_parquet(tmp_path / "tables/a.parquet", {"body": texts[:20], "id": list(range(20))})
    write_parquet(tmp_path / "tables/b.parquet", {"body": texts[20:], "id": list(range(10))})
    source = SourceSpec(name="tables", path="tables", licence="MIT", format="parquet", field="body")
    manifest = build(recipe, sources=(source,))
    assert manifest["sources"][0]["documents"] == 30
    assert sorted(texts_of(recipe)) == sorted(texts)


def test_parquet_chats_and_broken_files(recipe: CorpusRecipe, tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "How deep is it here?"}, {"role": "assistant", "content": "Seven fathoms."}]
    write_parquet(tmp_path / "chats.parquet", {"messages": [chat]})
    source = SourceSpec(name="chats", path="chats.parquet", licence="MIT", format="parquet")
    assert build(recipe, sources=(source,))["sources"][0]["documents"] == 1
    write_parquet(tmp_path / "chats.parquet", {"text": ["one and two and three", None]})
    with pytest.raises(DataError, match=r'chats\.parquet, row 2: no text under "text"'):
        build(recipe, sources=(source,))
    (tmp_path / "chats.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(DataError, match=r"cannot read .*chats\.parquet"):
        build(recipe, sources=(source,))


def test_a_dataset_of_the_hub(recipe: CorpusRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    write_parquet(tmp_path / "cache/data/train-0.parquet", {"text": [ENGLISH]})
    write_parquet(tmp_path / "cache/data/test-0.parquet", {"text": [CHINESE]})
    asked: list[Any] = []

    def snapshot_download(name: str, **options: Any) -> str:
        asked.append((name, options))
        return str(tmp_path / "cache")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    source = SourceSpec(
        name="hub", path="hub:org/texts", licence="MIT", format="parquet", files="data/train-*.parquet", revision="v1"
    )
    manifest = build(recipe, sources=(source,))
    assert texts_of(recipe) == [ENGLISH]
    assert manifest["sources"][0]["origin"] == "hub:org/texts"
    assert asked[0] == (
        "org/texts",
        {"repo_type": "dataset", "revision": "v1", "allow_patterns": ["data/train-*.parquet"]},
    )


def test_a_hub_out_of_reach_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def refuse(name: str, **options: Any) -> str:
        raise OSError("no route to host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(ConnectionFailed, match="source x: cannot get org/x from the hub: no route to host"):
        reading.download(SourceSpec(name="x", path="hub:org/x", licence="MIT"))


def test_a_large_vocabulary_has_wider_ids(
    recipe: CorpusRecipe, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As DeepSeek-V2's own 100,002 tokens need."""
    write_texts(recipe, ENGLISH, CHINESE)
    build(recipe)
    narrow = texts_of(recipe)
    monkeypatch.setattr(building, "token_type", lambda tokenizer: np.dtype("<u4"))
    manifest = build(recipe)
    assert manifest["dtype"] == "<u4"
    assert recipe.locate("out/train.bin").stat().st_size == 4 * manifest["splits"]["train"]["tokens"]
    assert texts_of(recipe) == narrow


# ---- recipes


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("max_odd = 1.5", "max_odd is a share"),
        ("near_duplicates = 'yes'", "near_duplicates must be float"),
        ("overlap_words = 0", "overlap_words must be at least 1"),
        ("languages = ['en', 'fr']", "language 'fr' is not one of en, zh, other"),
        ("languages = 'en'", "languages must be"),
        ("mix = { en = 0 }", "a share must be more than 0"),
        ("mix = { en = 'half' }", "mix must be a table of shares"),
        ("decontaminate = [3]", "decontaminate must be"),
    ],
)
def test_a_wrong_filter_is_one_line(tmp_path: Path, line: str, complaint: str) -> None:
    source = "[[source]]\nname = 'a'\npath = 'a'\nlicence = 'MIT'\n"
    (tmp_path / "corpus.toml").write_text(f"tokenizer = 't'\noutput = 'o'\n{line}\n{source}")
    with pytest.raises(ConfigError) as caught:
        load_recipe(tmp_path / "corpus.toml")
    assert complaint in str(caught.value)


def test_a_recipe_with_everything(tmp_path: Path) -> None:
    (tmp_path / "corpus.toml").write_text(
        "tokenizer = 't'\noutput = 'o'\nnear_duplicates = 0.8\nmax_repeated_lines = 0.3\nlanguages = ['en', 'zh']\n"
        "decontaminate = ['eval/*.jsonl']\nmix = { en = 0.47, zh = 0.53 }\n"
        "[[source]]\nname = 'a'\npath = 'hub:o/a'\nlicence = 'MIT'\nformat = 'parquet'\nrepeat = 0.5\n"
    )
    recipe = load_recipe(tmp_path / "corpus.toml")
    assert recipe.mix == {"en": 0.47, "zh": 0.53}
    assert recipe.decontaminate == ("eval/*.jsonl",)
    assert recipe.sources[0].repeat == 0.5
