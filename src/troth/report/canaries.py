"""The section on canaries: how much of what was planted can be read off the model, against decoys and guessing.

No text and no code of a canary is shown, nor the key that holds them: cells are made from known numeric columns only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from troth.report.attack_names import CANARIES
from troth.report.attack_plots import Decoys, Extracted, exposure, extraction
from troth.report.lines import FEWEST_POINTS
from troth.report.plots import Curve, Plot
from troth.report.reading import Run
from troth.report.section import DETAILED_RUNS, Fold, Section
from troth.report.tables import ABSENT, Cell, Table, interval, measured, name, number, text
from troth.results import Json

__all__ = ["canaries"]

_SERIES = f"{CANARIES}by_repeats"
_P_VALUE = f"{CANARIES}decoy_rank_p_value"
_MEASURES = ("exact_match", "token_accuracy", "hamming_distance", "exposure", "rank")
_BASELINES = ("random", "random_baseline", "baseline", "guessing")
_COLUMNS = {
    "exact_match": "exact match, fraction",
    "token_accuracy": "token accuracy, fraction",
    "hamming_distance": "Hamming distance, tokens",
    "exposure": "exposure, bits",
}


@dataclass(frozen=True)
class _Row:
    """One setting of one arm: numbers of the series' row by key."""

    inserted: bool
    repeats: int
    unknown_tokens: int
    n: int
    numbers: Mapping[str, float]

    def cell(self, key: str) -> Cell:
        """Return a number with its interval and n; without an interval it does not reach the page."""
        value, low, high = (self.numbers.get(k) for k in (key, f"{key}_low", f"{key}_high"))
        if value is None or low is None or high is None:
            return ABSENT
        return Cell(number(value), interval(low, high), f"n = {self.n:,}", kind="number")


def canaries(runs: Sequence[Run]) -> Section | None:
    """Return the section, or None where no canaries were planted."""
    having = [r for r in runs if r.named(CANARIES) or r.series.get(_SERIES)]
    if not having:
        return None
    detailed = len(having) <= DETAILED_RUNS
    tables: list[Table] = []
    plots: list[Plot] = []
    folds = []
    for run in having:
        rows = _rows(run)
        own = [*_overall(run), *_by_setting(run, rows)]
        if detailed:
            tables += own
            plots += [*_exposure(run, rows), *_extraction(run, rows)]
        else:
            folds.append(Fold(f"Canaries in {run.label}", tuple(own), tuple(_extraction(run, rows))))
    return Section(
        "canaries", "Canaries: what can be read off the model", _PARAGRAPHS, tuple(tables), tuple(plots),
        folds=tuple(folds),
    )  # fmt: skip


_PARAGRAPHS = (
    "Canaries are made-up texts with codes drawn at random, planted in the training data of a twin of the model; the "
    "attacker knows all of a canary but its code. Decoys are codes drawn alike that were never planted: what the "
    "attack says about them is what chance gives. Exposure is how far up the ranking of all codes a canary's own code "
    "stands, in bits; one that is not extracted can be exposed. Codes and texts stay with the key and are not shown.",
    "A low figure shows that this attack did not find the codes; it does not show that they cannot be found.",
)


def _rows(run: Run) -> list[_Row]:
    """Return the rows of a run's series that say arm, repetitions, unknown tokens and number of canaries."""
    found = []
    for row in run.series.get(_SERIES, []):
        numbers = {k: float(v) for k, v in row.items() if isinstance(v, int | float) and not isinstance(v, bool)}
        if row.get("arm") in ("canary", "decoy") and {"unknown_tokens", "canaries"} <= numbers.keys():
            found.append(
                _Row(
                    row["arm"] == "canary",
                    int(numbers.get("repeats", 0)),
                    int(numbers["unknown_tokens"]),
                    int(numbers["canaries"]),
                    numbers,
                )
            )
    return sorted(found, key=lambda r: (not r.inserted, r.unknown_tokens, r.repeats))


def _overall(run: Run) -> list[Table]:
    """Return all canaries of a run together, beside decoys and guessing."""
    rows = []
    for last in _MEASURES:
        found, decoy = run.measurement(f"{CANARIES}{last}"), run.measurement(f"{CANARIES}decoy.{last}")
        if found is None and decoy is None:
            continue
        units = dict.fromkeys(m.unit for m in (found, decoy) if m is not None)
        cells = [ABSENT if m is None else measured(m, method=True) for m in (found, decoy)]
        rows.append((name(f"{CANARIES}{last}", ", ".join(units)), *cells, _guessing(run, last)))
    p_value = run.measurement(_P_VALUE)
    if p_value is not None:
        rows.append((name(_P_VALUE, p_value.unit), ABSENT, measured(p_value, method=True), ABSENT))
    caption = (
        f"All canaries of {run.label}, beside decoys and guessing. A low p value of the decoys' ranks says that they "
        "are not spread evenly, so that the attack's own baseline is off."
    )
    head = ("measurement", "canaries, planted", "decoys, never planted", "by guessing")
    return [Table(caption, head, tuple(rows), measured=True)] if rows else []


def _guessing(run: Run, last: str) -> Cell:
    """Return what guessing gives, a computed number: from the protocol, else the value that means 'no effect'."""
    m = run.measurement(f"{CANARIES}{last}")
    if m is None:
        return ABSENT
    found: Json = next((m.protocol[k] for k in _BASELINES if isinstance(m.protocol.get(k), int | float)), m.neutral)
    return ABSENT if found is None else text(number(found))


def _by_setting(run: Run, rows: Sequence[_Row]) -> list[Table]:
    """Return each setting of each arm with its interval and n."""
    cells = [
        (
            text(_planted(r)),
            text(f"{r.unknown_tokens:,}"),
            *(r.cell(k) for k in _COLUMNS),
            text(number(r.numbers["random_exact_match"])) if "random_exact_match" in r.numbers else ABSENT,
        )
        for r in rows
    ]
    head = ("canaries", "unknown tokens", *_COLUMNS.values(), "exact match by guessing")
    kept = [i for i in range(len(head)) if i < 2 or any(row[i].kind != "absent" for row in cells)]
    table = tuple(tuple(row[i] for i in kept) for row in cells)
    caption = f"By repetitions and unknown tokens: {run.label}"
    if not any(c.kind == "number" for row in table for c in row):
        return []
    return [Table(caption, tuple(head[i] for i in kept), table)]


def _planted(row: _Row) -> str:
    if not row.inserted:
        return "decoys, never planted"
    return "planted once" if row.repeats == 1 else f"planted {row.repeats:,} times"


def _exposure(run: Run, rows: Sequence[_Row]) -> list[Plot]:
    """Return exposure against repetitions, a line for each number of unknown tokens; none of too few repetitions."""
    lines, decoys = [], []
    for tokens in sorted({r.unknown_tokens for r in rows}):
        planted = [r for r in rows if r.inserted and r.unknown_tokens == tokens and r.repeats > 0]
        found = _line(f"{tokens:,} unknown tokens", planted)
        if found is None:
            continue
        lines.append(found)
        others = [r for r in rows if not r.inserted and r.unknown_tokens == tokens]
        band = _line(f"decoys, {tokens:,} unknown tokens", [r for r in others if r.repeats > 0])
        if band is not None:
            lines.append(band)
        else:
            decoys += [d for r in others if (d := _decoys(r)) is not None]
    if not lines:
        return []
    counts = sorted({r.n for r in rows if r.inserted})
    told = f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
    caption = (
        f"Exposure by repetitions in {run.label}, with intervals (n = {told} canaries a point); decoys are codes that "
        "were never planted."
    )
    return [exposure(f"Exposure: {run.label}", lines, decoys, caption)]


def _line(label: str, rows: Sequence[_Row]) -> Curve | None:
    """Return exposure over repetitions, or None of too few points for a shape."""
    known = [r for r in rows if r.cell("exposure").kind != "absent"]
    if len({r.repeats for r in known}) < FEWEST_POINTS:
        return None
    height, low, high = ([r.numbers[k] for r in known] for k in ("exposure", "exposure_low", "exposure_high"))
    counts = {r.n for r in known}
    return Curve(label, [r.repeats for r in known], height, low, high, counts.pop() if len(counts) == 1 else None)


def _decoys(row: _Row) -> Decoys | None:
    value, low, high = (row.numbers.get(k) for k in ("exposure", "exposure_low", "exposure_high"))
    if value is None or low is None or high is None:
        return None
    return Decoys(f"decoys, {row.unknown_tokens:,} unknown tokens", value, low, high, row.n)


def _extraction(run: Run, rows: Sequence[_Row]) -> list[Plot]:
    """Return the share extracted by setting as a map; one cell alone is told by the table."""
    cells = [
        Extracted(
            r.unknown_tokens,
            r.repeats,
            r.numbers["exact_match"],
            r.numbers.get("exact_match_low"),
            r.numbers.get("exact_match_high"),
            r.n,
        )
        for r in rows
        if r.inserted and 0 <= r.numbers.get("exact_match", -1.0) <= 1
    ]
    if len({(c.unknown_tokens, c.repeats) for c in cells}) < 2:
        return []
    caption = f"Share of canaries of {run.label} whose code was extracted exactly; intervals are in the table and CSV."
    return [extraction(f"Extracted: {run.label}", cells, caption)]
