"""The corpus builder on small made sources."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leadline.errors import ConfigError, DataError
from leadline.tokenizer import Tokenizer, train_bpe
from leadline.train.corpus import CorpusRecipe, SourceSpec, build_corpus, clean_text, load_recipe
from leadline.train.corpus.clean import clean_markdown
from leadline.train.corpus.parts import Part, encode_source
from leadline.train.corpus.recipe import check_licence

STORIES = [
    f"The {animal} lived in {place}. Every day it went out to look for {food}."
    for animal in ("fox", "owl", "bear", "hare", "wolf", "crow", "toad", "mole")
    for place in ("a wood", "an old barn", "the hills", "a valley", "the garden")
    for food in ("nuts", "berries", "fresh water")
]
CHATS = [[("user", f"What is {n} and {n}?"), ("assistant", f"That is {n + n}.")] for n in range(40)]


def write_lines(path: Path, records: Sequence[Mapping[str, object]]) -> None:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")


def chat_record(turns: list[tuple[str, str]]) -> dict[str, object]:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_bpe(STORIES, 400, folder)
    return folder


@pytest.fixture
def recipe(tmp_path: Path, tokenizer_folder: Path) -> CorpusRecipe:
    write_lines(tmp_path / "stories.jsonl", [{"text": text} for text in STORIES])
    write_lines(tmp_path / "chats.jsonl", [chat_record(turns) for turns in CHATS])
    return CorpusRecipe(
        tokenizer=str(tokenizer_folder),
        output="out",
        sources=(
            SourceSpec(name="stories", path="stories.jsonl", licence="CC-BY-4.0"),
            SourceSpec(name="chats", path="chats.jsonl", licence="MIT", repeat=2),
        ),
        valid_permille=100,
        folder=str(tmp_path),
    )


def build(recipe: CorpusRecipe) -> dict[str, bytes]:
    """The bytes of every file of a build but its parts."""
    build_corpus(recipe, show_progress=False)
    return {path.name: path.read_bytes() for path in recipe.locate(recipe.output).iterdir() if path.is_file()}


def documents(recipe: CorpusRecipe, split: str) -> list[list[int]]:
    folder = recipe.locate(recipe.output)
    ids, starts = np.fromfile(folder / f"{split}.bin", dtype="<u2"), np.load(folder / f"{split}.idx.npy")
    assert starts[0] == 0
    assert starts[-1] == len(ids)
    return [ids[starts[at] : starts[at + 1]].tolist() for at in range(len(starts) - 1)]


def with_sources(recipe: CorpusRecipe, *sources: SourceSpec) -> CorpusRecipe:
    return CorpusRecipe(**{**vars(recipe), "sources": sources})


def test_shards_hold_whole_documents(recipe: CorpusRecipe) -> None:
    build(recipe)
    tokenizer = Tokenizer.from_folder(Path(recipe.tokenizer))
    found = documents(recipe, "train") + documents(recipe, "valid")
    assert all(ids[0] == tokenizer.bos_id and ids[-1] == tokenizer.eos_id for ids in found)
    assert {tokenizer.decode(ids) for ids in found} >= set(STORIES)


def test_a_chat_is_what_the_tokenizer_renders(recipe: CorpusRecipe) -> None:
    build(recipe)
    tokenizer = Tokenizer.from_folder(Path(recipe.tokenizer))
    messages = [{"role": role, "content": content} for role, content in CHATS[3]]
    rendered = list(tokenizer.render(messages, add_generation_prompt=False))
    assert rendered in documents(recipe, "train") + documents(recipe, "valid")


def test_the_same_input_gives_the_same_bytes(recipe: CorpusRecipe) -> None:
    first = build(recipe)
    shutil.rmtree(recipe.locate(recipe.output))
    assert build(recipe) == first


def test_the_manifest_counts_what_is_there(recipe: CorpusRecipe) -> None:
    build(recipe)
    manifest = json.loads((recipe.locate(recipe.output) / "manifest.json").read_text(encoding="utf-8"))
    train, valid = documents(recipe, "train"), documents(recipe, "valid")
    assert manifest["splits"]["train"]["documents"] == len(train)
    assert manifest["splits"]["valid"]["tokens"] == sum(map(len, valid))
    tokenizer = Tokenizer.from_folder(Path(recipe.tokenizer))
    text_bytes = sum(len(tokenizer.decode(ids).encode()) for ids in valid)
    assert manifest["splits"]["valid"]["bytes"] == text_bytes
    assert [source["licence"] for source in manifest["sources"]] == ["CC-BY-4.0", "MIT"]
    assert manifest["sources"][0]["documents"] == len(STORIES)


def test_repeat_copies_train_and_never_valid(recipe: CorpusRecipe) -> None:
    build(recipe)
    once = [tuple(ids) for ids in documents(recipe, "train")]
    held_out = [tuple(ids) for ids in documents(recipe, "valid")]
    chats = [ids for ids in once if once.count(ids) > 1]
    assert chats
    assert all(once.count(ids) == 2 for ids in chats)
    assert len(set(held_out)) == len(held_out)
    assert not set(held_out) & set(once)


def test_equal_documents_are_kept_once_across_sources(recipe: CorpusRecipe, tmp_path: Path) -> None:
    write_lines(
        tmp_path / "again.jsonl",
        [{"text": f"  {text}\r\n"} for text in STORIES] + [{"text": "One new story of a small boat."}],
    )
    more = with_sources(recipe, *recipe.sources, SourceSpec(name="again", path="again.jsonl", licence="MIT"))
    manifest = build_corpus(more, show_progress=False)
    assert manifest["sources"][2]["documents"] == 1


def test_the_split_of_a_document_does_not_depend_on_the_others(recipe: CorpusRecipe, tmp_path: Path) -> None:
    build(recipe)
    before = {tuple(ids) for ids in documents(recipe, "valid")}
    write_lines(tmp_path / "stories.jsonl", [{"text": text} for text in STORIES[::2]])
    build(recipe)
    after = {tuple(ids) for ids in documents(recipe, "valid")}
    assert after <= before


@pytest.mark.parametrize(
    "licence", ["", "CC-BY-NC-4.0", "CC-BY-ND-4.0", "unknown", "MIT AND proprietary", "CC-BY", "cc-by-nc"]
)
def test_a_source_without_an_allowed_licence_is_refused(recipe: CorpusRecipe, licence: str) -> None:
    bad = with_sources(recipe, SourceSpec(name="stories", path="stories.jsonl", licence=licence))
    with pytest.raises(DataError, match=r"source stories: .*licence"):
        build_corpus(bad, show_progress=False)


@pytest.mark.parametrize(
    "licence",
    ["CC0-1.0", "CC-BY-SA-3.0", "CC-BY-2.0-FR", "public-domain", "Apache-2.0", "BSD-3-Clause", "MIT AND CC-BY-4.0"],
)
def test_open_licences_pass(licence: str) -> None:
    check_licence(SourceSpec(name="x", path="x", licence=licence))


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (b'{"text": "cut of', "broken JSON"),
        (b'{"title": "no text"}', 'no text under "text"'),
        (b'["a", "list"]', 'no text under "text"'),
        (b'{"text": 3}', 'no text under "text"'),
        (b'{"messages": []}', "messages"),
        (b'{"messages": [{"role": "user", "content": "alone"}]}', "does not end with an answer"),
        (b'{"messages": [{"role": "robot", "content": "x"}]}', "roles"),
        (b'{"text": "\xff\xfe"}', "not UTF-8"),
    ],
)
def test_a_broken_line_is_named(recipe: CorpusRecipe, tmp_path: Path, line: bytes, complaint: str) -> None:
    with (tmp_path / "stories.jsonl").open("ab") as file:
        file.write(b"\n" + line + b"\n")
    with pytest.raises(DataError, match=rf"stories\.jsonl, line {len(STORIES) + 2}: ") as caught:
        build_corpus(recipe, show_progress=False)
    assert complaint in str(caught.value)


def test_a_line_may_hold_a_line_separator(recipe: CorpusRecipe, tmp_path: Path) -> None:
    write_lines(tmp_path / "stories.jsonl", [{"text": "One line of a tale.\u2028And another line of it."}])
    manifest = build_corpus(recipe, show_progress=False)
    assert manifest["sources"][0]["documents"] == 1


def test_a_source_left_empty_is_an_error(recipe: CorpusRecipe, tmp_path: Path) -> None:
    write_lines(tmp_path / "stories.jsonl", [{"text": "short"}, {"text": "%$ #@ ^& *( +_ {} |: <> ~` %$ #@"}])
    with pytest.raises(DataError, match="no document is left"):
        build_corpus(recipe, show_progress=False)


def test_a_missing_file_or_tokenizer_is_an_error(recipe: CorpusRecipe) -> None:
    with pytest.raises(DataError, match=r"source gone: no jsonl file at .*gone\.jsonl"):
        build_corpus(
            with_sources(recipe, SourceSpec(name="gone", path="gone.jsonl", licence="MIT")), show_progress=False
        )
    without = CorpusRecipe(**{**vars(recipe), "tokenizer": "nowhere"})
    with pytest.raises(DataError, match="no tokenizer there"):
        build_corpus(without, show_progress=False)


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


@pytest.mark.parametrize("crash_at", range(0, 23, 2))
def test_a_killed_build_goes_on_and_ends_the_same(
    recipe: CorpusRecipe, monkeypatch: pytest.MonkeyPatch, crash_at: int
) -> None:
    whole = build(recipe)
    shutil.rmtree(recipe.locate(recipe.output))
    renames = 0
    replace = Path.replace

    def failing_replace(self: Path, target: Path) -> Path:
        nonlocal renames
        renames += 1
        if renames > crash_at:
            raise Killed
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", failing_replace)
        with pytest.raises(Killed):
            build_corpus(recipe, show_progress=False)
    assert not (recipe.locate(recipe.output) / "manifest.json").exists()
    resumed = build(recipe)
    assert {name: resumed[name] for name in whole} == whole


def test_finished_sources_are_not_encoded_again(
    recipe: CorpusRecipe, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    encoded: list[str] = []

    def counting(source: SourceSpec, *rest: object) -> Part:
        encoded.append(source.name)
        return encode_source(source, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr("leadline.train.corpus.build.encode_source", counting)
    build(recipe)
    build(recipe)
    assert encoded == ["stories", "chats"]
    write_lines(tmp_path / "chats.jsonl", [chat_record(turns) for turns in CHATS[1:]])
    build(recipe)
    assert encoded == ["stories", "chats", "chats"]


def test_text_and_markdown_folders(recipe: CorpusRecipe, tmp_path: Path) -> None:
    (tmp_path / "books").mkdir()
    (tmp_path / "books" / "one.md").write_text(
        "# Title\n\nA **bold** word, a [link](http://x.y) and an _old_ house.", encoding="utf-8"
    )
    (tmp_path / "books" / "two.txt").write_text("Not read as Markdown, and not of this source.", encoding="utf-8")
    mixed = with_sources(recipe, SourceSpec(name="books", path="books", licence="public-domain", format="markdown"))
    mixed = CorpusRecipe(**{**vars(mixed), "valid_permille": 0})
    build_corpus(mixed, show_progress=False)
    (ids,) = documents(mixed, "train")
    text = Tokenizer.from_folder(Path(recipe.tokenizer)).decode(ids)
    assert text == "Title\n\nA bold word, a link and an old house."


def test_the_pages_of_a_digitised_book_are_cut() -> None:
    book = "Produced by nobody\n*** START OF THE BOOK ***\nA tale.\n*** END OF THE BOOK ***\nA licence."
    assert clean_text(clean_markdown(book)) == "A tale."


@given(st.text())
def test_clean_text_is_stable(text: str) -> None:
    once = clean_text(text)
    assert clean_text(once) == once
    assert "\n\n\n" not in once
    assert once == once.strip()


def test_a_recipe_file(tmp_path: Path) -> None:
    path = tmp_path / "corpus.toml"
    path.write_text(
        'tokenizer = "t"\noutput = "o"\n[[source]]\nname = "a"\npath = "a.jsonl"\nlicence = "MIT"\n', encoding="utf-8"
    )
    recipe = load_recipe(path)
    assert recipe.sources == (SourceSpec(name="a", path="a.jsonl", licence="MIT"),)
    assert recipe.locate("a.jsonl") == tmp_path / "a.jsonl"
    assert load_recipe(path, folder=tmp_path / "data").locate("a.jsonl") == tmp_path / "data" / "a.jsonl"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("tokenizer = 't'\noutput = 'o'\n", "names no"),
        ("tokenizer = 't'\noutput = 'o'\nsplit = 3\n", "unknown key 'split'"),
        ("output = 'o'\n", "tokenizer is required"),
        ("tokenizer = 't'\noutput = 'o'\nmin_chars = 'x'\n", "min_chars must be int"),
        (
            "tokenizer = 't'\noutput = 'o'\nvalid_permille = 1000\n[[source]]\nname='a'\npath='a'\nlicence='MIT'\n",
            "valid_permille",
        ),
        ("tokenizer = 't'\noutput = 'o'\n[[source]]\nname='a'\nlicence='MIT'\n", "path is required"),
        (
            "tokenizer = 't'\noutput = 'o'\n[[source]]\nname='a'\npath='a'\nlicence='MIT'\nformat='csv'\n",
            "format 'csv'",
        ),
        ("tokenizer = 't'\noutput = 'o'\n[[source]]\nname='a b'\npath='a'\nlicence='MIT'\n", "not one word"),
        ("tokenizer = [", "corpus.toml"),
    ],
)
def test_a_wrong_recipe_is_one_line(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "corpus.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_recipe(path)
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value).strip()
