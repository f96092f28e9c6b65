"""Readers: every kind of file becomes the same documents, blocks change nothing, and mistakes are named in one line."""

from __future__ import annotations

import bz2
import csv
import gzip
import importlib.util
import io
import json
import lzma
import os
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertkin.errors import UserError
from bertkin.text.readers import cut_blocks, list_sources, read_block, read_documents

TEXTS = ["First document,\nof two lines.", "Zweites Dokument: Größe.", "第三个文档。", '"Fourth", it\tsaid.']


def write(path: Path, data: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def read(*paths: Path | str, **how: str) -> list[str]:
    return list(read_documents(paths, **how))  # type: ignore[arg-type]


def mistake(*paths: Path | str, **how: str) -> str:
    with pytest.raises(UserError) as caught:
        read(*paths, **how)
    message = str(caught.value)
    assert "\n" not in message
    return message


def as_json(texts: list[str]) -> str:
    return "".join(json.dumps({"id": 1, "text": text}) + "\n" for text in texts)


def as_csv(texts: list[str]) -> str:
    file = io.StringIO()
    csv.writer(file).writerows([["id", "text"], *([str(i), text] for i, text in enumerate(texts))])
    return file.getvalue()


# Kinds of files.


def test_plain_text_is_cut_at_blank_lines_by_default(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "\n\n" + "\n \t\n\n".join(TEXTS) + "\n")
    assert read(path) == TEXTS
    assert read(path, documents="blank") == TEXTS


def test_plain_text_can_be_a_document_a_line_or_a_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "one\ntwo\n\nthree\n")
    assert read(path, documents="line") == ["one", "two", "three"]
    assert read(path, documents="file") == ["one\ntwo\n\nthree\n"]


def test_windows_line_ends_and_byte_order_marks_are_not_text(tmp_path: Path) -> None:
    assert read(write(tmp_path / "a.txt", "\ufeffone\r\ntwo\r\n\r\nthree\r\n")) == ["one\ntwo", "three"]
    assert read(write(tmp_path / "a.jsonl", "\ufeff" + as_json(["x"]))) == ["x"]
    assert read(write(tmp_path / "a.csv", "\ufefftext\r\nx\r\n")) == ["x"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json-lines", "a.ndjson", "a.json"])
def test_json_lines_give_a_field(tmp_path: Path, name: str) -> None:
    assert read(write(tmp_path / name, as_json(TEXTS) + "\n")) == TEXTS
    assert read(write(tmp_path / name, '{"body": "x", "text": "y"}'), field="body") == ["x"]


def test_tables_give_a_column(tmp_path: Path) -> None:
    assert read(write(tmp_path / "a.csv", as_csv(TEXTS))) == TEXTS
    quotes = 'id\ttext\n1\ta "quote\n2\tb\n'  # tab-separated files do not quote
    assert read(write(tmp_path / "a.tsv", quotes)) == ['a "quote', "b"]


@pytest.mark.parametrize("kind", ["string", "large_string", "dictionary"])
def test_parquet_gives_a_column(tmp_path: Path, kind: str) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    column = pa.array([*TEXTS, None], pa.large_string() if kind == "large_string" else pa.string())
    column = column.dictionary_encode() if kind == "dictionary" else column
    pq.write_table(pa.table({"id": range(5), "text": column}), tmp_path / "a.parquet", row_group_size=2)
    assert read(tmp_path / "a.parquet") == TEXTS


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst", ".two.zst"])
@pytest.mark.parametrize("kind", ["txt", "jsonl", "csv"])
def test_compressed_files_read_as_what_they_hold(tmp_path: Path, suffix: str, kind: str) -> None:
    plain = {"txt": "\n\n".join(TEXTS), "jsonl": as_json(TEXTS), "csv": as_csv(TEXTS)}[kind].encode()
    if suffix.endswith(".zst"):
        zstandard = pytest.importorskip("zstandard")
        pack = zstandard.ZstdCompressor().compress
        packed = pack(plain[:9]) + pack(plain[9:]) if suffix == ".two.zst" else pack(plain)
        suffix = ".zst"
    else:
        packed = {".gz": gzip, ".bz2": bz2, ".xz": lzma}[suffix].compress(plain)
    assert read(write(tmp_path / f"a.{kind}{suffix}", packed)) == TEXTS


def test_wiki_extracts_are_recognised_by_their_tags(tmp_path: Path) -> None:
    text = "".join(f'<doc id="{i}" url="u" title="t">\n{text}\n\nmore\n\n</doc>\n' for i, text in enumerate(TEXTS))
    write(tmp_path / "AA" / "wiki_00", text)
    write(tmp_path / "AA" / "wiki_01.bz2", bz2.compress(text.encode()))
    write(tmp_path / "AA" / "notes", "no tags, no ending: left alone")
    assert read(tmp_path) == [text + "\n\nmore\n" for text in TEXTS] * 2


# Which files.


def test_folders_are_read_in_order_without_what_is_hidden_or_unknown(tmp_path: Path) -> None:
    for name in ("b.txt", "a/z.md", "a/y.rst", ".hidden.txt", ".git/x.txt", "picture.png", "empty.txt"):
        write(tmp_path / name, "" if name == "empty.txt" else name)
    assert read(tmp_path) == ["b.txt", "a/y.rst", "a/z.md"]


def test_globs_read_whatever_they_match(tmp_path: Path) -> None:
    for name in ("part-00", "part-01", "other", "deep/[x]/part-02"):
        write(tmp_path / name, name)
    assert read(str(tmp_path / "part-*")) == ["part-00", "part-01"]
    assert read(str(tmp_path / "**" / "part-02")) == ["deep/[x]/part-02"]


def test_a_file_named_twice_is_read_once(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "text")
    (tmp_path / "link.txt").symlink_to(path)
    assert read(path, tmp_path, tmp_path / "link.txt", str(tmp_path / "*.txt")) == ["text"]


def test_standard_input_can_be_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    for data in (as_json(TEXTS).encode(), gzip.compress("\n\n".join(TEXTS).encode())):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        assert read("-") == TEXTS
        assert read("-") == TEXTS


def test_a_named_pipe_is_read(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.write(writer, b"through a pipe")
    os.close(writer)
    assert read(f"/dev/fd/{reader}") == ["through a pipe"]


# Blocks.

documents = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=40), max_size=30)


@given(documents, st.sampled_from(["txt", "jsonl", "csv", "wiki", "gz"]), st.integers(1, 200))
@settings(max_examples=100)
def test_cutting_into_blocks_changes_no_document(tmp_path_factory, texts: list[str], kind: str, size: int) -> None:
    folder = tmp_path_factory.mktemp("blocks")
    plain = {
        "txt": "\n\n".join(texts),
        "gz": "\r\n\r\n".join(texts),
        "jsonl": as_json(texts),
        "csv": as_csv(texts),
        "wiki": "".join(f"<doc id=1>\n{text}\n</doc>\n" for text in texts),
    }[kind]
    if not plain:
        return
    path = write(folder / f"a.{'txt.gz' if kind == 'gz' else kind if kind != 'wiki' else 'txt'}", b"")
    path.write_bytes(gzip.compress(plain.encode()) if kind == "gz" else plain.encode())
    (source,) = list_sources([path])
    for choice in ("auto", "line"):
        whole = list(read_documents([path], documents=choice))
        blocks = list(cut_blocks(source, size=size, documents=choice))
        assert [d for block in blocks for d in read_block(block, documents=choice)] == whole
        positions = [block.position for block in blocks]
        assert positions == sorted(positions)


def test_blocks_are_small_even_where_nothing_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bertkin.text.readers.BLOCK", 1000)
    monkeypatch.setattr("bertkin.text.sources.CHUNK", 100)
    for text in ("a long line of words " * 500, "字" * 4000, "x" * 9000, "line\n" * 2000):
        (source,) = list_sources([write(tmp_path / "a.txt", text)])
        for choice in ("blank", "file"):
            blocks = list(cut_blocks(source, documents=choice, size=1000))
            assert max(block.end - block.start for block in blocks) <= 1100
            assert "".join(d for b in blocks for d in read_block(b, documents="file")) == text


# Mistakes.


def test_a_missing_path_names_what_is_near(tmp_path: Path) -> None:
    write(tmp_path / "corpus.txt", "x")
    message = mistake(tmp_path / "korpus.txt")
    assert "no such file" in message and str(tmp_path / "corpus.txt") in message
    assert "no file matches" in mistake(str(tmp_path / "*.nothing"))


def test_an_empty_file_or_folder_is_refused(tmp_path: Path) -> None:
    assert "empty" in mistake(write(tmp_path / "a" / "a.txt", ""))
    assert "no text files" in mistake(tmp_path)
    assert "no corpus" in mistake()


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv"])
def test_bytes_that_are_not_utf8_are_named_by_offset(tmp_path: Path, name: str) -> None:
    start = {"a.txt": b"good\n\n", "a.jsonl": as_json(["good"]).encode() + b'{"text": "', "a.csv": b"text\ngood\n"}[
        name
    ]
    end = {"a.txt": b"", "a.jsonl": b'"}\n', "a.csv": b"\n"}[name]
    path = write(tmp_path / name, start + "größe ".encode() + b"\xff bad" + end)
    message = mistake(path)
    assert f"{path}@{len(start) + 8}:" in message and "0xff" in message and "--encoding-errors replace" in message
    assert read(path, encoding_errors="replace")[-1].strip() == "größe \ufffd bad"


def test_an_offset_counts_from_the_start_of_the_file(tmp_path: Path) -> None:
    data = (b"word " * 20 + b"\n\n") * 60_000
    path = write(tmp_path / "a.txt", data + b"\xe9t\xe9")
    assert f"@{len(data)}:" in mistake(path)


def test_a_character_cut_short_at_the_end_is_named(tmp_path: Path) -> None:
    assert "a.csv@5:" in mistake(write(tmp_path / "a.csv", b"text\n\xe4\xb8"))


def test_a_line_that_is_not_json_is_named_by_number(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", as_json(["x"] * 10) + "not json\n")
    assert f"{path}:11: not JSON" in mistake(path)
    assert ":1: " in mistake(write(tmp_path / "b.json", '[{"text": "x"}]')) and "jq" in mistake(tmp_path / "b.json")
    assert ":1: " in mistake(write(tmp_path / "c.jsonl", "[" * 100_000))
    assert ":1: " in mistake(write(tmp_path / "d.jsonl", "1" * 5000))


def test_a_missing_field_or_column_lists_those_there(tmp_path: Path) -> None:
    message = mistake(write(tmp_path / "a.jsonl", as_json(["x"]) + '{"title": "t", "body": "b"}\n'))
    assert "a.jsonl:2: no field 'text'" in message and "title, body" in message
    assert "holds a int" in mistake(tmp_path / "a.jsonl", field="id")
    message = mistake(write(tmp_path / "a.csv", "title,body\nx,y\n"))
    assert "no column 'text'" in message and "title, body" in message


def test_lone_surrogates_in_json_do_not_get_through(tmp_path: Path) -> None:
    assert read(write(tmp_path / "a.jsonl", '{"text": "a\\ud800b \\ud83d\\ude00"}')) == ["a\ufffdb 😀"]


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
def test_compressed_files_cut_short_or_garbled_are_refused(tmp_path: Path, suffix: str) -> None:
    plain = os.urandom(100).hex().encode() * 50
    if suffix == ".zst":
        packed = pytest.importorskip("zstandard").ZstdCompressor().compress(plain)
    else:
        packed = {".gz": gzip, ".bz2": bz2, ".xz": lzma}[suffix].compress(plain)
    path = tmp_path / f"a.txt{suffix}"
    assert "cut short" in mistake(write(path, packed[:-9]))
    assert f"not a whole {suffix}" in mistake(write(path, b"plain text"))


def test_a_file_that_may_not_be_read_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "x")
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("root may read everything")
    assert "permission" in mistake(path)


@given(
    st.one_of(st.binary(max_size=300), st.text(max_size=100).map(lambda t: t.encode("utf-8", "replace"))),
    st.sampled_from(
        ["a.txt", "a.jsonl", "a.csv", "a.tsv", "a.parquet", "a.txt.gz", "a.csv.gz", "a.jsonl.zst", "a.xz", "a"]
    ),
    st.sampled_from(["strict", "replace"]),
    st.sampled_from(["auto", "file", "blank", "line"]),
    st.booleans(),
)
@settings(max_examples=300)
def test_garbage_gives_documents_or_one_line(
    tmp_path_factory, data: bytes, name: str, errors: str, cut: str, pack: bool
):
    path = tmp_path_factory.mktemp("garbage") / name
    path.write_bytes(gzip.compress(data)[: len(data) + 19] if pack and name.endswith(".gz") else data)
    try:
        for document in read(path, encoding_errors=errors, documents=cut):
            assert document and not document.isspace()
            document.encode()
    except UserError as error:
        assert "\n" not in str(error)


def packed_examples() -> dict[str, bytes]:
    wiki = "".join(f"<doc id=1>\n{text}\n</doc>\n" for text in TEXTS).encode()
    examples = {
        "a.txt": wiki,
        "a.jsonl.gz": gzip.compress(as_json(TEXTS).encode()),
        "a.csv.bz2": bz2.compress(as_csv(TEXTS).encode()),
        "a.txt.xz": lzma.compress(wiki),
    }
    if importlib.util.find_spec("pyarrow"):
        import pyarrow as pa
        import pyarrow.parquet as pq

        file = io.BytesIO()
        pq.write_table(pa.table({"text": TEXTS}), file)
        examples["a.parquet"] = file.getvalue()
    if importlib.util.find_spec("zstandard"):
        import zstandard

        examples["a.jsonl.zst"] = zstandard.ZstdCompressor().compress(as_json(TEXTS).encode())
    return examples


@given(st.data())
@settings(max_examples=150)
def test_damaged_files_give_documents_or_one_line(tmp_path_factory, data: st.DataObject) -> None:
    name, content = data.draw(st.sampled_from(sorted(EXAMPLES.items())))
    damaged = bytearray(content)
    for at, byte in data.draw(st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)), max_size=4)):
        damaged[at] = byte
    path = tmp_path_factory.mktemp("damaged") / name
    path.write_bytes(damaged[: data.draw(st.integers(1, len(damaged)) | st.just(len(damaged)))])
    try:
        read(path)
    except UserError as error:
        assert "\n" not in str(error)


EXAMPLES = packed_examples()
