"""The Kneser-Ney baseline."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leadline.errors import DataError
from leadline.train.ngram import distinct_documents, ngram_baseline, pack, probabilities, total_bits, train_ngram

VOCAB, BOS, EOS = 8, 0, 1
Documents = list[list[int]]
bodies = st.lists(st.lists(st.integers(2, VOCAB - 1), max_size=12), min_size=1, max_size=8)


def shard(bodies: Documents) -> tuple[np.ndarray, np.ndarray]:
    wrapped = [[BOS, *body, EOS] for body in bodies]
    starts = np.cumsum([0, *map(len, wrapped)]).astype(np.int64)
    return np.array([token for document in wrapped for token in document], dtype=np.uint16), starts


def after(context: list[int]) -> np.ndarray:
    """The packed n-grams of every token after a context."""
    key = 0
    for token in context:
        key = key << 3 | token
    return np.array([key << 3 | token for token in range(VOCAB)], dtype=np.uint64)


@settings(deadline=None, max_examples=50)
@given(bodies, st.integers(1, 4), st.data())
def test_every_context_sums_to_one(bodies: Documents, order: int, data: st.DataObject) -> None:
    model = train_ngram(*shard(bodies), order=order, vocab_size=VOCAB)
    context = data.draw(st.lists(st.integers(0, VOCAB - 1), min_size=order - 1, max_size=order - 1))
    assert probabilities(model, after(context)).sum() == pytest.approx(1.0)


def test_an_ngram_stays_in_its_document() -> None:
    ids, starts = shard([[5], [6, 7]])
    assert pack(ids, starts, 3, 3).tolist() == [0o005, 0o051, 0o006, 0o067, 0o671]


def test_it_learns_what_follows_what() -> None:
    model = train_ngram(*shard([[2, 3, 4, 5]] * 3 + [[3, 4, 5, 2]]), order=3, vocab_size=VOCAB)
    assert probabilities(model, after([3, 4])).argmax() == 5
    assert probabilities(model, after([4, 5]))[EOS] > 0.3


def test_seen_text_costs_less_than_unseen() -> None:
    seen = shard([[2, 3, 4, 5, 6, 7, 2, 3]] * 4)
    model = train_ngram(*seen, order=3, vocab_size=VOCAB)
    ids, starts = seen
    uniform = np.log2(VOCAB) * (len(ids) - (len(starts) - 1))
    assert total_bits(model, *seen) < 0.5 * uniform
    assert total_bits(model, *shard([[7, 5, 3, 2, 6, 4, 2, 7]] * 4)) > total_bits(model, *seen)


def test_copies_count_once() -> None:
    ids, starts = distinct_documents(*shard([[2, 3], [4], [2, 3]]))
    assert (ids.tolist(), starts.tolist()) == ([BOS, 2, 3, EOS, BOS, 4, EOS], [0, 4, 7])


def test_rare_tokens_are_one_in_the_oldest_place_where_a_key_is_a_bit_short() -> None:
    ids, starts = shard([[8000, 2, 3, 4, 5], [5000, 2, 3, 4, 6], [40, 2, 3, 4, 7]])
    keys = pack(ids, starts, 5, 13)
    oldest = (keys >> np.uint64(52)).tolist()
    assert sorted(set(oldest)) == [BOS, 2, 40, 4095]
    model = train_ngram(ids, starts, order=5, vocab_size=8192)

    def predicted(context: list[int]) -> np.ndarray:
        grams = np.arange(8192, dtype=np.uint64)
        for back, token in enumerate(reversed(context), 1):
            grams |= np.uint64(token << 13 * back)
        return probabilities(model, grams)

    rare, common = predicted([4095, 2, 3, 4]), predicted([40, 2, 3, 4])
    assert rare.sum() == pytest.approx(1.0)
    assert common.sum() == pytest.approx(1.0)
    assert rare[5] == pytest.approx(rare[6])
    assert common.argmax() == 7


def test_a_key_must_fit() -> None:
    with pytest.raises(DataError, match="lower order"):
        train_ngram(*shard([[2]]), order=5, vocab_size=1 << 15)


def test_bits_per_byte_of_a_corpus_folder(tmp_path: Path) -> None:
    for split in ("train", "valid"):
        ids, starts = shard([[2, 3, 4], [3, 4, 5]])
        ids.astype("<u2").tofile(tmp_path / f"{split}.bin")
        np.save(tmp_path / f"{split}.idx.npy", starts)
    manifest = json.loads('{"tokenizer": {"vocab_size": 8}, "splits": {"valid": {"bytes": 12}}}')
    assert 0 < ngram_baseline(tmp_path, manifest, order=3) < 8 * 3 / 12
