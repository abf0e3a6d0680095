"""Quality of a federation over a stream: after each period, on test rows of every period; what was forgotten."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel

from troth.data import Table
from troth.federated import Stream, table_times
from troth.federated.evaluation import row_ratios, take_scores
from troth.federated.stream_metrics import StreamScores, stream_measurements
from troth.files import failing_in_one_line, new_folder
from troth.results import Json, Measurement
from troth.runs.stages import Prepared
from troth.tasks import Scores

__all__ = ["PeriodEvaluation"]

_PARTS = "parts.npy"


class PeriodEvaluation:
    """Measures the global model at the end of each period; a callback of the simulation.

    What each model does on each test row is kept in the run's folder, so that a resumed run can say what was forgotten.
    """

    def __init__(self, prepared: Prepared, table: Table, stream: Stream, folder: Path) -> None:
        self._prepared, self._table, self._stream, self._folder = prepared, table, stream, folder
        self._belongs = stream.periods.of(table_times(table)) if table.has("time") else None

    def __call__(self, model: PreTrainedModel, period: int) -> list[dict[str, Json]]:
        """Return one row a tested period; a single one where test rows have no time."""
        scores = self._prepared.task.score(model, self._table)
        belongs = self._belongs
        if belongs is None:
            return [{"period": period, "tested": None, **self._quality(scores, self._table)}]
        self._keep(scores, period)
        out: list[dict[str, Json]] = []
        for tested in np.unique(belongs[(belongs >= 0) & (belongs < len(self._stream))]).tolist():
            rows = np.flatnonzero(belongs == tested)
            found = self._quality(take_scores(scores, rows), self._table.take(rows))
            out.append({"period": period, "tested": tested, **found})
        return out

    def _quality(self, scores: Scores, table: Table) -> dict[str, Json]:
        name = next(iter(row_ratios(scores, self._prepared.task.kind)))
        found = self._prepared.task.measure(
            scores, table, prefix="federated.round", seeds=self._prepared.seeds, outside_guarantee=False
        )
        first = next(m for m in found if m.name == f"federated.round.{name}")
        return {"metric": name, "value": first.value, "low": first.low, "high": first.high, "n": first.n}

    def _keep(self, scores: Scores, period: int) -> None:
        parts = next(iter(row_ratios(scores, self._prepared.task.kind).values())).parts
        with new_folder(self._folder / f"period-{period}", replace=True) as place, failing_in_one_line(self._folder):
            np.save(place / _PARTS, parts, allow_pickle=False)

    def measure(self, model: PreTrainedModel) -> tuple[Measurement, ...]:
        """Return ``federated.stream.<metric>.forgetting`` and ``.backward_transfer``; nothing without times of tests.

        Args:
            model: any model of the run: the weights of test rows do not depend on it.
        """
        if self._belongs is None:
            return ()
        metric, ratio = next(
            iter(row_ratios(self._prepared.task.score(model, self._table), self._prepared.task.kind).items())
        )
        files = [self._folder / f"period-{period}" / _PARTS for period in range(len(self._stream))]
        if not all(file.exists() for file in files):
            return ()
        parts = np.stack([np.load(file, allow_pickle=False) for file in files])
        users = None
        if self._table.has("user"):
            users = np.unique(np.array([str(u) for u in self._table.column("user")]), return_inverse=True)[1]
        scores = StreamScores.of(parts, ratio.wholes, self._belongs, users)
        lower = metric in ("perplexity", "loss")

        def scale(values: NDArray[np.float64]) -> NDArray[np.float64]:
            return np.asarray(np.exp(values) if metric == "perplexity" else values)

        return stream_measurements(
            scores,
            metric,
            seeds=self._prepared.seeds,
            better="lower" if lower else "higher",
            unit="perplexity" if metric == "perplexity" else "fraction",
            scale=scale,
        )
