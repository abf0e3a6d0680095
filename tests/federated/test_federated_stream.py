"""The stream: what a period holds equals a simulation by hand, and nothing that left is ever gathered again."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from troth.config_federated import StreamConfig
from troth.data import from_rows
from troth.errors import ConfigError, DataError, PrivacyError, ResumeError
from troth.federated.deletions import Deletions, deletion_periods, read_deletions
from troth.federated.population import FederatedData, by_user
from troth.federated.stream import Period, Stream
from troth.federated.stream_events import Events, Periods, make_periods, table_times
from troth.seeds import PublicSeeds

PERIODS = 6
DEVICES = 7
SEEDS = PublicSeeds(3)
EDGES = Periods(np.arange(PERIODS + 1.0))
PROTOCOLS = ("stream", "last", "cumulative", "all")


class PoisonedError(AssertionError):
    """A row was read that the device does not hold any more."""


class PoisonedTable:
    """Encoded rows of which only those in `readable` can be read."""

    def __init__(self, rows: int) -> None:
        self.values = np.arange(rows) * 10
        self.readable: set[int] = set()
        self.read = 0

    def collate(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        if bad := set(rows.tolist()) - self.readable:
            raise PoisonedError(f"{sorted(bad)}")
        self.read += len(rows)
        return self.values[rows]


def config(**changes: object) -> StreamConfig:
    return StreamConfig(**{"periods": PERIODS, **changes})


def random_events(seed: int, rows: int = 90) -> tuple[Events, Deletions]:
    rng = np.random.default_rng(seed)
    devices = np.minimum(rng.zipf(1.5, rows) - 2, DEVICES - 1)  # -1: no part of the stream; some devices hold nothing
    times = np.floor(rng.uniform(0, PERIODS * 10, rows)) / 10  # with ties
    deleted = np.where(rng.random(rows) < 0.3, rng.integers(0, PERIODS + 1, rows), PERIODS)
    return Events.of(devices, times, DEVICES), Deletions(deleted.astype(np.int64))


class Device:
    """One device that follows the rules row by row."""

    def __init__(self, settings: StreamConfig) -> None:
        self.settings = settings
        self.held: list[tuple[int, int]] = []  # row, period of arrival; oldest first
        self.counts = {"arrived": 0, "aged": 0, "capped": 0, "deleted": 0}
        self.replayable: set[int] = set()  # rows that ever expired by age

    def live(self, period: int, arriving: list[int], deleted: NDArray[np.int64]) -> None:
        self.counts = dict.fromkeys(self.counts, 0)
        for row in arriving:
            if deleted[row] >= period:
                self.held.append((row, period))
                self.counts["arrived"] += 1
        kept = {"stream": self.settings.retention, "last": 1}.get(self.settings.protocol, 10**6)
        fresh = [(row, at) for row, at in self.held if period - at < kept]
        aged = {row for row, _ in set(self.held) - set(fresh) if deleted[row] > period}
        self.replayable |= aged
        self.counts["aged"] = len(aged)
        self.counts["deleted"] = sum(deleted[row] == period for row, _ in self.held)
        if self.settings.protocol == "stream" and self.settings.cap is not None:
            out, fresh = fresh[: -self.settings.cap], fresh[-self.settings.cap :]
            self.counts["capped"] = sum(deleted[row] > period for row, _ in out)
        self.held = [(row, at) for row, at in fresh if deleted[row] > period]
        self.replayable = {row for row in self.replayable if deleted[row] > period}


@dataclass(frozen=True)
class ByHand:
    """A period by hand: rows of each device, counts, and every row that may be in a replay memory."""

    rows: list[list[int]]
    counts: dict[str, int]
    replayable: set[int]

    @property
    def window(self) -> set[int]:
        return set(chain.from_iterable(self.rows))


def by_hand(events: Events, deletions: Deletions, settings: StreamConfig) -> list[ByHand]:
    devices = [Device(settings) for _ in range(events.clients)]
    order = sorted(range(len(events.times)), key=lambda row: (events.times[row], row))
    out = []
    for period in range(PERIODS):
        for number, device in enumerate(devices):
            arriving = [
                row
                for row in order
                if events.devices[row] == number
                and (period == 0 if settings.protocol == "all" else int(events.times[row]) == period)
            ]
            device.live(period, arriving, deletions.periods)
        counts = {name: sum(device.counts[name] for device in devices) for name in devices[0].counts}
        replayable = set(chain.from_iterable(device.replayable for device in devices))
        out.append(ByHand([[row for row, _ in device.held] for device in devices], counts, replayable))
    return out


def held(period: Period) -> list[list[int]]:
    return [period.population.rows_of(client).tolist() for client in range(len(period.population))]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("cap", [None, 1, 3])
@pytest.mark.parametrize("retention", [1, 3])
def test_each_period_is_what_the_devices_hold_by_hand(protocol: str, cap: int | None, retention: int) -> None:
    settings = config(protocol=protocol, cap=cap, retention=retention)
    for seed in range(6):
        events, deletions = random_events(seed)
        stream = Stream(events, settings, seeds=SEEDS, deletions=deletions, periods=EDGES)
        for number, want in enumerate(by_hand(events, deletions, settings)):
            found = stream.advance()
            assert held(found) == want.rows
            assert found.population.counts.tolist() == [len(rows) for rows in want.rows]
            assert {name: getattr(found, name) for name in want.counts} == want.counts
            assert np.flatnonzero(stream.allowed(number)).tolist() == sorted(want.window)
            newest = [int(events.times[rows[-1]]) if rows else -1 for rows in want.rows]
            if protocol != "all":
                assert found.last_seen.tolist() == newest


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("replay", [None, "reservoir", "gradient_diverse"])
def test_no_row_that_expired_or_was_deleted_is_ever_read(protocol: str, replay: str | None) -> None:
    memory = None if replay is None else {"by": replay, "size": 2}
    settings = config(protocol=protocol, cap=4, retention=2, replay=memory)
    replayed = 0
    for seed in range(4):
        events, deletions = random_events(seed)
        table = PoisonedTable(len(events.times))
        stream = Stream(events, settings, seeds=SEEDS, deletions=deletions, periods=EDGES)

        def gradients(rows: NDArray[np.int64], stream: Stream = stream, table: PoisonedTable = table) -> NDArray:
            stream.guard(rows)
            return np.stack([np.sin(table.collate(rows)), np.cos(table.collate(rows))], axis=1).astype(np.float32)

        for number, want in enumerate(by_hand(events, deletions, settings)):
            alive = {row for row in range(len(events.times)) if deletions.periods[row] > number}
            table.readable &= alive  # requests hold before the memory is asked for gradients
            period = stream.advance(gradients)
            table.readable = want.window | (want.replayable if replay and protocol == "stream" else set())
            for client in range(len(period.training)):
                mine = period.training.rows_of(client)
                stream.guard(mine)
                table.collate(mine)
                assert all(events.devices[row] == client for row in mine)
                assert mine.tolist()[: len(want.rows[client])] == want.rows[client]
                assert len(mine) - len(want.rows[client]) <= 2
            replayed += len(period.training.rows) - len(want.window)
            for row in set(range(len(events.times))) - set(period.training.rows.tolist()):
                with pytest.raises(PrivacyError, match=f"row {row} "):
                    stream.guard(np.array([row]))
        assert table.read > 0
    assert (replayed > 0) == (replay is not None and protocol == "stream")


def test_the_poisoned_table_bites() -> None:
    table = PoisonedTable(3)
    table.readable = {1}
    with pytest.raises(PoisonedError):
        table.collate(np.array([1, 2]))


def test_a_row_that_the_cap_pushed_out_stays_out_when_a_deletion_makes_room() -> None:
    events = Events.of(np.zeros(4, dtype=int), np.array([0.0, 0.1, 0.2, 2.0]), 1)
    stream = Stream(
        events,
        config(periods=3, cap=2, retention=3),
        seeds=SEEDS,
        deletions=Deletions(np.array([3, 3, 1, 3])),
        periods=Periods(np.arange(4.0)),
    )
    assert [held(stream.advance()) for _ in range(3)] == [[[1, 2]], [[1]], [[1, 3]]]


def test_a_row_asked_to_be_forgotten_before_it_arrives_never_arrives() -> None:
    events = Events.of(np.array([0, 0]), np.array([0.0, 1.0]), 1)
    deletions = Deletions(np.array([2, 0]))
    stream = Stream(events, config(periods=2), seeds=SEEDS, deletions=deletions, periods=Periods(np.arange(3.0)))
    assert [held(stream.advance()), held(stream.advance())] == [[[0]], [[0]]]


def test_the_guard_says_what_became_of_a_row() -> None:
    events = Events.of(np.array([0, 0, 0, -1]), np.array([0.0, 1.0, 2.0, 0.0]), 1)
    stream = Stream(
        events,
        config(periods=3, retention=1),
        seeds=SEEDS,
        deletions=Deletions(np.array([3, 1, 3, 3])),
        periods=Periods(np.arange(4.0)),
    )
    with pytest.raises(PrivacyError, match="no period is open"):
        stream.guard(np.array([0]))
    stream.advance()
    stream.guard(np.array([0, 0]))
    with pytest.raises(PrivacyError, match=r"row -4 .* is no part"):
        stream.guard(np.array([-4]))  # would be row 0, counted from the end
    stream.guard(np.zeros(0, dtype=int))
    stream.advance()
    for row, fate in ((0, "has expired"), (1, "was deleted"), (2, "has not arrived"), (3, "no part"), (9, "no part")):
        with pytest.raises(PrivacyError, match=rf"row {row} \(1 such rows of 1\).*{fate}"):
            stream.guard(np.array([row]))
    with pytest.raises(PrivacyError, match=r"row -1 \(2 such rows of 2\)"):
        stream.guard(np.array([-1, -4]))


def test_a_period_that_is_over_is_not_opened_again() -> None:
    events, _ = random_events(0)
    stream = Stream(events, config(), seeds=SEEDS, periods=EDGES)
    assert [stream.advance().index for _ in range(PERIODS)] == list(range(PERIODS))
    with pytest.raises(PrivacyError, match="6 periods and the last one is over"):
        stream.advance()
    with pytest.raises(ValueError, match="period 6 of 6"):
        stream.allowed(6)


def test_names_and_numbers_of_clients_go_along() -> None:
    everyone = FederatedData.from_assignment(np.array([0, 1, 2, 1]), 3, ["a", "b", "c"])
    some = everyone.subset(np.array([1, 2]))
    events = Events.of_population(some, np.array([0.0, 0.0, 1.0, 1.0]))
    period = Stream(events, config(periods=2), seeds=SEEDS).advance()
    assert held(period) == [[1], []]
    assert period.population.numbers.tolist() == [1, 2]
    assert period.population.names[0] == "b"
    assert (period.start, period.end) == (0.0, 0.5)
    with pytest.raises(DataError, match="hold row 3, and there are 2 times"):
        Events.of_population(some, np.zeros(2))


@pytest.mark.parametrize("by", ["reservoir", "gradient_diverse"])
@pytest.mark.parametrize("stop", [0, 1, 3, 5])
def test_a_restored_stream_goes_on_as_if_it_had_not_stopped(by: str, stop: int) -> None:
    events, deletions = random_events(1)
    settings = config(retention=2, replay={"by": by, "size": 2})

    def gradients(rows: NDArray[np.int64]) -> NDArray[np.float32]:
        return np.random.default_rng(5).normal(size=(len(events.times), 3))[rows].astype(np.float32)

    def made() -> Stream:
        return Stream(events, settings, seeds=SEEDS, deletions=deletions, periods=EDGES)

    whole, first, second = made(), made(), made()
    assert whole.fingerprint == first.fingerprint
    expected = [whole.advance(gradients) for _ in range(PERIODS)]
    assert any(period.deleted for period in expected)
    for _ in range(stop + 1):
        first.advance(gradients)
    state = first.state()
    assert all(array.dtype == np.int64 for array in state.values())
    found = [second.restore(state), *(second.advance(gradients) for _ in range(PERIODS - stop - 1))]
    for one, other in zip(expected[stop:], found, strict=True):
        assert one.training.fingerprint == other.training.fingerprint
        assert (one.arrived, one.aged, one.capped, one.deleted) == (
            other.arrived,
            other.aged,
            other.capped,
            other.deleted,
        )
    assert made().restore(made().state()) is None


def test_a_state_of_other_data_is_refused() -> None:
    events, deletions = random_events(1)
    settings = config(retention=1, replay={"size": 2})

    def made(**more: object) -> Stream:
        return Stream(events, settings, seeds=SEEDS, deletions=deletions, periods=EDGES, **more)

    stream = made()
    for _ in range(4):
        stream.advance()
    state = stream.state()
    assert (state["replay_rows"] >= 0).any()
    with pytest.raises(ResumeError, match="not whole"):
        made().restore({"period": state["period"]})
    for changes in (
        {"period": np.array([PERIODS, 0])},
        {"replay_devices": state["replay_devices"][::-1].copy()},
        {"replay_rows": np.where(deletions.periods[state["replay_rows"]] == 9, 0, int(np.argmin(deletions.periods)))},
        {"replay_rows": np.full_like(state["replay_rows"], 10**9)},
        {"replay_rows": state["replay_rows"][1:]},
    ):
        with pytest.raises(ResumeError, match="belongs to other data"):
            made().restore({**state, **changes})
    bare = Stream(events, config(retention=1), seeds=SEEDS, deletions=deletions, periods=EDGES)
    with pytest.raises(ResumeError):
        bare.restore(state)
    other = Stream(events, config(retention=2), seeds=SEEDS, deletions=deletions, periods=EDGES)
    assert other.fingerprint != bare.fingerprint


def test_what_a_baseline_passes_over_is_told() -> None:
    events, _ = random_events(0)
    quiet = Stream(events, config(), seeds=SEEDS, periods=EDGES)
    loud = Stream(events, config(protocol="all", cap=3), seeds=SEEDS, periods=EDGES)
    assert quiet.warnings == events.warnings
    assert [w for w in loud.warnings if "cap and replay play no part under protocol = 'all'" in w]


def test_bad_input_is_refused() -> None:
    events, _ = random_events(0)
    with pytest.raises(DataError, match="deletions of 2 rows for a stream of 90"):
        Stream(events, config(), seeds=SEEDS, deletions=Deletions(np.array([1, 1])), periods=EDGES)
    with pytest.raises(DataError, match="outside of the periods"):
        Stream(events, config(), seeds=SEEDS, periods=Periods(np.arange(3.0)))
    stream = Stream(events, config(replay={"by": "gradient_diverse"}), seeds=SEEDS, periods=EDGES)
    with pytest.raises(ConfigError, match="needs an engine that gives gradients"):
        stream.advance()
    reservoir = Stream(events, config(replay={"size": 1}), seeds=SEEDS, periods=EDGES)
    reservoir.advance()
    with pytest.raises(ValueError, match="period 1 is not open"):
        reservoir.allowed(1)


def test_a_table_and_a_file_of_requests_make_a_stream(tmp_path: Path) -> None:
    rows = [
        {"text": "x", "user": user, "id": f"r{number}", "time": f"2026-05-0{day}T06:00:00Z"}
        for number, (user, day) in enumerate([("ann", 1), ("bob", 1), ("ann", 2), ("bob", 3), ("ann", 3), ("cat", 4)])
    ]
    table = from_rows(rows, "train.jsonl")
    (tmp_path / "forget.csv").write_text("time,user,id\n2026-05-02T10:00:00Z,ann,\n2026-05-01T07:00:00Z,,r1\n")
    settings = StreamConfig(period="1d", retention=2)
    events = Events.of_population(by_user(table.column("user")), table_times(table))
    periods = make_periods(settings, events.times)
    deletions = deletion_periods(
        read_deletions(tmp_path / "forget.csv"), periods, 6, users=table.column("user"), ids=table.column("id")
    )
    stream = Stream(events, settings, seeds=SEEDS, deletions=deletions)
    found = [held(stream.advance()) for _ in range(len(stream))]
    assert found == [[[0], [], []], [[], [], []], [[], [3], []], [[], [3], [5]]]
    assert stream.warnings == ()
