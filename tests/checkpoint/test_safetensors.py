"""The file format against the safetensors library, and against files that are not what they say."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from leadline.checkpoint.safetensors import Tensor, header_bytes, read_header, read_into
from leadline.errors import CheckpointError


def write(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def entry(begin: int, end: int, shape: Any = None, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": [(end - begin) // 4] if shape is None else shape, "data_offsets": [begin, end]}


def test_reads_what_the_library_writes(tmp_path: Path) -> None:
    tensors = {
        "a": torch.randn(3, 4),
        "b": torch.randn(5).to(torch.bfloat16),
        "empty": torch.zeros(0, 7, dtype=torch.float16),
        "scalar": torch.tensor(2.5, dtype=torch.float64),
    }
    save_file(tensors, tmp_path / "x.safetensors")
    entries = read_header(tmp_path / "x.safetensors")
    assert entries.keys() == tensors.keys()
    with (tmp_path / "x.safetensors").open("rb", buffering=0) as file:
        for name, tensor in tensors.items():
            buffer = bytearray(entries[name].size)
            read_into(file, entries[name], memoryview(buffer))
            assert entries[name].shape == tensor.shape
            assert bytes(buffer) == tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


def test_the_library_reads_what_we_write(tmp_path: Path) -> None:
    header = header_bytes([Tensor("b", "bfloat16", (3,)), Tensor("a", "float32", (2, 2))])
    values = torch.arange(4, dtype=torch.float32).view(2, 2)
    path = tmp_path / "x.safetensors"
    path.write_bytes(header + b"\x80\x3f" * 3 + values.numpy().tobytes())
    assert len(header) % 8 == 0
    loaded = load_file(path)
    assert loaded["b"].tolist() == [1.0, 1.0, 1.0]
    assert torch.equal(loaded["a"], values)


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty file": (lambda p: p.write_bytes(b""), "truncated"),
    "header longer than the file": (lambda p: write(p, {}, length=1 << 40), "header claims"),
    "header cut": (lambda p: write(p, b'{"a":', length=9), "header claims"),
    "not JSON": (lambda p: write(p, b"[1, 2"), "damaged header"),
    "not UTF-8": (lambda p: write(p, b"\xff\xfe{}"), "damaged header"),
    "not an object": (lambda p: write(p, []), "not a JSON object"),
    "nested too deep": (lambda p: write(p, b"[" * 200_000), "damaged header"),
    "a tensor twice": (
        lambda p: write(p, b'{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},"a":{}}'),
        "a is in it twice",
    ),
    "entry without shape": (lambda p: write(p, {"a": {"dtype": "F32"}}), "a has a damaged header entry"),
    "entry is a number": (lambda p: write(p, {"a": 3}), "a has a damaged header entry"),
    "three offsets": (
        lambda p: write(p, {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 1, 2]}}),
        "a has a damaged header entry",
    ),
    "negative shape": (lambda p: write(p, {"a": entry(0, 4, [-1])}, b"0000"), "not whole numbers"),
    "boolean shape": (lambda p: write(p, {"a": entry(0, 4, [True])}, b"0000"), "not whole numbers"),
    "type we do not load": (lambda p: write(p, {"a": entry(0, 4, [4], "F8_E4M3")}, b"0000"), "a is of type F8_E4M3"),
    "bytes and shape disagree": (lambda p: write(p, {"a": entry(0, 4, [2])}, b"0000"), "takes 4 bytes"),
    "end before begin": (lambda p: write(p, {"a": entry(4, 0, [1])}, b"0000"), "takes -4 bytes"),
    "overlap": (lambda p: write(p, {"a": entry(0, 8), "b": entry(4, 12)}, b"0" * 12), "b overlaps"),
    "gap": (lambda p: write(p, {"a": entry(0, 4), "b": entry(8, 12)}, b"0" * 12), "b leaves a gap"),
    "truncated": (lambda p: write(p, {"a": entry(0, 4), "b": entry(4, 12)}, b"0" * 9), "b ends 3 bytes after"),
    "bytes left over": (lambda p: write(p, {"a": entry(0, 4)}, b"0" * 9), "5 bytes after its last tensor"),
}


@pytest.mark.parametrize(("make", "message"), BROKEN.values(), ids=BROKEN)
def test_a_damaged_file_is_one_line_that_names_it(tmp_path: Path, make: Callable[[Path], object], message: str) -> None:
    path = tmp_path / "model.safetensors"
    make(path)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_header(path)
    assert "model.safetensors" in caught.value.message
    assert "\n" not in caught.value.message


@given(st.binary(max_size=200), st.integers(min_value=0, max_value=400))
def test_no_bytes_make_the_reader_crash(tmp_path_factory: pytest.TempPathFactory, text: bytes, length: int) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "x.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + text)
    with contextlib.suppress(CheckpointError):
        read_header(path)


def test_a_file_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "x.safetensors", {"a": entry(0, 64)}, b"0" * 64)
    entries = read_header(path)
    path.write_bytes(path.read_bytes()[:-10])
    with path.open("rb", buffering=0) as file, pytest.raises(CheckpointError, match="a ends after the file"):
        read_into(file, entries["a"], memoryview(bytearray(64)))
