"""Every format of the design read right: the same rows give the same table, whichever file they stand in."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import datasets
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from troth.config import DataConfig, TaskConfig
from troth.data import Table, load, read
from troth.data.formats_json import _careful, _fast
from troth.errors import DataError

ROWS = [
    {"text": "play some jazz", "label": "music", "id": "a1", "user": "u1", "time": 3},
    {"text": 'she said "lights on", twice', "label": "light", "id": "a2", "user": "u2", "time": 4},
    {"text": "größer, señor 日本 😀", "label": "music", "id": "a3", "user": "u1", "time": 5},
]
NAMES = list(ROWS[0])


def write(folder: Path, name: str, text: str | bytes) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def jsonl(rows) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write_csv(path: Path, rows, **options) -> Path:
    with path.open("w", encoding="utf-8", newline="") as sink:
        writer = csv.DictWriter(sink, list(rows[0]), **options)
        writer.writeheader()
        writer.writerows(rows)
    return path


def tsv(rows) -> str:
    return "\n".join(["\t".join(rows[0]), *("\t".join(str(v) for v in row.values()) for row in rows)]) + "\n"


def classify(source, **options) -> Table:
    return read(source, kind="classification", **options)


def every_form(folder: Path) -> dict[str, object]:
    """The same rows in each form that holds a table of named columns."""
    table = pa.Table.from_pylist(ROWS)
    parquet.write_table(table, folder / "rows.parquet")
    with_line_ends = write_csv(folder / "rows.csv", ROWS, lineterminator="\n")
    return {
        "jsonl": write(folder, "rows.jsonl", jsonl(ROWS)),
        "jsonl, blank lines, CRLF, no last end": write(
            folder, "b.jsonl", "\n" + jsonl(ROWS).replace("\n", "\r\n\r\n")[:-4]
        ),
        "jsonl, byte order mark": write(folder, "mark.jsonl", b"\xef\xbb\xbf" + jsonl(ROWS).encode()),
        "jsonl, another order of keys": write(folder, "order.jsonl", jsonl([dict(reversed(r.items())) for r in ROWS])),
        "jsonl, escaped": write(folder, "escaped.jsonl", "\n".join(json.dumps(row) for row in ROWS)),
        "jsonl, in capitals": write(folder, "CAPITALS.JSONL", jsonl(ROWS)),
        "json": write(folder, "rows.json", json.dumps(ROWS, indent=1)),
        "csv": with_line_ends,
        "csv, CRLF and all quoted": write_csv(folder / "quoted.csv", ROWS, quoting=csv.QUOTE_ALL),
        "csv, byte order mark and blank line": write(
            folder, "m.csv", b"\xef\xbb\xbf" + with_line_ends.read_bytes() + b"\n"
        ),
        "tsv": write(folder, "rows.tsv", tsv(ROWS)),
        "parquet": folder / "rows.parquet",
        "list of dicts": ROWS,
        "tuple of dicts": tuple(ROWS),
        "DataFrame": pd.DataFrame(ROWS),
        "DataFrame of objects": pd.DataFrame(ROWS, index=[9, 9, 4]).astype(object),
        "DataFrame of categories": pd.DataFrame(ROWS).astype({"label": "category", "user": "category"}),
        "Dataset": datasets.Dataset.from_list(ROWS),
        "Dataset, formatted": datasets.Dataset.from_list(ROWS).with_format("numpy"),
        "Dataset, chosen": datasets.Dataset.from_list([*ROWS[::-1], ROWS[0]]).select([2, 1, 0]),
        "two files": [write(folder, "part1.jsonl", jsonl(ROWS[:1])), write(folder, "part2.csv", tail_csv())],
    }


def tail_csv() -> str:
    quoted = ROWS[1]["text"].replace('"', '""')
    return f'id,label,text,time,user\na2,light,"{quoted}",4,u2\na3,music,"{ROWS[2]["text"]}",5,u1\n'


FORMS = (
    "jsonl",
    "jsonl, blank lines, CRLF, no last end",
    "jsonl, byte order mark",
    "jsonl, another order of keys",
    "jsonl, escaped",
    "jsonl, in capitals",
    "json",
    "csv",
    "csv, CRLF and all quoted",
    "csv, byte order mark and blank line",
    "tsv",
    "parquet",
    "list of dicts",
    "tuple of dicts",
    "DataFrame",
    "DataFrame of objects",
    "DataFrame of categories",
    "Dataset",
    "Dataset, formatted",
    "Dataset, chosen",
    "two files",
)


@pytest.mark.parametrize("form", FORMS)
def test_the_same_rows_give_the_same_table(form, tmp_path):
    forms = every_form(tmp_path)
    assert set(forms) == set(FORMS)
    table = classify(forms[form])
    assert [dict(zip(NAMES, row, strict=True)) for row in zip(*map(table.column, NAMES), strict=True)] == ROWS
    assert table.fingerprint == classify(ROWS).fingerprint


def test_reading_writes_nothing(tmp_path, monkeypatch):
    data, cache, here = tmp_path / "data", tmp_path / "cache", tmp_path / "here"
    for folder in (data, cache, here):
        folder.mkdir()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    monkeypatch.chdir(here)
    forms = every_form(data)
    before = sorted(entry.name for entry in data.iterdir())
    for form in forms.values():
        assert classify(form).dataset.cache_files == []
    assert sorted(entry.name for entry in data.iterdir()) == before
    assert list(cache.iterdir()) == []
    assert list(here.iterdir()) == []


def test_roles_name_columns_and_the_rest_is_dropped(tmp_path):
    path = write(tmp_path, "a.csv", "utterance,intent,speaker,id,score\nplay,music,ann,1,3\non,light,bob,2,4\n")
    table = classify(path, roles={"text": "utterance", "label": "intent", "group": "speaker"})
    assert table.roles == ("text", "label", "id", "group")
    assert table.column("group") == ["ann", "bob"]


def test_columns_of_other_tasks_are_not_taken_unasked():
    rows = [
        {"text": "a", "label": "x", "source": None, "tokens": 3},
        {"text": "b", "label": "y", "source": 1, "tokens": 4},
    ]
    assert classify(rows).roles == ("text", "label")


def test_columns_name_a_table_without_header(tmp_path):
    path = write(tmp_path, "a.tsv", 'ham\tsee "you" later\nspam\t"WIN, now\n')
    table = classify(path, columns=["label", "text"])
    assert table.column("text") == ['see "you" later', '"WIN, now']
    assert table.column("label") == ["ham", "spam"]
    quoted = write(tmp_path, "a.csv", 'ham,"see ""you"", later"\nspam,win\n')
    assert classify(quoted, columns=["label", "text"]).column("text") == ['see "you", later', "win"]


def test_a_csv_cell_may_hold_lines(tmp_path):
    path = write(tmp_path, "a.csv", 'text,label\n"one\ntwo",x\r\n"three\r\nfour",y\n')
    assert classify(path).column("text") == ["one\ntwo", "three\r\nfour"]


def test_tsv_cells_are_taken_as_they_are(tmp_path):
    path = write(tmp_path, "a.tsv", 'text\tlabel\n"quoted"\tx\n 5" disk \ty\n')
    assert classify(path).column("text") == ['"quoted"', ' 5" disk ']


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ([0, 1], ["0", "1"]),
        ([0.0, 1.0], ["0", "1"]),
        ([0.5, 10], ["0.5", "10"]),
        ([True, False], ["true", "false"]),
        ([1, "1a"], ["1", "1a"]),
        ([12345678901234567890, 12345678901234567891], ["12345678901234567890", "12345678901234567891"]),
        ([2**53 + 1, 0.5], ["9007199254740993", "0.5"]),
        (["2024-01-01", "2024-01-02"], ["2024-01-01", "2024-01-02"]),
        (["2024-01-01T00:00:00Z", "5"], ["2024-01-01T00:00:00Z", "5"]),
    ],
)
def test_labels_become_their_string_in_every_form(given, wanted, tmp_path):
    rows = [{"text": f"text {i}", "label": label} for i, label in enumerate(given)]
    path = write(tmp_path, "a.jsonl", jsonl(rows))
    assert classify(path).column("label") == wanted
    assert classify(rows).column("label") == wanted
    frame = pd.DataFrame({"text": [row["text"] for row in rows], "label": pd.Series(given, dtype=object)})
    assert classify(frame).column("label") == wanted


def test_text_that_looks_like_a_date_or_number_stays_text(tmp_path):
    rows = [{"text": "2024-01-01", "label": "x"}, {"text": "2024-02-30", "label": "y"}, {"text": "1e5", "label": "x"}]
    assert classify(write(tmp_path, "a.jsonl", jsonl(rows))).column("text") == [row["text"] for row in rows]
    dates = write(tmp_path, "c.jsonl", jsonl([rows[0], {**rows[0], "label": "y"}]))
    assert classify(dates).column("text") == ["2024-01-01", "2024-01-01"]


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ([1, 2], [1, 2]),
        ([1, 2.5], [1.0, 2.5]),
        (["1", "2"], [1, 2]),
        (["1", "2.5"], [1.0, 2.5]),
        (["2024-01-01", "2024-01-02T03:04:05"], ["2024-01-01", "2024-01-02T03:04:05"]),
        (["nan", "2"], ["nan", "2"]),
        (pd.to_datetime(["2024-01-01", "2024-01-02"]).to_list(), ["2024-01-01T00:00:00", "2024-01-02T00:00:00"]),
    ],
)
def test_times_are_numbers_or_strings(given, wanted):
    rows = [{"text": "a", "label": str(i), "time": time} for i, time in enumerate(given)]
    assert classify(rows).column("time") == wanted
    assert classify(datasets.Dataset.from_list(rows)).column("time") == wanted


def test_class_labels_become_their_names(tmp_path):
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["music", "light"])}
    )
    data = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features)
    assert classify(data).column("label") == ["light", "music"]
    data.to_parquet(tmp_path / "a.parquet")
    assert classify(tmp_path / "a.parquet").column("label") == ["light", "music"]


def test_tags_of_class_labels_become_their_names():
    features = datasets.Features(
        {
            "tokens": datasets.List(datasets.Value("string")),
            "ner_tags": datasets.List(datasets.ClassLabel(names=["O", "B-x"])),
        }
    )
    data = datasets.Dataset.from_dict({"tokens": [["a", "b"], ["c"]], "ner_tags": [[1, 0], [0]]}, features=features)
    assert read(data, roles={"tags": "ner_tags"}, kind="tagging").column("tags") == [["B-x", "O"], ["O"]]


CONLL = "-DOCSTART- O\n\nplay\tO\njazz\tB-genre\n \t \n\nlights\tB-thing\non\tO\n"


@pytest.mark.parametrize(
    "text",
    [
        CONLL,
        CONLL.rstrip("\n"),
        CONLL.replace("\n", "\r\n"),
        "# id = 1\n" + CONLL,
        CONLL.replace("\t", " "),
        "play NN O\njazz NN B-genre\n\nlights NN B-thing\non IN O\n",
    ],
)
def test_conll(text, tmp_path):
    table = read(write(tmp_path, "a.conll", text), kind="tagging")
    assert table.column("tokens") == [["play", "jazz"], ["lights", "on"]]
    assert table.column("tags") == [["O", "B-genre"], ["B-thing", "O"]]


def test_conll_keeps_tokens_that_begin_with_a_number_sign(tmp_path):
    table = read(write(tmp_path, "a.conll", "#\tO\n#jazz\tB-tag\n# a comment\n"), kind="tagging")
    assert table.column("tokens") == [["#", "#jazz"]]


def test_conll_columns_can_be_named(tmp_path):
    path = write(tmp_path, "a.conll", "play\tO\tVB\njazz\tB-genre\tNN\n")
    table = read(path, kind="tagging", columns=["tokens", "tags", "pos"])
    assert table.column("tags") == [["O", "B-genre"]]
    assert read(path, kind="tagging").column("tags") == [["VB", "NN"]]


def test_tags_and_tokens_may_be_strings_of_words(tmp_path):
    path = write(tmp_path, "a.csv", "words,slots\nplay jazz,O B-genre\non,O\n")
    table = read(path, roles={"tokens": "words", "tags": "slots"}, kind="tagging")
    assert table.column("tokens") == [["play", "jazz"], ["on"]]
    assert table.column("tags") == [["O", "B-genre"], ["O"]]


def aligned(folder: Path) -> Path:
    write(folder, "seq.in", "play some  jazz \nlights on\n")
    write(folder, "seq.out", "O O B-genre \nB-thing O\n")
    write(folder, "label", "PlayMusic\nLight\n")
    return folder


@pytest.mark.parametrize("label", [None, "label", "intent"])
def test_line_aligned_folder(label, tmp_path):
    folder = aligned(tmp_path / "train")
    roles = {"label": label} if label else {}
    table = classify(folder, roles=roles)
    assert table.column("text") == ["play some  jazz", "lights on"]
    assert table.column("label") == ["PlayMusic", "Light"]
    tagged = read(folder, roles={"tags": "slots"}, kind="tagging")
    assert tagged.column("tokens") == [["play", "some", "jazz"], ["lights", "on"]]
    assert tagged.column("tags") == [["O", "O", "B-genre"], ["B-thing", "O"]]


def test_line_aligned_folder_without_labels(tmp_path):
    folder = aligned(tmp_path / "train")
    (folder / "label").unlink()
    assert len(read(folder, kind="tagging")) == 2
    with pytest.raises(DataError, match="no column for the role label; columns: 'text', 'tokens', 'tags'"):
        classify(folder)


def test_text_lines(tmp_path):
    path = write(tmp_path, "a.txt", "First line \u2028 still first\n\n   \nsecond, \x0b third\n")
    assert read(path, kind="language_modeling").column("text") == [
        "First line \u2028 still first",
        "second, \x0b third",
    ]


CONTEXT = "The größte city is Ōsaka. Ōsaka is old."


def squad(answers, **extra) -> str:
    qas = [{"id": "q1", "question": "Which?", "answers": answers, **extra}]
    return json.dumps({"version": "1", "data": [{"title": "Cities", "paragraphs": [{"context": CONTEXT, "qas": qas}]}]})


def test_squad_form(tmp_path):
    path = write(
        tmp_path, "a.json", squad([{"text": "Ōsaka", "answer_start": 19}, {"text": "Ōsaka", "answer_start": 26}])
    )
    table = read(path, roles={"group": "title"}, kind="question_answering")
    assert table.roles == ("question", "context", "answers", "id", "group")
    assert table.column("answers") == [{"text": ["Ōsaka", "Ōsaka"], "answer_start": [19, 26]}]
    assert table.column("group") == ["Cities"]
    assert len(read(write(tmp_path, "marked.json", "\ufeff" + path.read_text("utf-8")), kind="question_answering")) == 1


@pytest.mark.parametrize(
    "answers",
    [
        {"text": ["Ōsaka"], "answer_start": [19]},
        {"text": "Ōsaka", "answer_start": 19},
        [{"text": "Ōsaka", "answer_start": 19}],
    ],
)
def test_answers_in_any_usual_form(answers, tmp_path):
    row = {"question": "Which?", "context": CONTEXT, "answers": answers}
    wanted = [{"text": ["Ōsaka"], "answer_start": [19]}]
    data = datasets.Dataset.from_list([row])
    data.to_parquet(tmp_path / "a.parquet")
    path = write(tmp_path, "a.jsonl", jsonl([row]))
    for source in ([row], data, path, tmp_path / "a.parquet", pd.DataFrame([row])):
        assert read(source, kind="question_answering").column("answers") == wanted


def test_sequence_pairs(tmp_path):
    path = write(tmp_path, "a.csv", 'mr,ref\n"name[A], area[B]",A is in B.\n')
    table = read(path, roles={"source": "mr", "target": "ref"}, kind="seq2seq")
    assert table.column("source") == ["name[A], area[B]"]
    assert table.column("target") == ["A is in B."]


def test_a_folder_is_its_files_in_name_order(tmp_path):
    folder = tmp_path / "many"
    for name, row in (("b.jsonl", ROWS[1]), ("a.jsonl", ROWS[0]), ("c.jsonl", ROWS[2])):
        write(folder, name, jsonl([row]))
    for name in ("README.md", "LICENSE.txt", ".hidden.jsonl", "_marker.csv"):
        write(folder, name, "nothing to read")
    (folder / "deeper").mkdir()
    table = classify(folder)
    assert table.fingerprint == classify(ROWS).fingerprint
    assert table.source == str(folder)


def test_a_text_row_of_the_longest_length_is_read(tmp_path):
    rows = [{"text": "x" * 999_000, "label": "a"}, {"text": "y", "label": "b"}]
    for name, text in (
        ("a.jsonl", jsonl(rows)),
        ("a.csv", "text,label\n" + "".join(f"{r['text']},{r['label']}\n" for r in rows)),
    ):
        assert len(classify(write(tmp_path, name, text)).column("text")[0]) == 999_000


def test_the_longest_cell_of_the_csv_module_is_given_back(tmp_path):
    before = csv.field_size_limit()
    classify(write(tmp_path, "good.csv", "text,label\na,x\nb,y\n"))
    assert csv.field_size_limit() == before
    for text in ("text,text\na,x\n", "text,label\na\n", 'text,label\n"a\n'):
        with pytest.raises(DataError) as caught:
            classify(write(tmp_path, "bad.csv", text))
        assert csv.field_size_limit() == before, caught  # also while the error is alive, and a generator with it


def test_load_gives_the_splits_of_a_run_file(tmp_path):
    write(tmp_path, "data/train.jsonl", jsonl(ROWS))
    write(tmp_path, "data/dev.jsonl", jsonl(ROWS[:1]))
    write(tmp_path, "more.csv", tail_csv().replace("a2", "b2").replace("a3", "b3"))
    task = TaskConfig(kind="classification")
    config = DataConfig(train=["data/train.jsonl", "more.csv"], validation="data/dev.jsonl", label="label")
    splits = load(config, task, tmp_path)
    assert [len(splits.train), len(splits.validation)] == [5, 1]
    assert splits.test is None
    assert splits.truth == {}
    assert splits.train.source == "data/train.jsonl and 1 more"
    alone = load(DataConfig(train=str(tmp_path / "more.csv")), task, Path("/nowhere"))
    assert alone.validation is None
    assert len(alone.train) == 2


def test_load_counts_unseen_labels_where_asked(tmp_path):
    write(tmp_path, "train.jsonl", jsonl(ROWS))
    write(tmp_path, "test.jsonl", jsonl([{**ROWS[0], "label": "weather"}]))
    task = TaskConfig(kind="classification")
    config = DataConfig(train="train.jsonl", test="test.jsonl", unseen_labels="count_as_error")
    assert load(config, task, tmp_path).test.column("label") == ["weather"]
    with pytest.raises(DataError, match="weather"):
        load(config.model_copy(update={"unseen_labels": "refuse"}), task, tmp_path)


def test_load_gives_the_built_in_corpus(tmp_path):
    splits = load(DataConfig(builtin={"rows": 400, "users": 20}), TaskConfig(kind="classification"), tmp_path)
    assert len(splits.train) > len(splits.test) > 0
    assert splits.train.has("group")


@pytest.mark.parametrize("extra", [{"test": "a.jsonl"}, {"columns": ["text"]}, {"label": "intent"}])
def test_load_refuses_what_the_built_in_corpus_would_pass_over(extra, tmp_path):
    config = DataConfig(builtin={"rows": 400}, **extra)
    with pytest.raises(DataError, match=rf"^data\.{next(iter(extra))} does not go with data\.builtin"):
        load(config, TaskConfig(kind="classification"), tmp_path)


def test_read_takes_relative_paths_from_the_folder(tmp_path, monkeypatch):
    write(tmp_path, "a/rows.jsonl", jsonl(ROWS))
    assert len(classify("rows.jsonl", folder=tmp_path / "a")) == 3
    monkeypatch.chdir(tmp_path / "a")
    assert classify("rows.jsonl").source == "rows.jsonl"
    assert len(classify(["rows.jsonl"])) == 3


def test_a_test_table_may_have_one_class():
    assert len(classify(ROWS[:1], split="test")) == 1


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=4),
    st.just("2024-01-01"),
)
words = st.lists(st.sampled_from(["", "a", "ö", "2024-01-01"]), max_size=3)
values = scalars | words | st.lists(scalars, max_size=2) | st.dictionaries(st.sampled_from("ab"), scalars, max_size=2)


@settings(deadline=None, derandomize=True, max_examples=80)
@given(rows=st.lists(st.dictionaries(st.sampled_from("abc"), values), min_size=1, max_size=4), escaped=st.booleans())
def test_the_fast_reader_of_jsonl_agrees_with_the_careful_one(rows, escaped):
    data = "".join(json.dumps(row, ensure_ascii=escaped) + "\n" for row in rows).encode()
    fast = _fast(data, len(rows))
    if fast is None:
        return  # left to the careful reader
    careful = _careful(data, "a")
    assert fast.num_rows == careful.rows
    for name, values in careful.columns.items():
        assert fast.column(name).to_pylist() == values


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    rows=st.lists(
        st.fixed_dictionaries({"tokens": words}, optional={"tags": words, "id": scalars}), min_size=1, max_size=5
    ),
)
def test_the_fast_reader_of_jsonl_reads_words_right(rows):
    data = jsonl(rows).encode()
    fast = _fast(data, len(rows))
    if fast is None:
        return  # left to the careful reader
    for name in {name for row in rows for name in row}:
        assert fast.column(name).to_pylist() == [row.get(name) for row in rows]


def test_the_fast_reader_takes_words_and_leaves_nulls_in_lists():
    rows = [{"tokens": ["a", "b"], "tags": ["O", "O"]}, {"tokens": [], "tags": []}]
    assert _fast(jsonl(rows).encode(), 2) is not None
    assert _fast(jsonl([*rows, {"tokens": ["a", None], "tags": ["O"]}]).encode(), 3) is None
    assert _fast(jsonl([{"tokens": [None, False]}]).encode(), 1) is None


@settings(deadline=None, derandomize=True, max_examples=40)
@given(
    st.lists(
        st.tuples(
            st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1).filter(str.strip),
            st.sampled_from("xyz"),
        ),
        min_size=2,
        max_size=5,
    ).filter(lambda rows: len({label for _, label in rows}) > 1)
)
def test_csv_and_jsonl_give_back_any_text(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("round")
    named = [{"text": text, "label": label} for text, label in rows]
    with (folder / "a.csv").open("w", encoding="utf-8", newline="") as sink:
        writer = csv.writer(sink, lineterminator="\n", quoting=csv.QUOTE_ALL)
        writer.writerows([["text", "label"], *rows])
    table = classify(folder / "a.csv")
    assert table.column("text") == [text for text, _ in rows]
    assert table.fingerprint == classify(write(folder, "a.jsonl", jsonl(named))).fingerprint
