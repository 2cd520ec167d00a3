"""Conversations for fine-tuning: loss on the answers and their EOS, each conversation once an epoch."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import pytest

from leadline.errors import DataError
from leadline.tokenizer import Tokenizer
from leadline.train.conversations import (
    Completion,
    Conversations,
    encode_completion,
    encode_conversation,
    read_conversations,
)
from tests.fixtures_tokenizer import fuzz_text
from tests.train.runs import write_chats

MULTI_TURN = [
    {"role": "system", "content": "You read the lead line."},
    {"role": "user", "content": "How deep?"},
    {"role": "assistant", "content": "Seven fathoms."},
    {"role": "user", "content": "And here?"},
    {"role": "assistant", "content": "Nine."},
]


@pytest.fixture(scope="module")
def reader(tokenizer: Path) -> Tokenizer:
    return Tokenizer.from_folder(tokenizer)


def trained_on(reader: Tokenizer, messages: list[dict[str, str]]) -> list[str]:
    """The runs of targets that carry loss, as text with control tokens."""
    _, targets, weights = encode_conversation(reader, messages)
    runs, last = list[list[int]](), False
    for target, weight in zip(targets.tolist(), weights.tolist(), strict=True):
        if weight and not last:
            runs.append([])
        if weight:
            runs[-1].append(target)
        last = bool(weight)
    return [reader.decode(run, skip_special_tokens=False) for run in runs]


def test_loss_is_on_the_answers_and_their_eos_alone(reader: Tokenizer) -> None:
    eos = reader.token_text(reader.eos_id)
    assert trained_on(reader, MULTI_TURN) == [f" Seven fathoms.{eos}", f" Nine.{eos}"]


def test_targets_are_the_next_tokens(reader: Tokenizer) -> None:
    tokens, targets, weights = encode_conversation(reader, MULTI_TURN)
    assert tokens.tolist() == list(reader.render(MULTI_TURN, add_generation_prompt=False))
    assert targets[:-1].tolist() == tokens[1:].tolist()
    assert weights[-1] == 0.0, "nothing follows the last EOS"


def test_the_eos_is_learned_although_pads_have_the_same_id(reader: Tokenizer) -> None:
    _, targets, weights = encode_conversation(reader, MULTI_TURN)
    assert weights[targets == reader.eos_id][:2].tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("messages", "answers"),
    [
        (MULTI_TURN[1:3], 1),
        ([MULTI_TURN[0], MULTI_TURN[2]], 1),
        ([{"role": "user", "content": "?"}, {"role": "assistant", "content": ""}], 1),
        (MULTI_TURN[:4], 1),
    ],
    ids=["one turn", "no question", "an empty answer", "a question at the end"],
)
def test_other_shapes_of_a_conversation(reader: Tokenizer, messages: list[dict[str, str]], answers: int) -> None:
    runs = trained_on(reader, messages)
    assert len(runs) == answers
    assert runs[0].endswith(reader.token_text(reader.eos_id))


def test_what_is_trained_is_what_a_prompt_is_continued_with(reader: Tokenizer) -> None:
    """Whatever the words are, the untrained beginning is the very prompt that a user's request is rendered to."""
    draw = random.Random(7)
    for _ in range(200):
        question, answer = fuzz_text(draw), fuzz_text(draw)
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        tokens, _, weights = encode_conversation(reader, messages)
        prompt = reader.render(messages[:1])
        assert tuple(tokens[: len(prompt)].tolist()) == tuple(prompt)
        assert weights.tolist() == [0.0] * (len(prompt) - 1) + [1.0] * (len(tokens) - len(prompt)) + [0.0]


# ---- packing


def chats(count: int) -> list[list[tuple[str, str]]]:
    return [[("user", f"Cast {n}?"), ("assistant", "fathoms " * (n % 5 + 1))] for n in range(count)]


@pytest.mark.parametrize("tokens", [64, 100, 1000])
def test_every_conversation_comes_once_an_epoch(reader: Tokenizer, tmp_path: Path, tokens: int) -> None:
    data = Conversations(write_chats(tmp_path / "c.jsonl", chats(40)), reader, 64, tokens, seed=1)
    orders = []
    for epoch in (0, 1):
        batches = [data.batch(epoch * data.batches_per_epoch + i) for i in range(data.batches_per_epoch)]
        parts = [
            tuple(batch.tokens_T[a:b].tolist())
            for batch in batches
            for a, b in zip(batch.documents, batch.documents[1:], strict=False)
        ]
        assert Counter(parts) == Counter(tuple(fragment[0].tolist()) for fragment in data.fragments)
        assert all(batch.rows == batch.documents for batch in batches), "each conversation is a sequence of its own"
        orders.append(parts)
    assert orders[0] != orders[1]


def test_a_batch_of_conversations_is_the_same_whenever_it_is_made(reader: Tokenizer, tmp_path: Path) -> None:
    path = write_chats(tmp_path / "c.jsonl", chats(40))
    first, second = (Conversations(path, reader, 64, 100, seed=1) for _ in range(2))
    forwards = [first.batch(index).tokens_T.tolist() for index in range(12)]
    assert second.batch(9).tokens_T.tolist() == forwards[9]
    assert second.batch(2).tokens_T.tolist() == forwards[2]


def test_no_pass_is_empty(reader: Tokenizer, tmp_path: Path) -> None:
    data = Conversations(write_chats(tmp_path / "c.jsonl", chats(13)), reader, 64, 64)
    assert all(float(batch.weights_T.sum()) > 0 for batch in data.all())


def test_too_long_a_conversation_is_left_out_and_counted(reader: Tokenizer, tmp_path: Path) -> None:
    long = [("user", "Tell me all."), ("assistant", "fathoms " * 300)]
    data = Conversations(write_chats(tmp_path / "c.jsonl", [*chats(4), long]), reader, 64, 64)
    assert (len(data.fragments), data.dropped) == (4, 1)
    assert data.describe().endswith("tokens in 4 conversations")


def test_only_too_long_conversations_are_an_error(reader: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"c.jsonl: every conversation is longer than 4 tokens"):
        Conversations(write_chats(tmp_path / "c.jsonl", chats(4)), reader, 4, 64)


# ---- what a user gets wrong

GOOD = json.dumps({"messages": MULTI_TURN})
SHAPE = 'not a JSON object with "messages" of "role" and "content"'
BROKEN = {
    '{"messages": [': SHAPE,
    "[1, 2]": SHAPE,
    '{"text": "no chat"}': SHAPE,
    '{"messages": [{"role": "user"}]}': SHAPE,
    '{"messages": "hello"}': SHAPE,
    '{"messages": [{"role": "tool", "content": "x"}]}': "unknown role",
    '{"messages": [{"role": "assistant", "content": null}]}': "content that is not text",
    '{"messages": [{"role": "assistant", "content": "\\ud800"}]}': "content that is not text",
    '{"messages": [{"role": "user", "content": "x"}]}': "no assistant message to learn from",
    '{"messages": [{"role": "assistant", "content": "Ahoy."}]}': "the assistant speaks first",
    '{"messages": []}': "no assistant message to learn from",
    '{"prompt": "How deep?"}': "not a JSON object",
    '{"prompt": "How deep?", "completion": ""}': "an empty completion",
    '{"prompt": "How deep?", "completion": 7}': "a completion that is not text",
    '{"prompt": null, "completion": "Seven."}': "a prompt or a completion that is not text",
}


@pytest.mark.parametrize(("line", "message"), BROKEN.items(), ids=range(len(BROKEN)))
def test_a_broken_line_is_named_with_its_number(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_text(f"{GOOD}\n\n{line}\n{GOOD}\n", encoding="utf-8")
    with pytest.raises(DataError) as caught:
        read_conversations(path)
    assert caught.value.message.startswith(f"{path}:3: ")
    assert message in caught.value.message


def test_bytes_that_are_not_utf_8_are_named_too(tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_bytes(GOOD.encode() + b'\n{"messages": "\xff\xfe"}\n')
    with pytest.raises(DataError, match=r"chats.jsonl:2: not a JSON object"):
        read_conversations(path)


def test_lines_end_at_line_feeds_only(tmp_path: Path) -> None:
    """U+2028, U+0085 and a vertical tab are text to JSON, though other readers break lines there."""
    content = "a\u2028b\u0085c"
    record = {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": content}]}
    path = tmp_path / "chats.jsonl"
    path.write_bytes(json.dumps(record, ensure_ascii=False).encode() + b"\r\n" + GOOD.encode())
    first, second = read_conversations(path)
    assert isinstance(first, list)
    assert isinstance(second, list)
    assert first[1]["content"] == content
    assert len(second) == 5


def test_loss_of_a_text_is_on_its_completion_and_the_eos_alone(reader: Tokenizer) -> None:
    text = Completion("The lead line shows", " seven fathoms.")
    tokens, targets, weights = encode_completion(reader, text)
    assert tokens.tolist() == [
        reader.bos_id,
        *reader.encode(text.prompt),
        *reader.encode(text.completion),
        reader.eos_id,
    ]
    assert targets[:-1].tolist() == tokens[1:].tolist()
    assert targets[weights > 0].tolist() == [*reader.encode(text.completion), reader.eos_id]
    assert weights[-1] == 0.0


def test_a_text_without_a_prompt_is_trained_on_from_its_first_token(reader: Tokenizer) -> None:
    _, targets, weights = encode_completion(reader, Completion("", "Seven fathoms."))
    assert weights.tolist() == [1.0] * (len(targets) - 1) + [0.0]


def test_texts_and_conversations_stand_in_one_file(tmp_path: Path, reader: Tokenizer) -> None:
    path = tmp_path / "mixed.jsonl"
    path.write_text(
        f'{GOOD}\n{{"prompt": "How", "completion": " deep"}}\n{{"completion": "Nine."}}\n', encoding="utf-8"
    )
    assert read_conversations(path)[1:] == [Completion("How", " deep"), Completion("", "Nine.")]
    data = Conversations(path, reader, 256, 256)
    assert len(data.fragments) == 3
    assert data.lengths[1] == 2 + len(reader.encode("How")) + len(reader.encode(" deep"))


@pytest.mark.parametrize("text", ["", "\n \n"])
def test_a_file_without_conversations_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "chats.jsonl").write_text(text)
    with pytest.raises(DataError, match=r"chats.jsonl is empty"):
        read_conversations(tmp_path / "chats.jsonl")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read .*chats.jsonl: No such file"):
        read_conversations(tmp_path / "chats.jsonl")
