"""Populations: columns and offsets say who holds what, on disk as in memory; nothing is lost, nothing half-written."""

from __future__ import annotations

import hashlib
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from troth.errors import ConfigError, DataError, RunError
from troth.federated.client_names import ClientNames
from troth.federated.population import FederatedData, by_user, natural, rows_by_client, split_clients
from troth.federated.population_files import open_population, save_population, verify_population

assignments = st.integers(1, 12).flatmap(
    lambda clients: st.tuples(
        st.lists(st.integers(0, clients - 1), min_size=1, max_size=60).map(np.array), st.just(clients)
    )
)


def held(data: FederatedData) -> list[list[int]]:
    return [data.rows_of(client).tolist() for client in range(len(data))]


@given(assignments)
@settings(deadline=None)
def test_every_client_holds_its_rows_in_table_order(given: tuple[np.ndarray, int]) -> None:
    owner, clients = given
    expected = [np.flatnonzero(owner == k).tolist() for k in range(clients)]
    data = FederatedData.from_assignment(owner, clients, keep_empty=True)
    assert held(data) == expected and data.counts.tolist() == [len(rows) for rows in expected] and data.dropped == 0
    dropped = FederatedData.from_assignment(owner, clients)
    filled = [rows for rows in expected if rows]
    assert held(dropped) == filled and dropped.dropped == clients - len(filled)


@given(assignments, st.data())
@settings(deadline=None)
def test_gather_is_a_loop_over_clients(given: tuple[np.ndarray, int], draw: st.DataObject) -> None:
    owner, clients = given
    data = FederatedData.from_assignment(owner, clients, keep_empty=True)
    wanted = np.array(draw.draw(st.lists(st.integers(0, clients - 1), max_size=8)), dtype=np.int64)
    rows, offsets = data.gather(wanted)
    assert rows.dtype == offsets.dtype == np.int64 and len(offsets) == len(wanted) + 1
    parts = [rows[a:b].tolist() for a, b in pairwise(offsets)]
    assert parts == [data.rows_of(int(k)).tolist() for k in wanted]


@pytest.mark.parametrize("clients", [3, 1 << 16, (1 << 16) + 1, 200_000])
def test_grouping_is_a_stable_sort_for_few_and_for_many_clients(clients: int) -> None:
    owner = np.random.default_rng(0).integers(clients, size=50_000)
    owner[:3] = clients - 1
    assert rows_by_client(owner, clients).tolist() == np.argsort(owner, kind="stable").tolist()


def test_columns_are_as_narrow_as_fits_and_the_fingerprint_does_not_mind() -> None:
    owner = np.random.default_rng(1).integers(5, size=40)
    data = FederatedData.from_assignment(owner, 5)
    assert data.rows.dtype == data.offsets.dtype == np.int32
    wide = FederatedData(data.rows.astype(np.int64), data.offsets.astype(np.int64))
    plain = hashlib.sha256(wide.rows.tobytes() + wide.offsets.tobytes()).hexdigest()
    assert data.fingerprint == wide.fingerprint == plain


def test_users_become_clients_in_order_of_appearance() -> None:
    data = by_user(["b", "a", "b", 7, "a", "b"])
    assert data.names is not None and data.names.tolist() == ["b", "a", "7"]
    assert data.counts.tolist() == [3, 2, 1]
    assert data.rows_of(0).tolist() == [0, 2, 5]
    assert data.summary()["skew"] == pytest.approx((9 + 4 + 1) / 3 / 4)


@pytest.mark.parametrize(
    "column",
    [
        ["ä", "b", "ä", "c"],
        np.array(["ä", "b", "ä", "c"], dtype=object),
        np.array(["ä", "b", "ä", "c"]),
        pa.array(["ä", "b", "ä", "c"]),
        pa.chunked_array([["ä", "b"], ["ä", "c"]]),
        pa.chunked_array([["ä", "b"], [], ["ä", "c"]], type=pa.large_string()),
        pa.array(["ä", "b", "ä", "c"]).dictionary_encode(),
        pa.chunked_array([pa.array(["x", "ä", "b"])[1:].dictionary_encode(), pa.array(["ä", "c"]).dictionary_encode()]),
    ],
)
def test_keys_of_any_form_are_the_same_population(column: object) -> None:
    data = natural(column, "rows", "group")  # type: ignore[arg-type]
    assert data.names is not None
    assert data.names.tolist() == ["ä", "b", "c"] and held(data) == [[0, 2], [1], [3]]


@pytest.mark.parametrize("keys", [[3, 1, 3], np.array([3, 1, 3]), pa.array([3, 1, 3], pa.uint8()), [3, "1", "3"]])
def test_numbers_are_compared_as_text(keys: object) -> None:
    names = natural(keys).names  # type: ignore[arg-type]
    assert names is not None and names.tolist() == ["3", "1"]


@pytest.mark.parametrize("keys", [[1.5, 2.0], [True, False], [2**70, 1], [(1, 2), "a"]])
def test_other_keys_go_through_their_text(keys: list[object]) -> None:
    names = natural(keys).names
    assert names is not None and names.tolist() == [str(k) for k in keys]


@pytest.mark.parametrize("nobody", [None, "", float("nan")])
@pytest.mark.parametrize("some", ["a", 7])
def test_a_row_without_a_user_is_named(nobody: object, some: object) -> None:
    with pytest.raises(DataError, match=r"train.jsonl: row 1 has no user \(2 such rows\)"):
        by_user([some, nobody, some, nobody], "train.jsonl")
    with pytest.raises(DataError, match=r"row 1 has no group \(1 such rows\); give each row a group"):
        natural(pa.array(["a", None]), "train.jsonl", "group")


def test_bad_assignments_are_refused() -> None:
    with pytest.raises(DataError, match="no rows"):
        by_user([])
    with pytest.raises(DataError, match="assigned to client 3"):
        FederatedData.from_assignment(np.array([0, 3]), 3)
    with pytest.raises(DataError, match="or -1"):
        FederatedData.from_assignment(np.array([0, -1]), 3)
    for wrong in (1, -1):
        with pytest.raises(IndexError):
            by_user(["a"]).rows_of(wrong)
        with pytest.raises(IndexError):
            by_user(["a"]).gather(np.array([0, wrong]))


def test_names_are_one_text_and_offsets() -> None:
    spoken = ["ann", "", "Zoë", "日本", "bo"]
    names = ClientNames.of(spoken)
    assert list(names) == spoken and names.tolist() == spoken and len(names) == 5
    assert names.take(np.array([3, 0, 3])).tolist() == ["日本", "ann", "日本"]
    assert ClientNames.from_arrow(pa.array(spoken)[2:]).tolist() == spoken[2:]
    assert ClientNames.of([]).tolist() == [] and ClientNames.of([""]).tolist() == [""]
    with pytest.raises(IndexError):
        names[5]


def test_dropping_empty_clients_keeps_names_with_their_rows() -> None:
    data = FederatedData.from_assignment(np.array([2, 0, 2]), 4, ["a", "b", "c", "d"])
    assert data.names is not None and data.names.tolist() == ["a", "c"] and data.dropped == 2
    kept = FederatedData.from_assignment(np.array([2, 0, 2]), 4, ["a", "b", "c", "d"], keep_empty=True)
    assert kept.names is not None and kept.names.tolist() == ["a", "b", "c", "d"]
    assert kept.summary()["empty_clients"] == 2 and kept.summary()["skew"] == pytest.approx(2.5 / 1.5**2)


def test_a_population_comes_back_from_disk_as_it_was(tmp_path: Path) -> None:
    data = FederatedData.from_assignment(np.array([2, 0, 2, 3]), 5, ["a", "b", "Zoë", "d", ""], keep_empty=True)
    save_population(data, tmp_path / "population")
    back = open_population(tmp_path / "population")
    assert held(back) == held(data) and back.names is not None and back.names.tolist() == data.names.tolist()  # type: ignore[union-attr]
    assert back.fingerprint == data.fingerprint and back.summary() == data.summary()
    assert not back.rows.flags.writeable and not back.rows.flags.owndata
    verify_population(back)
    rows, _ = back.gather(np.array([3, 2]))
    assert rows.tolist() == [3, 0, 2]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["population"]


def test_the_stored_fingerprint_is_used_and_can_be_verified(tmp_path: Path) -> None:
    data = FederatedData.from_assignment(np.arange(100) % 7, 7)
    save_population(data, tmp_path / "p")
    rows = np.array(data.rows)
    rows[3] = 50
    np.save(tmp_path / "p" / "rows.npy", rows)
    changed = open_population(tmp_path / "p")
    assert changed.fingerprint == data.fingerprint  # nothing was read to know it
    with pytest.raises(DataError, match="its rows are not those that were saved"):
        verify_population(changed, "p")


def test_a_population_that_is_there_gives_way_only_when_told(tmp_path: Path) -> None:
    one, two = by_user(["a", "a", "b"]), by_user(["a", "b", "b"])
    save_population(one, tmp_path / "p")
    with pytest.raises(RunError, match="cannot be written"):
        save_population(two, tmp_path / "p")
    assert open_population(tmp_path / "p").fingerprint == one.fingerprint
    save_population(two, tmp_path / "p", replace=True)
    assert open_population(tmp_path / "p").fingerprint == two.fingerprint
    assert sorted(p.name for p in tmp_path.iterdir()) == ["p"]


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(RunError, match="no space left"):
        save_population(by_user(["a"]), tmp_path / "p")
    assert list(tmp_path.iterdir()) == []


def test_damaged_populations_are_refused_in_one_line(tmp_path: Path) -> None:
    place = tmp_path / "p"
    with pytest.raises(DataError, match="no population there"):
        open_population(place)
    data = FederatedData.from_assignment(np.arange(100) % 7, 7)

    def saved() -> Path:
        save_population(data, place, replace=True)
        return place

    (saved() / "facts.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read"):
        open_population(place)
    (saved() / "facts.json").write_text(json.dumps({"kind": "index set", "version": 1}))
    with pytest.raises(DataError, match="not that of a population"):
        open_population(place)
    (saved() / "facts.json").write_text(json.dumps({"kind": "population", "version": 1}))
    with pytest.raises(DataError, match="speaks of no arrays"):
        open_population(place)
    (saved() / "facts.json").write_text(
        json.dumps({"kind": "population", "version": 1, "arrays": {}, "facts": {"fingerprint": ""}})
    )
    with pytest.raises(DataError, match="holds no population, or part of one"):
        open_population(place)
    whole = (saved() / "rows.npy").read_bytes()
    (place / "rows.npy").write_bytes(whole[:-8])
    with pytest.raises(DataError, match=r"rows\.npy is missing or damaged"):
        open_population(place)
    (saved() / "offsets.npy").unlink()
    with pytest.raises(DataError, match=r"offsets\.npy is missing or damaged"):
        open_population(place)
    np.save(saved() / "rows.npy", np.arange(99, dtype=np.int32))
    with pytest.raises(DataError, match="not the array"):
        open_population(place)
    offsets = np.array(data.offsets)
    offsets[2] = 99
    np.save(saved() / "offsets.npy", offsets)
    with pytest.raises(DataError, match="do not fit"):
        open_population(place)
    np.save(saved() / "rows.npy", np.array([object()] * 100), allow_pickle=True)
    with pytest.raises(DataError, match=r"rows\.npy is missing or damaged"):
        open_population(place)


def test_held_out_clients_are_whole_and_known_by_number(tmp_path: Path) -> None:
    users = [f"u{n}" for n in np.random.default_rng(0).integers(20, size=300)]
    data = by_user(users)
    training, out = split_clients(data, 0.25, np.random.default_rng(3))
    assert len(out) == 5 and len(training) + len(out) == len(data)
    assert training.numbers is not None and out.numbers is not None
    assert sorted([*training.numbers.tolist(), *out.numbers.tolist()]) == list(range(len(data)))
    for part in (training, out):
        for k, number in enumerate(part.numbers):  # type: ignore[arg-type]
            assert part.rows_of(k).tolist() == data.rows_of(int(number)).tolist()
            assert part.names[k] == data.names[int(number)]  # type: ignore[index]
    again = split_clients(data, 0.25, np.random.default_rng(3))
    assert again[1].fingerprint == out.fingerprint
    assert split_clients(data, 0.25, np.random.default_rng(4))[1].fingerprint != out.fingerprint
    inner, _ = split_clients(training, 0.5, np.random.default_rng(0))
    assert inner.numbers is not None and set(inner.numbers) <= set(training.numbers)  # numbers of the first population
    save_population(out, tmp_path / "out")
    assert open_population(tmp_path / "out").numbers.tolist() == out.numbers.tolist()  # type: ignore[union-attr]


def test_every_client_is_held_out_as_often_as_any_other() -> None:
    """400 draws of 2 of 8: a count is binomial(400, 1/4); 5 standard deviations miss with chance below 1e-5 in all."""
    data = FederatedData.from_assignment(np.arange(8), 8)
    often = np.zeros(8)
    for seed in range(400):
        often[split_clients(data, 0.25, np.random.default_rng(seed))[1].numbers] += 1
    assert often.sum() == 800 and np.abs(often - 100).max() < 5 * np.sqrt(400 * 0.25 * 0.75)


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, float("nan")])
def test_shares_that_hold_out_nobody_or_all_are_refused(share: float) -> None:
    with pytest.raises(ConfigError, match=r"federated\.held_out_clients"):
        split_clients(by_user(["a", "b"]), share, np.random.default_rng(0))


def test_at_least_one_client_is_on_each_side() -> None:
    two = by_user(["a", "b", "b"])
    for share in (0.01, 0.99):
        assert [len(part) for part in split_clients(two, share, np.random.default_rng(0))] == [1, 1]
    with pytest.raises(ConfigError, match="there is 1 client"):
        split_clients(by_user(["a"]), 0.5, np.random.default_rng(0))


def test_a_subset_of_nobody_can_be_kept(tmp_path: Path) -> None:
    nobody = by_user(["a", "b"]).subset(np.array([], dtype=np.int64))
    assert len(nobody) == 0 and nobody.gather(np.array([], dtype=np.int64))[0].tolist() == []
    save_population(nobody, tmp_path / "p")
    assert len(open_population(tmp_path / "p")) == 0


def test_fingerprint_tells_populations_apart() -> None:
    one, two = by_user(["a", "a", "b"]), by_user(["a", "b", "b"])
    assert one.fingerprint == by_user(["x", "x", "y"]).fingerprint != two.fingerprint
