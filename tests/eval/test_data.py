"""Tables of every kind, folders of every layout, the hub without a network."""

from __future__ import annotations

import gzip
import json
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from leadline.errors import ConnectionFailed, DataError
from leadline.eval.data import Source, read_table
from leadline.eval.task import Setup
from leadline.eval.tasks import get_task
from tests.eval import samples

ROWS = [{"a": "1", "b": "x\u2028y"}, {"a": "2", "b": ""}]


@pytest.mark.parametrize("name", ["t.csv", "t.json", "t.jsonl", "t.jsonl.gz", "t.parquet", "bom.jsonl"])
def test_every_kind_of_table_reads_alike(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
    if name == "t.csv":
        path.write_text('a,b\n1,"x\u2028y"\n2,\n', encoding="utf-8")
    elif name == "t.json":
        path.write_text(json.dumps(ROWS), encoding="utf-8")
    elif name.endswith(".gz"):
        path.write_bytes(gzip.compress(text.encode()))
    elif name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    else:
        path.write_text(text, encoding="utf-8-sig" if name.startswith("bom") else "utf-8")
    assert read_table(path) == ROWS


def test_one_row_and_csv_without_a_header(tmp_path: Path) -> None:
    (tmp_path / "one.jsonl").write_text('{"a": 1}\n\n')
    assert read_table(tmp_path / "one.jsonl") == [{"a": 1}]
    (tmp_path / "bare.csv").write_text('1,"two\nlines"\n')
    assert read_table(tmp_path / "bare.csv", ("a", "b")) == [{"a": "1", "b": "two\nlines"}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.jsonl", b'{"a": 1}\n{"a"\n', r"t\.jsonl:2 is not JSON"),
        ("t.jsonl", b'{"a": 1}\n[1]\n', r"t\.jsonl:2 is not a JSON object"),
        ("t.jsonl", b"\xff\xfe", r"cannot read .*t\.jsonl"),
        ("t.jsonl.gz", b"not gzip", r"cannot read .*t\.jsonl\.gz"),
        ("t.parquet", b"not parquet", r"cannot read .*t\.parquet"),
        ("t.pkl", b"", r"t\.pkl is none of"),
    ],
)
def test_what_is_wrong_with_a_table_is_said(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_table(tmp_path / name)


def test_a_folder_is_the_benchmarks_own_or_holds_it(tmp_path: Path) -> None:
    (tmp_path / "pile").mkdir()
    assert Source("bits_per_byte", tmp_path, folders=("pile",)).folder == tmp_path / "pile"
    assert Source("mmlu", tmp_path).folder == tmp_path
    with pytest.raises(DataError, match="is not a folder"):
        _ = Source("mmlu", tmp_path / "nowhere").folder
    with pytest.raises(DataError, match="is not on the hub"):
        _ = Source("bbh").folder


def test_mmlu_and_gsm8k_from_the_hubs_tables(tmp_path: Path) -> None:
    (tmp_path / "all").mkdir()
    row = {"question": "Which?", "subject": "ropes", "choices": ["1", "2", "3", "4"], "answer": 2}
    for split in ("dev", "test"):
        table = pa.Table.from_pylist([row, row])
        pq.write_table(table, tmp_path / f"all/{split}-00000-of-00001.parquet")
    source = Source("mmlu", hub="cais/mmlu", download=lambda hub, files: tmp_path)
    items = get_task("mmlu").load(Setup(source, 5))
    assert [(item.id, item.answer) for item in items] == [("ropes/0", " C"), ("ropes/1", " C")]
    assert items[0].prompt.startswith("The following are multiple choice questions (with answers) about ropes.")


def test_an_archive_of_the_hub_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    samples.ceval(tmp_path / "made")
    (tmp_path / "hub").mkdir()
    with zipfile.ZipFile(tmp_path / "hub/ceval-exam.zip", "w") as archive:
        for path in (tmp_path / "made").rglob("*.csv"):
            archive.write(path, path.relative_to(tmp_path / "made"))
        archive.writestr("../../outside.csv", "a")
    items = get_task("ceval").load(Setup(Source("ceval", hub="x/y", download=lambda hub, files: tmp_path / "hub"), 5))
    assert len(items) == samples.QUESTIONS
    assert not (tmp_path / "outside.csv").exists()
    assert not (tmp_path / "cache/outside.csv").exists()


def test_only_the_files_of_the_task_are_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked: list[object] = []

    def download(hub: str, **options: object) -> str:
        asked.append((hub, options))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    task = get_task("mmlu")
    assert Source("mmlu", None, task.hub, task.hub_files).folder == tmp_path
    assert asked == [("cais/mmlu", {"repo_type": "dataset", "allow_patterns": ["all/dev*", "all/test*"]})]


def test_without_a_network_the_hub_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def offline(*args: object, **options: object) -> str:
        raise OSError("no route")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(ConnectionFailed, match=r"cannot get cais/mmlu from the hub \(no route\); give its files"):
        _ = Source("mmlu", hub="cais/mmlu").folder
