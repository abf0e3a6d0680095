"""Bad tables: each kind is refused with one line that names file, row and way out, and never a user's text."""
# ruff: noqa: E501  a table of cases, one a line

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet

from troth.config import DataConfig, TaskConfig
from troth.data import load, read
from troth.errors import DataError

SECRET = "hunter2"  # stands in every text below, and may stand in no message
TEXT = f"my word is {SECRET}"
CONTEXT = f"Zürich has {SECRET} trams, Zürich has {SECRET} boats."


def jsonl(*rows: object) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def row(text: object = TEXT, label: object = "music", **more: object) -> dict[str, object]:
    return {"text": text, "label": label, **more}


GOOD = jsonl(row(), row(label="light"))
OTHER = jsonl(row(f"{TEXT} too"), row(label="light"))


def parquet_bytes(columns: dict[str, list[Any]]) -> bytes:
    sink = pa.BufferOutputStream()
    parquet.write_table(pa.table(columns), sink)
    return sink.getvalue().to_pybytes()


def squad(**question: object) -> bytes:
    whole = {"id": "q", "question": f"{TEXT}?", "answers": [{"text": "Zürich", "answer_start": 0}], **question}
    kept = {key: value for key, value in whole.items() if value is not None}
    return json.dumps({"data": [{"title": "t", "paragraphs": [{"context": CONTEXT, "qas": [kept]}]}]}).encode()


def answers(text: object, start: object) -> bytes:
    return squad(answers=[{"text": text, "answer_start": start}])


@dataclass(frozen=True)
class Bad:
    """A kind of bad table: its files, how a run file names them, and what the message must hold."""

    name: str
    files: dict[str, bytes]
    says: tuple[str, ...]
    config: dict[str, Any] = field(default_factory=lambda: {"train": "a.jsonl"})
    kind: str = "classification"


def one(
    name: str, content: bytes, *says: str, file: str = "a.jsonl", kind: str = "classification", **config: Any
) -> Bad:
    """Return the case of one bad training file."""
    return Bad(name, {file: content}, (file, *says), {"train": file, **config}, kind)


def pair(name: str, train: bytes, test: bytes, *says: str, kind: str = "classification", **config: Any) -> Bad:
    """Return the case of a train and a test file that do not go together."""
    return Bad(name, {"a.jsonl": train, "b.jsonl": test}, says, {"train": "a.jsonl", "test": "b.jsonl", **config}, kind)


LONG = jsonl(row(), row(label="light", text="x" * 10_000_000))
FILES = [
    Bad("missing file", {"train.jsonl": GOOD}, ("data.train = 'trian.jsonl'", "no such file", "nearest: 'train.jsonl'"), {"train": "trian.jsonl"}),
    Bad("missing test file", {"a.jsonl": GOOD}, ("data.test = 'b.jsonl'", "no such file"), {"train": "a.jsonl", "test": "b.jsonl"}),
    Bad("missing folder", {}, ("data.train = 'no/where/a.jsonl'", "there is no folder"), {"train": "no/where/a.jsonl"}),
    Bad("neither path nor hub id", {}, ("data.train = 'acme/intents'", "no such file or folder", "local hub cache", "hf download --repo-type dataset acme/intents"), {"train": "acme/intents"}),
    Bad("path of blanks", {}, ("data.train = '  '", "not a path"), {"train": "  "}),
    Bad("no list of files", {}, ("data.train", "no file"), {"train": []}),
    one("empty file", b"", "empty file (0 bytes)"),
    one("blank file", b" \n\n\t\n", "empty file (only blanks)"),
    one("empty parquet", parquet_bytes({"text": [], "label": []}), "no rows", file="a.parquet"),
    one("header alone", b"text,label\n", "a header and no rows", file="a.csv"),
    one("unknown ending", GOOD, "'.jsonx' is not a known ending", "nearest: .json", file="a.jsonx"),
    one("spreadsheet", b"PK\x03\x04", "'.xlsx' is not a known ending", ".csv", file="a.xlsx"),
    one("pickle", b"\x80\x04N.", "'.pkl' is not a known ending", file="a.pkl"),
    one("no ending", GOOD, "no ending is not a known ending", file="data"),
    one("aligned file alone", b"a b\n", "give their folder", file="seq.in"),
    one("compressed file", gzip.compress(GOOD), "is gzip-compressed: decompress it first"),
    one("parquet under another name", parquet_bytes({"text": ["a"]}), "is a Parquet file: name it .parquet"),
    one("UTF-16", GOOD.decode().encode("utf-16"), "is UTF-16 text: save it as UTF-8"),
    one("Latin-1", jsonl(row(), row(f"größer {SECRET}", "light")).decode().encode("latin-1"), "not UTF-8: byte 0xf6", "(line 2)", "iconv"),
    one("Latin-1 in csv", f"text,label\n{TEXT},x\nché,y\n".encode("latin-1"), "not UTF-8: byte 0xe9", "(line 3)", file="a.csv"),
    one("binary garbage", bytes(range(256)) * 9, "binary, not text: byte 0x00 at offset 0 (line 1)"),
    one("binary garbage without zeros", bytes(range(253, 127, -1)) * 9, "not UTF-8: byte 0xfd at offset 0"),
    one("binary garbage as parquet", bytes(range(256)) * 9, "not a Parquet file", file="a.parquet"),
    one("parquet cut short", parquet_bytes({"text": ["a"] * 99})[:-20], "not a Parquet file", file="a.parquet"),
    one("10 MB line", LONG, "line 2 has 10.0 MB", "a row may have 1 MB", "split"),
    one("10 MB line in csv", b"text,label\n" + b"x" * 10_000_000 + b",y\n", "line 2 has 10.0 MB", file="a.csv"),
    one("10 MB line without end", b"x" * 10_000_000, "line 1 has 10.0 MB", file="a.txt", kind="language_modeling"),
    one("10 MB text in parquet", parquet_bytes({"text": ["a", "b" * 10_000_000], "label": ["x", "y"]}), "row 2: text has 10.0 MB", file="a.parquet"),
]  # fmt: skip
JSON = [
    one("broken JSON", jsonl(row()) + b'{"text": "%s", \n' % SECRET.encode(), "row 2: broken JSON at character", "one object a line"),
    one("broken JSON after blank lines", b"\n\n" + jsonl(row()) + b"\n{\n", "row 2 (line 5): broken JSON at character 2"),
    one("two objects on a line", b'{"text": "a", "label": "x"} {"text": "b", "label": "y"}\n', "row 1: broken JSON at character 29: Extra data"),
    one("list on a line", jsonl(row(), [1, 2]), "row 2: holds a list, not an object"),
    one("word on a line", jsonl(row(), SECRET), "row 2: holds a plain value, not an object"),
    one("list of objects under .jsonl", json.dumps([row()]).encode(), "a JSON list", "name the file .json"),
    one("objects over lines", json.dumps(row(), indent=1).encode(), "row 1: broken JSON"),
    one("key twice", b'{"text": "a", "label": "x", "text": "b"}\n', "row 1: an object holds the same key twice"),
    one("deep nesting", b'{"text": ' + b"[" * 100_000 + b"\n", "row 1: broken JSON: nested too deeply"),
    one("endless number", b'{"text": "a", "label": ' + b"1" * 5000 + b', "other": "2"}\n', "row 1: broken JSON: a number with too many digits"),
    one("half a surrogate pair", b'{"text": "\\ud83d", "label": "x"}\n', "row 1: text holds half of a surrogate pair"),
    one("objects a line under .json", GOOD, "broken JSON at line 2", "one object a line is a .jsonl file", file="a.json"),
    one("broken .json", b'{"data": [', "broken JSON at line 1, column 11", file="a.json"),
    one(".json of another form", b'{"text": "a"}', "neither SQuAD form", "nor a list of objects", file="a.json"),
    one(".json list of words", b'["a"]', "row 1: not an object", file="a.json"),
]  # fmt: skip
COLUMNS = [
    one("missing column", jsonl(row()), "no column 'intnet' for the role label", "columns: 'text', 'label'", "label = COLUMN", label="intnet"),
    one("missing column, nearest named", jsonl({"text": TEXT, "intent": "a"}), "no column 'intnet'", "write label = 'intent'", label="intnet"),
    one("label of another name", jsonl({"text": TEXT, "intent": "a"}), "no column for the role label", "write label = 'intent'"),
    one("text of another case", jsonl({"Text": TEXT, "label": "a"}), "no column for the role text", "write text = 'Text'"),
    one("missing optional column", GOOD, "no column 'speaker' for the role user", user="speaker"),
    one("no header", f"{TEXT * 5},music\n{TEXT},light\n".encode(), "no column for the role text", "(90 characters)", "give columns = [...]", file="a.csv"),
    one("labels for .txt", TEXT.encode(), "no column for the role label", "write .jsonl or .csv", file="a.txt"),
    one("column twice", b"text,label,text\na,b,c\n", "names the column 'text' twice", file="a.csv"),
    one("one column for two roles", GOOD, "text and label are the same column 'text'", label="text"),
    one("semicolons", b"text;label\na;b\n", "the header has one column and holds ';'", "separate cells by commas", file="a.csv"),
    one("tabs in .csv", b"text\tlabel\na\tb\n", "the header has one column", "name the file .tsv", file="a.csv"),
    one("commas in .tsv", b"text,label\na,b\n", "the header has one column", "name the file .csv", file="a.tsv"),
    one("too many cells", f"text,label\n{TEXT},x\nand, {TEXT},y\n".encode(), "row 2 (line 3): 3 cells instead of 2 ('text', 'label')", "quote", file="a.csv"),
    one("too few cells", f"text\tlabel\n{TEXT}\n".encode(), "row 1 (line 2): 1 cells instead of 2", "tab", file="a.tsv"),
    one("cells after a cell of two lines", b'text,label\n"a\nb",x\nc\n', "row 2 (line 4): 1 cells instead of 2", file="a.csv"),
    one("wrong number of names", b"ham\ttext\n", "row 1: 2 cells instead of 3", file="a.tsv", columns=["label", "text", "more"]),
    one("names that repeat the header", b"text,label\na,x\n", "row 1 repeats the names in data.columns", file="a.csv", columns=["text", "label"]),
    one("names for a format with names", GOOD, "columns = ['text', 'label']", "drop columns", columns=["text", "label"]),
    one("quote not closed", f'text,label\n{TEXT},x\n"{TEXT},y\n'.encode(), "the row from line 3 on has a broken quote", file="a.csv"),
    one("text after a quote", f'text,label\n"{TEXT}" more,y\n'.encode(), "the row from line 2 on has a broken quote", file="a.csv"),
]  # fmt: skip
VALUES = [
    one("empty text", jsonl(row(), row("", "light")), "row 2: text is empty", "drop the row"),
    one("blank text", jsonl(row(), row(" \t\u00a0 ", "light")), "row 2: text is empty"),
    one("null text", jsonl(row(), row(None, "light")), "row 2: no text", "drop the row"),
    one("number for text", jsonl(row(), row(5, "light")), "row 2: text is a number, not a string"),
    one("numbers for text", jsonl(row(4), row(5, "light")), "row 1: text is a number, not a string"),
    one("list for text", jsonl(row([TEXT]), row()), "row 1: text is a list, not a string"),
    one("object for text", jsonl(row(), row({"a": TEXT})), "row 2: text is an object, not a string"),
    one("bytes for text", parquet_bytes({"text": [TEXT.encode()] * 2, "label": ["x", "y"]}), "row 1: text is bytes, not a string", file="a.parquet"),
    one("NaN label", b'{"text": "a", "label": 1.0}\n{"text": "b", "label": NaN}\n', "row 2: no label", "NaN"),
    one("null label", jsonl(row(), row(label=None)), "row 2: no label"),
    one("label left out", jsonl(row(), {"text": TEXT}), "row 2: no label"),
    one("empty label", jsonl(row(), row(label=" ")), "row 2: label is empty"),
    one("empty label cell", b"text,label\na,x\nb,\n", "row 2 (line 3): label is empty", file="a.csv"),
    one("NaN label cell", b"text,label\na,x\nb,nan\n", "row 2 (line 3): label is NaN", file="a.csv"),
    one("list for label", jsonl(row(), row(label=["a", "b"])), "row 2: label is a list, not a name or number"),
    one("one class", jsonl(row(), row(f"{TEXT} again")), "all 2 rows have the one label 'music'", "nothing to learn"),
    one("one class, a text", jsonl(row(label="x" * 300), row(label="x" * 300)), "have the one label 'xxx", "...'"),
    one("repeated id", jsonl(row(id=1), row(label="light", id=2), row(id=1)), "row 3: the id '1' was used before (a.jsonl: row 1)", "make ids unique"),
    one("user missing in a row", jsonl(row(user="u"), row(label="light")), "row 2: no user", "fill the column in every row"),
    one("object for group", jsonl(row(), row(label="light", group={})), "row 1: no group"),
    one("times of two types", jsonl(row(time=1), row(label="light", time="noon")), "row 2: time is a str, in row 1 a number"),
    one("truth value for time", jsonl(row(time=True), row(label="light", time=1)), "row 1: time is a truth value"),
    one("endless time", jsonl(row(time=10**30), row(label="light", time=10**30)), "time holds a number beyond 64 bits"),
]  # fmt: skip
SPLITS = [
    pair("unseen label", GOOD, jsonl(row(), row(label="weather"), row(label="weather")), "b.jsonl: row 2", "'weather' does not occur in a.jsonl", "(1 unseen in all, in 2 of 3 rows)", 'data.unseen_labels = "count_as_error"'),
    pair("unseen tag", jsonl({"tokens": ["a", "b"], "tags": ["O", "B-x"]}), jsonl({"tokens": ["a"], "tags": ["O"]}, {"tokens": ["c", "d"], "tags": ["O", "B-y"]}), "b.jsonl: row 2", "the tag 'B-y' does not occur in a.jsonl", kind="tagging"),
    pair("copies of a file", GOOD, GOOD, "data.test (b.jsonl) holds the same rows as data.train (a.jsonl)", "leave the split out"),
    Bad("one file for two splits", {"a.jsonl": GOOD}, ("./a.jsonl: read twice, for data.train and data.test (a.jsonl)",), {"train": "a.jsonl", "test": "./a.jsonl"}),
    Bad("a file and its folder", {"d/a.jsonl": GOOD}, ("d/a.jsonl: read twice, for data.train and data.validation",), {"train": "d", "validation": "d/a.jsonl"}),
    Bad("one file twice", {"a.jsonl": GOOD}, ("a.jsonl: read twice, for data.train",), {"train": ["a.jsonl", "a.jsonl"]}),
    Bad("files of other columns", {"a.jsonl": GOOD, "b.jsonl": jsonl(row(user="u"))}, ("a.jsonl: no column 'user', which b.jsonl has",), {"train": ["a.jsonl", "b.jsonl"]}),
    Bad("times of two types in two files", {"a.jsonl": jsonl(row(time=1)), "b.jsonl": jsonl(row(time="noon"))}, ("time is of several types",), {"train": ["a.jsonl", "b.jsonl"]}),
    Bad("repeated id in two files", {"a.jsonl": jsonl(row(id=1)), "b.jsonl": jsonl(row(id=2), row(id=1))}, ("b.jsonl: row 2: the id '1' was used before (a.jsonl: row 1)",), {"train": ["a.jsonl", "b.jsonl"]}),
    Bad("a bad row in the second file", {"a.jsonl": GOOD, "b.jsonl": jsonl(row(), row(""))}, ("b.jsonl: row 2: text is empty",), {"train": ["a.jsonl", "b.jsonl"]}),
]  # fmt: skip
FOLDERS = [
    Bad("empty folder", {"d/.keep": b""}, ("d: a folder without files of a known ending",), {"train": "d"}),
    Bad("folder without known files", {"d/README.md": b"x", "d/a.xyz": b"x"}, ("d: a folder without files of a known ending", ".jsonl"), {"train": "d"}),
    Bad("folder of splits' folders", {"d/train/seq.in": b"a\n", "d/test/seq.in": b"a\n"}, ("d: a folder without files", "it holds the folders 'test', 'train'"), {"train": "d"}),
    Bad("folder of several splits", {"d/train.jsonl": GOOD, "d/test.jsonl": OTHER}, ("d: a folder that holds several splits (test.jsonl, train.jsonl)", "give one file"), {"train": "d"}),
    Bad("folder of several endings", {"d/a.jsonl": GOOD, "d/b.csv": b"text,label\na,b\n"}, ("d: a folder with files of several endings (.csv, .jsonl)",), {"train": "d"}),
    Bad("folder with a bad file", {"d/a.jsonl": GOOD, "d/b.jsonl": b"{\n"}, ("d/b.jsonl: row 1: broken JSON",), {"train": "d"}),
    Bad("folder of save_to_disk", {"d/state.json": b"{}", "d/data.arrow": b""}, ("d/state.json", "neither SQuAD form"), {"train": "d"}),
    Bad("aligned files of other lengths", {"d/seq.in": b"a b\nc\n", "d/label": b"x\n"}, ("d/label: 1 lines, seq.in has 2",), {"train": "d"}),
    Bad("aligned files without words", {"d/label": b"x\n"}, ("d: line-aligned files want seq.in beside label",), {"train": "d"}),
    Bad("aligned words and tags", {"d/seq.in": b"a b\nc\n", "d/seq.out": b"O O\nO O\n"}, ("d: row 2: 1 tokens and 2 tags",), {"train": "d"}, "tagging"),
    Bad("aligned blank line", {"d/seq.in": b"a b\n \n", "d/label": b"x\ny\n"}, ("d: row 2: text is empty",), {"train": "d"}),
]  # fmt: skip
TAGGING = [
    one("tokens without tags", b"play O\n\nlights\n", "line 3 (sentence 2) has 1 columns instead of 2", "blank line", file="a.conll", kind="tagging"),
    one("token line of one column", b"play\njazz\n", "line 1 has 1 column", "a token and its tag", file="a.conll", kind="tagging"),
    one("blank tag", b"play\tO\njazz\t \n", "line 2 (sentence 1) has 1 columns instead of 2", file="a.conll", kind="tagging"),
    one("too many columns", b"play\tO\njazz\tO\tO\n", "line 2 (sentence 1) has 3 columns instead of 2", file="a.conll", kind="tagging"),
    one("other number of names", b"play\tO\n", "line 1 has 2 columns, data.columns names 3", file="a.conll", kind="tagging", columns=["tokens", "pos", "tags"]),
    one("no sentences", b"-DOCSTART- O\n\n", "no sentences", file="a.conll", kind="tagging"),
    one("tokens and tags of other lengths", jsonl({"tokens": ["a"], "tags": ["O"]}, {"tokens": ["a", SECRET], "tags": ["O"]}), "row 2: 2 tokens and 1 tags", kind="tagging"),
    one("no tokens", jsonl({"tokens": ["a"], "tags": ["O"]}, {"tokens": [], "tags": []}), "row 2: tokens is an empty list", kind="tagging"),
    one("empty token", jsonl({"tokens": ["a"], "tags": ["O"]}, {"tokens": ["b", " "], "tags": ["O", "O"]}), "row 2: tokens holds an empty or missing element", kind="tagging"),
    one("null tag", jsonl({"tokens": ["a"], "tags": ["O"]}, {"tokens": ["b"], "tags": [None]}), "row 2: tags holds an empty or missing element", kind="tagging"),
    one("number for token", jsonl({"tokens": ["a", 5], "tags": ["O", "O"]}), "row 1: tokens is a number, not a string", kind="tagging"),
    one("number for tokens", jsonl({"tokens": 5, "tags": ["O", "O"]}), "row 1: tokens is a number, not a list of strings", kind="tagging"),
    one("printed lists", b"tokens,tags\n\"['a', 'b']\",\"['O', 'O']\"\n", "row 1 (line 2): tokens is a printed list", ".jsonl", file="a.csv", kind="tagging"),
    one("one tag", jsonl({"tokens": ["a", "b"], "tags": ["O", "O"]}), "all 1 rows have the one tag 'O'", kind="tagging"),
]  # fmt: skip
QUESTIONS = [
    one("answer at another place", answers("Zürich", 5), "row 1: answer 1 is not in the context at answer_start = 5: it stands at 0", file="a.json", kind="question_answering"),
    one("answer counted in bytes", answers("boats", 47), "it stands at 45: answer_start counts characters, not bytes", file="a.json", kind="question_answering"),
    one("answer not in the context", answers("Geneva", 0), "it does not occur in the context", file="a.json", kind="question_answering"),
    one("answer before the context", answers("Zürich", -6), "answer_start = -6", file="a.json", kind="question_answering"),
    one("empty answer", answers("", 3), "row 1: answer 1 is empty", file="a.json", kind="question_answering"),
    one("no answer", squad(answers=[], is_impossible=True), "row 1: no answer", "SQuAD 2", file="a.json", kind="question_answering"),
    one("string for answer_start", answers("Zürich", "0"), "row 1: answers is not {", file="a.json", kind="question_answering"),
    one("answers of other lengths", jsonl({"question": TEXT, "context": CONTEXT, "answers": {"text": ["Zürich"], "answer_start": []}}), "row 1: answers has 1 texts and 0 answer_starts", kind="question_answering"),
    one("string for answers", jsonl({"question": TEXT, "context": CONTEXT, "answers": "Zürich"}), "row 1: answers is not {", kind="question_answering"),
    one("words for answers", jsonl({"question": TEXT, "context": CONTEXT, "answers": ["Zürich"]}), "row 1: answers is not {", kind="question_answering"),
    one("question without answers", squad(answers=None), "data[0].paragraphs[0].qas[0]: SQuAD form wants 'answers', a list", file="a.json", kind="question_answering"),
    one("article without paragraphs", b'{"data": [{"title": "a"}]}', "data[0]: SQuAD form wants 'paragraphs', a list", file="a.json", kind="question_answering"),
    one("paragraph without context", b'{"data": [{"paragraphs": [{"qas": []}]}]}', "data[0].paragraphs[0]: SQuAD form wants 'context', a string", file="a.json", kind="question_answering"),
    one("no questions", b'{"data": []}', "no column for the role question", file="a.json", kind="question_answering"),
    one("repeated question id", b'{"data": [{"paragraphs": [{"context": "ab", "qas": [' + b", ".join([b'{"id": 1, "question": "q", "answers": [{"text": "a", "answer_start": 0}]}'] * 2) + b"]}]}]}", "row 2: the id '1' was used before", file="a.json", kind="question_answering"),
    one("empty target", jsonl({"source": "a", "target": " "}), "row 1: target is empty", kind="seq2seq"),
]  # fmt: skip
CASES = [*FILES, *JSON, *COLUMNS, *VALUES, *SPLITS, *FOLDERS, *TAGGING, *QUESTIONS]


@pytest.mark.parametrize("bad", CASES, ids=[case.name for case in CASES])
def test_a_bad_table_is_refused_in_one_line(bad, tmp_path):
    for name, content in bad.files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with pytest.raises(DataError) as caught:
        load(DataConfig(**bad.config), TaskConfig(kind=bad.kind), tmp_path)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 420
    assert SECRET not in message
    for part in bad.says:
        assert part in message
    assert caught.value.exit_code == 2
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None  # no text in a chained traceback
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_every_case_has_its_own_name():
    assert len({case.name for case in CASES}) == len(CASES)


GOOD_ROWS = [{"text": TEXT, "label": "a"}, {"text": TEXT, "label": "b"}]


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ([], "list of 0 rows"),
        ([*GOOD_ROWS, {"text": TEXT}], "list of 3 rows: row 3: no label"),
        ([*GOOD_ROWS, 3], "list of 3 rows: row 3 is a int; give a list of dicts"),
        (pd.DataFrame(GOOD_ROWS).assign(label=[np.nan, "b"]), "DataFrame of 2 rows: row 1: no label"),
        (pd.DataFrame(GOOD_ROWS).assign(label=pd.array([1, None], dtype="Int64")), "DataFrame of 2 rows: row 2: no label"),
        (pd.DataFrame(GOOD_ROWS).assign(label=[pd.NaT, "b"]), "DataFrame of 2 rows: row 1: no label"),
        (pd.DataFrame(GOOD_ROWS).assign(text=[b"x", TEXT]), "DataFrame of 2 rows: row 1: text is bytes, not a string"),
        (pd.DataFrame([[1, 2]], columns=["text", "text"]), "DataFrame of 1 rows: two columns are called 'text'"),
        (pd.DataFrame(GOOD_ROWS).iloc[:0], "DataFrame of 0 rows: no rows"),
        (datasets.Dataset.from_list([{"text": TEXT, "label": None}, GOOD_ROWS[0]]), "datasets.Dataset of 2 rows: row 1: no label"),
        (datasets.Dataset.from_list(GOOD_ROWS).select([]), "datasets.Dataset of 0 rows: no rows"),
        (datasets.DatasetDict({"train": datasets.Dataset.from_list(GOOD_ROWS)}), "holds several splits (train); give one"),
        (3, "a table of type int cannot be read; give a path"),
        (None, "a table of type NoneType cannot be read"),
        ("", "not a path"),
        ("x" * 5000, "cannot be looked up; give a file"),
        ("~nobody-at-all/a.jsonl", "cannot be looked up"),
        ("a\0b", "not a path"),
    ],
)  # fmt: skip
def test_a_bad_object_is_refused_in_one_line(source, says):
    with pytest.raises(DataError) as caught:
        read(source, kind="classification")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert SECRET not in str(caught.value)


def test_a_missing_class_label_is_a_missing_label():
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["a", "b"])})
    data = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, -1]}, features=features)
    with pytest.raises(DataError, match=r"row 2: no label"):
        read(data, kind="classification")


@pytest.mark.parametrize(
    ("roles", "kind", "says"),
    [
        ({"lable": "label"}, "classification", "role 'lable' is not known; nearest: label"),
        ({"zzz": "label"}, "classification", "role 'zzz' is not known; roles: text, label"),
        ({}, "clasification", "task kind 'clasification' is not known; kinds: classification, tagging"),
    ],
)
def test_a_bad_request_is_refused_in_one_line(roles, kind, says):
    with pytest.raises(DataError) as caught:
        read(GOOD_ROWS, roles=roles, kind=kind)
    assert str(caught.value).startswith(says)


def test_a_file_that_cannot_be_opened_is_named(tmp_path):
    (tmp_path / "a.jsonl").symlink_to(tmp_path / "a.jsonl")
    with pytest.raises(DataError, match=r"a\.jsonl: no such file or folder|cannot be looked up"):
        read(tmp_path / "a.jsonl", kind="classification")


def test_a_folder_named_like_a_file_is_a_folder(tmp_path):
    (tmp_path / "a.jsonl").mkdir()
    with pytest.raises(DataError, match=r"a folder without files of a known ending"):
        read(tmp_path / "a.jsonl", kind="classification")


def test_hostile_names_stay_on_one_line(tmp_path):
    path: Path = tmp_path / "a\nb.jsonl"
    path.write_bytes(jsonl({"te\nxt": "a", "label": "x"}))
    with pytest.raises(DataError) as caught:
        read(path, kind="classification")
    assert "\n" not in str(caught.value)
