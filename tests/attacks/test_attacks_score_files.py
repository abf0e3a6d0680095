"""Files of scores: three formats to the same arrays, and one clear line for each fault."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from troth.attacks.score_files import read_scores
from troth.errors import DataError

SCORES = [0.5, -1.25, 3e-7, 12.0]
MEMBER = [True, False, False, True]
IDS = ["a", "b", "c", "d"]


def written(folder: Path, ending: str, **columns: object) -> Path:
    path = folder / f"scores{ending}"
    if ending == ".npz":
        np.savez(path, **{name: np.asarray(values) for name, values in columns.items()})
    elif ending == ".csv":
        pd.DataFrame(columns).to_csv(path, index=False)
    else:
        pd.DataFrame(columns).to_parquet(path, index=False)
    return path


@pytest.mark.parametrize("ending", [".csv", ".npz", ".parquet"])
def test_every_format_gives_the_same_arrays(tmp_path: Path, ending: str) -> None:
    found = read_scores(written(tmp_path, ending, score=SCORES, member=MEMBER, id=IDS, other=[1, 2, 3, 4]))
    assert len(found) == 4
    assert found.scores.dtype == np.float64
    assert found.scores.tolist() == SCORES
    assert found.member.dtype == np.bool_
    assert found.member.tolist() == MEMBER
    assert found.ids is not None
    assert found.ids.tolist() == IDS
    assert read_scores(str(written(tmp_path, ending, member=MEMBER, score=SCORES))).ids is None


@pytest.mark.parametrize(
    ("yes", "no"),
    [("1", "0"), ("1.0", "0.0"), ("true", "False"), ("YES", "no"), (" member", "Non-Member"), ("Member", "nonmember")],
)
def test_spellings_of_members(tmp_path: Path, yes: str, no: str) -> None:
    path = tmp_path / "scores.csv"
    path.write_text(f"score,member\n1,{yes}\n2,{no}\n", encoding="utf-8")
    assert read_scores(path).member.tolist() == [True, False]


@pytest.mark.parametrize("kind", [np.int64, np.float32, np.bool_, np.uint8])
def test_members_as_numbers_in_arrays(tmp_path: Path, kind: type) -> None:
    path = written(tmp_path, ".npz", score=np.array(SCORES, dtype=np.float32), member=np.array(MEMBER, dtype=kind))
    assert read_scores(path).member.tolist() == MEMBER


def test_ids_may_be_numbers(tmp_path: Path) -> None:
    for ending in (".csv", ".npz", ".parquet"):
        found = read_scores(written(tmp_path, ending, score=SCORES, member=MEMBER, id=[1, 2, 3, 4]))
        assert found.ids is not None
        assert found.ids.tolist() == ["1", "2", "3", "4"]


def refused(path: Path, message: str) -> str:
    with pytest.raises(DataError, match=message) as caught:
        read_scores(path)
    text = str(caught.value)
    assert "\n" not in text
    assert "secret" not in text
    return text


@pytest.mark.parametrize("ending", [".csv", ".npz", ".parquet"])
def test_faults_in_rows_are_named_by_row(tmp_path: Path, ending: str) -> None:
    for bad in (np.nan, np.inf):
        scores = [0.5, bad, 1.0, 2.0]
        assert refused(written(tmp_path, ending, score=scores, member=MEMBER), "row 2.*: score is no finite number")
    assert refused(written(tmp_path, ending, score=SCORES, member=[1, 0, 2, 0]), "row 3.*: member is not 1 or 0")
    members = ["yes", "no", "secret", "no"]
    assert refused(written(tmp_path, ending, score=SCORES, member=members), "row 3.*: member is not 1 or 0")
    texts = ["1", "secret", "2", "3"]
    assert refused(written(tmp_path, ending, score=texts, member=MEMBER), "row 2.*: score is no finite number")
    assert refused(written(tmp_path, ending, score=SCORES, member=[True] * 4), "all 4 rows are members")
    assert refused(written(tmp_path, ending, score=SCORES, member=[False] * 4), "all 4 rows are non-members")
    ids = ["secret", "b", "secret", "d"]
    assert refused(
        written(tmp_path, ending, score=SCORES, member=MEMBER, id=ids), r"row 3.*: its id .* \(1 rows in all\)"
    )


@pytest.mark.parametrize("ending", [".csv", ".npz", ".parquet"])
def test_missing_columns_and_rows(tmp_path: Path, ending: str) -> None:
    assert refused(
        written(tmp_path, ending, loss=SCORES, member=MEMBER), "no column score; columns here: 'loss', 'member'"
    )
    assert refused(
        written(tmp_path, ending, a=SCORES), "no column score and member; columns here: 'a'; wanted: score, member"
    )
    empty = "no rows" if ending != ".csv" else "a header and no rows"
    assert refused(written(tmp_path, ending, score=[], member=[]), empty)


def test_an_id_twice_on_one_side_is_no_overlap(tmp_path: Path) -> None:
    found = read_scores(written(tmp_path, ".csv", score=SCORES, member=MEMBER, id=["a", "b", "b", "a"]))
    assert found.ids is not None
    assert found.ids.tolist() == ["a", "b", "b", "a"]


def test_missing_cells_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "scores.csv"
    path.write_text("score,member,id\n1,1,a\n2,0,\n", encoding="utf-8")
    assert refused(path, "row 2.*: id is missing")
    path.write_text("score,member\n1,1\n,0\n", encoding="utf-8")
    assert refused(path, "row 2.*: score is no finite number")
    table = written(tmp_path, ".parquet", score=SCORES, member=[True, None, False, False])
    assert refused(table, "row 2.*: member is not")
    assert refused(
        written(tmp_path, ".parquet", score=SCORES, member=MEMBER, id=["a", None, "b", "c"]), "row 2.*: id is missing"
    )


def test_files_that_are_none(tmp_path: Path) -> None:
    assert refused(tmp_path / "none.csv", "none.csv: no such file")
    assert refused(tmp_path / "none.npz", "none.npz: no such file")
    assert refused(tmp_path, "a folder; give one file")
    assert refused(tmp_path / "scores.json", r"read from \.csv, \.npz, \.parquet")
    assert refused(tmp_path / "scores", r"read from \.csv, \.npz, \.parquet")
    for ending in (".csv", ".npz", ".parquet"):
        path = tmp_path / f"broken{ending}"
        path.write_bytes(b"")
        assert refused(path, "empty file")
        path.write_bytes(b"\x00\x01 no such format")
        assert refused(path, f"broken{ending}: ")


def test_archives_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "scores.npz"
    np.savez(path, score=np.array(SCORES), member=np.array([1, 0, "x", None], dtype=object))
    assert refused(path, "Python objects, which would have to be unpickled")
    np.savez(path, score=np.array(SCORES), member=np.array(MEMBER[:3]))
    assert refused(path, "score has 4, member has 3")
    np.savez(path, score=np.ones((2, 2)), member=np.array(MEMBER))
    assert refused(path, r"score has shape \[2, 2\]")
    whole = written(tmp_path, ".npz", score=SCORES, member=MEMBER).read_bytes()
    path.write_bytes(whole[:-40])
    assert refused(path, "not a NumPy archive")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("score.npy", b"no array")
        archive.writestr("member.npy", b"no array")
    assert refused(path, "an array that is broken")
