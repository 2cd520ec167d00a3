"""Packing: nothing twice, nothing past a document's end, the same batch whenever it is made."""

from __future__ import annotations

import itertools
import json
import shutil
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leadline.errors import ConfigError, DataError
from leadline.train.data import Batch, PackedCorpus, check_tokenizer, held_out
from tests.train.runs import write_corpus

Documents = list[list[int]]


def unique_documents(lengths: list[int]) -> Documents:
    """Every token occurs once in the whole corpus, so that a token says where it is from."""
    starts = [0, *itertools.accumulate(lengths)]
    return [list(range(a, b)) for a, b in itertools.pairwise(starts)]


def pairs(batch: Batch) -> list[tuple[int, int, float]]:
    return list(zip(batch.tokens_T.tolist(), batch.targets_T.tolist(), batch.weights_T.tolist(), strict=True))


@pytest.fixture
def folder(tmp_path: Path, tokenizer: Path) -> Path:
    documents = unique_documents([5, 1, 9, 30, 2, 17])
    return write_corpus(tmp_path / "corpus", tokenizer, train=documents, valid=unique_documents([4, 20]))


@settings(max_examples=60)
@given(lengths=st.lists(st.integers(1, 20), min_size=1, max_size=12), row=st.integers(1, 9), seed=st.integers(0, 9))
def test_an_epoch_holds_every_token_once_but_a_last_part_of_a_row(lengths: list[int], row: int, seed: int) -> None:
    total = sum(lengths)
    if total < row:
        return
    documents = unique_documents(lengths)
    ends = {document[-1] for document in documents}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "tokenizer.json").write_text("{}")
        data = PackedCorpus(write_corpus(folder, folder, train=documents), "train", row, rows=1, seed=seed)
        for epoch in (0, 1):
            batches = [data.batch(epoch * data.rows_per_epoch + i) for i in range(data.rows_per_epoch)]
            seen = Counter(token for batch in batches for token in batch.tokens_T.tolist())
            assert set(seen.values()) == {1}
            assert total - row < len(seen) <= total
            for token, target, weight in itertools.chain.from_iterable(map(pairs, batches)):
                assert weight == (0.0 if token in ends else 1.0)
                assert token in ends or target == token + 1
            for batch in batches:
                assert batch.rows == (0, row)
                spans = list(itertools.pairwise(batch.documents))
                assert spans[0][0] == 0
                assert spans[-1][1] == row
                for a, b in spans:  # what attends to each other is one run of one document
                    part = batch.tokens_T[a:b].tolist()
                    assert part == list(range(part[0], part[0] + len(part)))
                    assert not ends & set(part[:-1])


def test_a_batch_is_the_same_whenever_it_is_made(folder: Path) -> None:
    first, second = (PackedCorpus(folder, "train", 8, rows=2, seed=3) for _ in range(2))
    forwards = [first.batch(index) for index in range(20)]
    for index in (19, 3, 11, 0):
        again = second.batch(index)
        assert pairs(again) == pairs(forwards[index])
        assert (again.documents, again.rows) == (forwards[index].documents, forwards[index].rows)


def test_rows_are_those_of_smaller_batches(folder: Path) -> None:
    """One batch of four rows is four of one: the data does not depend on how a step is cut into passes."""
    ones, four = (PackedCorpus(folder, "train", 8, rows=rows, seed=3) for rows in (1, 4))
    assert pairs(four.batch(1)) == [pair for index in range(4, 8) for pair in pairs(ones.batch(index))]
    assert four.batch(1).rows == (0, 8, 16, 24, 32)


def test_epochs_and_seeds_have_orders_of_their_own(folder: Path) -> None:
    def epoch(seed: int, number: int) -> list[int]:
        data = PackedCorpus(folder, "train", 8, rows=1, seed=seed)
        rows = range(number * data.rows_per_epoch, (number + 1) * data.rows_per_epoch)
        return [token for index in rows for token in data.batch(index).tokens_T.tolist()]

    assert len({tuple(epoch(seed, number)) for seed in (0, 1) for number in (0, 1, 2)}) == 6


def test_the_last_token_of_a_document_is_not_trained_on(folder: Path) -> None:
    batch = PackedCorpus(folder, "train", 64, rows=1).batch(0)
    ends = [end - 1 for end in batch.documents[1:-1]]
    assert batch.weights_T[ends].tolist() == [0.0] * len(ends)
    assert batch.tokens_T.dtype == batch.targets_T.dtype == torch.int64


def test_a_document_that_ends_at_its_rows_end_is_not_trained_past_it(tmp_path: Path, tokenizer: Path) -> None:
    data = PackedCorpus(write_corpus(tmp_path / "c", tokenizer, train=unique_documents([4, 4])), "train", 4, rows=2)
    assert data.batch(0).weights_T.tolist() == [1.0, 1.0, 1.0, 0.0] * 2


def test_a_cut_document_is_trained_across_the_cut(tmp_path: Path, tokenizer: Path) -> None:
    data = PackedCorpus(write_corpus(tmp_path / "c", tokenizer, train=unique_documents([8])), "train", 4, rows=2)
    batch = data.batch(0)
    assert batch.documents == (0, 4, 8)
    assert pairs(batch)[3] == (3, 4, 1.0)


# ---- held-out text


def test_held_out_is_the_whole_split_in_its_order(folder: Path) -> None:
    batches, size = held_out(folder, "valid", sequence_length=8, limit=0)
    assert [token for batch in batches for token in batch.tokens_T.tolist()] == list(range(24))
    assert sum(float(batch.weights_T.sum()) for batch in batches) == 24 - 2
    assert batches[0].documents == (0, 4, 12, 20, 24)
    assert size == 24 * 3


def test_held_out_with_a_limit_counts_the_bytes_of_what_is_read(folder: Path) -> None:
    batches, size = held_out(folder, "valid", sequence_length=8, limit=4)
    assert [batch.tokens_T.tolist() for batch in batches] == [[0, 1, 2, 3]]
    assert size == 4 * 3


def test_a_held_out_split_shorter_than_a_row_will_do(folder: Path) -> None:
    batches, _ = held_out(folder, "valid", sequence_length=512, limit=0)
    assert len(batches) == 1


# ---- what a user gets wrong


def test_a_folder_that_is_no_corpus_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere is not a corpus folder: .*manifest.json"):
        PackedCorpus(tmp_path / "nowhere", "train", 8, rows=1)


def test_a_corpus_shorter_than_a_row_is_refused(folder: Path) -> None:
    with pytest.raises(DataError, match=r"train.bin holds 64 tokens, less than one row"):
        PackedCorpus(folder, "train", 65, rows=1)


def test_a_truncated_shard_is_refused(folder: Path) -> None:
    shard = folder / "train.bin"
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(DataError, match=r"train.bin holds 59 tokens, its manifest says 64"):
        PackedCorpus(folder, "train", 8, rows=1)


def _break_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text('{"splits": [')


def _drop_split(folder: Path) -> None:
    (folder / "manifest.json").write_text('{"splits": {}}')


def _list_for_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text("[]")


def _empty_shard(folder: Path) -> None:
    (folder / "train.bin").write_bytes(b"")


def _empty_index(folder: Path) -> None:
    (folder / "train.idx.npy").write_bytes(b"")


def _index_of_nothing(folder: Path) -> None:
    np.save(folder / "train.idx.npy", np.zeros(0, dtype=np.int64))


def _pickled_index(folder: Path) -> None:
    np.save(folder / "train.idx.npy", np.array([{}], dtype=object))


DAMAGE = [
    _break_manifest,
    _drop_split,
    _list_for_manifest,
    _empty_shard,
    _empty_index,
    _index_of_nothing,
    _pickled_index,
]


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda function: function.__name__.strip("_"))
def test_a_damaged_corpus_is_one_clear_line(folder: Path, damage: object) -> None:
    assert callable(damage)
    damage(folder)
    with pytest.raises(DataError, match="is not a corpus folder: "):
        PackedCorpus(folder, "train", 8, rows=1)


@pytest.mark.parametrize(
    "starts", [[0, 40, 30, 64], [3, 64], [0, 63]], ids=["backwards", "not from 0", "not to the end"]
)
def test_an_index_that_does_not_divide_the_shard_is_refused(folder: Path, starts: list[int]) -> None:
    np.save(folder / "train.idx.npy", np.array(starts))
    with pytest.raises(DataError, match=r"train.idx.npy does not divide the 64 tokens"):
        PackedCorpus(folder, "train", 8, rows=1)


def test_a_corpus_of_another_tokenizer_is_refused(folder: Path, tokenizer: Path, tmp_path: Path) -> None:
    check_tokenizer(folder, tokenizer)
    other = tmp_path / "other"
    shutil.copytree(tokenizer, other)
    (other / "tokenizer.json").write_text((other / "tokenizer.json").read_text() + " ")
    with pytest.raises(ConfigError, match=r"was made with another tokenizer than .*other"):
        check_tokenizer(folder, other)
    (folder / "manifest.json").write_text(json.dumps({"splits": {}}))
    with pytest.raises(DataError, match="is not a corpus folder"):
        check_tokenizer(folder, tokenizer)


def test_a_corpus_is_described(folder: Path) -> None:
    assert PackedCorpus(folder, "train", 8, rows=1).describe() == "64 tokens in 6 documents"
