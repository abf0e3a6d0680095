"""Executes run files and grids: stages in order, one folder a run, one record a run.

The pipeline knows no report: whoever drives it hands over a `Finisher` that writes pages and model cards from records.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from joblib import Parallel, delayed

from troth import __version__
from troth.config import RunConfig, digest
from troth.errors import Interrupted, TrothError
from troth.results import Json, Record, now
from troth.runs import stages
from troth.runs.attack_stage import attack, attack_scores, check_attack
from troth.runs.cautions import constant_predictions, shared_ids
from troth.runs.federated_stage import federate as run_federation
from troth.runs.folders import RunFolder, create, find_finished, find_unfinished, open_run, run_folders
from troth.runs.gates import check
from troth.runs.grid import GridPoint, expand
from troth.runs.preflight import check_data, check_file, check_home, check_writable, gated
from troth.runs.provenance import Clock, provenance
from troth.tasks import load_trained
from troth.training import Progress, SilentProgress

__all__ = ["Finisher", "Pipeline"]


class Finisher(Protocol):
    """Writes what people read, from records only."""

    def write_report(self, folders: Sequence[RunFolder], path: Path) -> Path:
        """Write one page about the given runs; return where it lies."""

    def write_model_card(self, record: Record, folder: Path) -> Path:
        """Write the model card of a run into its exported model folder; return where it lies."""


@dataclass(frozen=True)
class Pipeline:
    """Runs verbs on configurations.

    Attributes:
        base: where relative paths of the run file start.
        progress: where to say how far it is.
        finisher: writes reports and model cards.
        show_text: whether records of attacks hold the text of the most exposed rows.
    """

    base: Path
    progress: Progress
    finisher: Finisher
    show_text: bool = False

    def out(self, config: RunConfig) -> Path:
        """Return the folder that holds the run folders of a configuration."""
        return self.base / config.run.out

    @staticmethod
    def folder(record: Record) -> RunFolder:
        """Return the folder of a run that this pipeline made."""
        return RunFolder(Path(record.artifacts["run"]))

    def run(self, config: RunConfig, verb: str, *, resume: bool = False) -> Record:
        """Run `verb` (``run``, ``train`` or ``federate``) and return its record.

        Raises:
            TrothError: what a stage refuses; `Interrupted` where the user stops it.
        """
        check_file(config, verb)
        clock = Clock()
        folder = find_unfinished(config, self.out(config)) if resume else None
        self._check_places(config, verb, folder)
        prepared = stages.prepare(config, self.base, self.progress)
        check_data(prepared, verb)
        if verb == "run" and config.attack is not None:
            check_attack(prepared)
        if folder is not None:
            folder.write_config(config)
        folder = folder or create(config, self.out(config))
        try:
            result = self._stages(prepared, folder, verb, resume=resume)
        except (TrothError, OSError, MemoryError):
            if not resume:
                with suppress(TrothError):  # the first fault is the one to tell
                    stages.discard(folder)
            raise
        except KeyboardInterrupt:
            raise Interrupted(f"interrupted; continue with: troth {verb} RUN.toml --resume ({folder.path})") from None
        finally:
            self.progress.stop()
        clock.add_work(result.work_seconds)
        folder.write_provenance(provenance(prepared.fingerprints()))
        return self._finish(config, verb, folder, result, clock)

    def _check_places(self, config: RunConfig, verb: str, folder: RunFolder | None) -> None:
        """Refuse places that cannot be written: the folder of runs, or of the run that goes on; ledger and report."""
        if folder is None:
            check_writable(self.out(config), f"run.out = {config.run.out!r}")
        else:
            check_writable(folder.path, "--resume")
        check_home()
        if verb == "run" and config.report is not None and Path(config.report.path).is_absolute():
            check_writable(Path(config.report.path).parent, f"report.path = {config.report.path!r}")

    def _stages(self, prepared: stages.Prepared, folder: RunFolder, verb: str, *, resume: bool) -> stages.StageResult:
        """Run the stages of a verb in the contract's order."""
        config = prepared.config
        federate = verb == "federate" or (verb == "run" and config.federated is not None)
        make = run_federation if federate else stages.train
        model, result = make(prepared, folder, resume=resume)
        book = stages.ScoreBook(prepared, model)
        result = result.plus(stages.evaluate(prepared, book))
        if verb == "run" and config.attack is not None:
            result = result.plus(attack(prepared, model, folder.path / "attack", show_text=self.show_text))
        if verb == "run" and config.fairness is not None:
            self.progress.message(f"comparing groups: {', '.join(config.fairness.metrics)}")
            result = result.plus(stages.fairness(prepared, book))
        return result.plus(_cautions(prepared, book))

    def _finish(
        self, config: RunConfig, verb: str, folder: RunFolder, result: stages.StageResult, clock: Clock
    ) -> Record:
        """Make the record, write card, report and record; the record comes last, it marks the run as finished."""
        record = _record(config, verb, result, clock, folder)
        self.finisher.write_model_card(record, folder.model)
        path = folder.path / (config.report.path if config.report else "report.html")
        if verb == "run":
            record = replace(record, artifacts={**record.artifacts, "report": str(path)})
        folder.write_record(record)
        stages.finish(config, folder)
        if verb == "run":
            self.progress.message(f"writing the report: {path}")
            self.finisher.write_report([folder], path)
        return record

    def grid(self, config: RunConfig, verb: str, *, resume: bool = False, jobs: int = 1) -> Record:
        """Run every point of the grid and return one record whose ``runs`` lists theirs, with one table as items.

        ``attack`` attacks the newest finished run of each point, as trained by ``run``, ``train`` or ``federate``. With
        `resume`, points that are finished under the same configuration are taken as they are and the one that was
        interrupted goes on. With `jobs` above 1 so many points run at a time, each in a process and without progress of
        its own; where one is refused, the others that run are finished first.
        """
        check_file(config, verb)
        clock, points = Clock(), expand(config)
        records = []
        for number, (point, record) in enumerate(zip(points, self._points(points, verb, resume, jobs), strict=True), 1):
            if jobs > 1:
                self.progress.message(f"grid {number}/{len(points)} done: {_shown(point)}")
            records.append(record)
            clock.add_work(record.cost.work_seconds if record.cost else 0.0)
        items = tuple(_grid_row(p, r) for p, r in zip(points, records, strict=True))
        return Record(
            verb,
            config.run.name,
            now(),
            __version__,
            config.to_dict(),
            config.run.seed,
            cost=clock.cost(),
            items=items,
            runs=tuple(records),
        )

    def _points(self, points: Sequence[GridPoint], verb: str, resume: bool, jobs: int) -> Iterator[Record]:
        """Yield the record of each point, in order.

        Raises:
            TrothError: the first point that was refused; it names the point.
        """
        if jobs == 1:
            for number, point in enumerate(points, 1):
                self.progress.message(f"grid {number}/{len(points)}: {_shown(point)}")
                yield self._point(point, verb, resume=resume)
            return
        alone = replace(self, progress=SilentProgress())
        work = Parallel(n_jobs=jobs, return_as="generator")(
            delayed(_quiet_point)(alone, point, verb, resume) for point in points
        )
        for point, found in zip(points, work, strict=True):
            if isinstance(found, TrothError):
                found.args = (f"{_shown(point)}: {found}",)
                raise found
            yield found

    def _point(self, point: GridPoint, verb: str, *, resume: bool) -> Record:
        out, config = self.out(point.config), point.config
        if verb == "attack":
            return self.alone(config, verb, None)
        same = [f for f in run_folders(out, config.run.name) if digest(f.config()) == digest(config)] if resume else []
        finished = [f for f in same if f.finished]
        if finished:
            return finished[-1].record()
        return self.run(config, verb, resume=bool(same))

    def alone(self, config: RunConfig, verb: str, path: Path | None) -> Record:
        """Run ``attack`` or ``fairness`` on the model of a finished run and write the record into its folder.

        The run file's sections for `verb` apply; model, data and task are those of the run. Where [attack] names a file
        of scores, or the members of a model trained elsewhere, no run is needed: the record gets a folder of its own.

        Raises:
            TrothError: there is no such run, or the stage refuses.
        """
        check_file(config, verb)
        if verb == "attack" and config.attack is not None and (config.attack.scores or config.attack.members):
            return self._elsewhere(config)
        clock = Clock()
        folder = open_run(path) if path is not None else find_finished(config, self.out(config))
        made = folder.record()
        check_writable(folder.path, f"troth {verb} writes its record into the run's folder")
        task, model = load_trained(folder.model, config)
        prepared = stages.prepare(config, self.base, self.progress, task=task)
        check_data(prepared, verb)
        if verb == "attack":
            check_attack(prepared)
        try:
            model = stages.on_device(model, prepared.device)
            book = stages.ScoreBook(prepared, model)
            if verb == "attack":
                result = attack(prepared, model, folder.path / "attack", show_text=self.show_text)
            else:
                result = stages.fairness(prepared, book)
            result = result.plus(_cautions(prepared, book, predictions=verb == "fairness"))
        except KeyboardInterrupt:
            raise Interrupted(f"interrupted; no record was written to {folder.path}") from None
        finally:
            self.progress.stop()
        clock.add_work(result.work_seconds)
        record = _record(config, verb, replace(result, privacy=made.privacy), clock, folder)
        record = replace(record, name=made.name)
        folder.write_record(record, verb)
        return record

    def _elsewhere(self, config: RunConfig) -> Record:
        """Attack what was made elsewhere: a file of scores, or a checkpoint whose members are given."""
        clock = Clock()
        check_writable(self.out(config), f"run.out = {config.run.out!r}")
        folder: RunFolder | None = None
        try:
            if config.attack is not None and config.attack.scores:
                result = attack_scores(config, self.base)
                folder = create(config, self.out(config))
            else:
                task, model = load_trained(self.base / (config.model.checkpoint or ""), config)
                prepared = stages.prepare(config, self.base, self.progress, task=task)
                check_attack(prepared)
                folder = create(config, self.out(config))
                result = attack(
                    prepared, stages.on_device(model, prepared.device), folder.path / "attack", show_text=self.show_text
                )
        except (TrothError, OSError, MemoryError, KeyboardInterrupt) as error:
            if folder is not None:
                stages.discard(folder)
            if isinstance(error, KeyboardInterrupt):
                raise Interrupted("interrupted; nothing was written") from None
            raise
        finally:
            self.progress.stop()
        clock.add_work(result.work_seconds)
        record = _record(config, "attack", result, clock, folder)
        folder.write_record(record)
        return record


def _quiet_point(pipeline: Pipeline, point: GridPoint, verb: str, resume: bool) -> Record | TrothError:
    """Run a point in a process of its own; what it is refused for is handed back, so that the others are not lost."""
    try:
        return pipeline._point(point, verb, resume=resume)
    except TrothError as error:
        return error


def _record(config: RunConfig, verb: str, result: stages.StageResult, clock: Clock, folder: RunFolder) -> Record:
    """Return the record of a verb on one run, with what its gates say."""
    record = Record(
        kind=verb,
        name=config.run.name,
        created=now(),
        version=__version__,
        config=config.to_dict(),
        seed=config.run.seed,
        measurements=result.measurements,
        series=result.series,
        privacy=result.privacy,
        cost=clock.cost(),
        warnings=result.warnings,
        artifacts={"run": str(folder.path), **result.artifacts},
    )
    return _held(record, gated(config, verb))


def _cautions(prepared: stages.Prepared, book: stages.ScoreBook, *, predictions: bool = True) -> stages.StageResult:
    """Return warnings about the data and, with `predictions`, about what the model predicts."""
    told = shared_ids(prepared.splits)
    return stages.StageResult(warnings=(*told, *constant_predictions(prepared, book)) if predictions else told)


def _held(record: Record, rules: Sequence[str]) -> Record:
    """Return the record with one row of its ``gate`` series for each rule, where there are rules."""
    if not rules:
        return record
    rows: list[dict[str, Json]] = [r.row() for r in check(record, rules)]
    return replace(record, series={**record.series, "gate": rows})


def _shown(point: GridPoint) -> str:
    return ", ".join(f"{k} = {v}" for k, v in point.values.items())


def _grid_row(point: GridPoint, record: Record) -> dict[str, Json]:
    row: dict[str, Json] = {
        k: v if isinstance(v, int | float | str | bool) else str(v) for k, v in point.values.items()
    }
    row["run"] = record.artifacts.get("run")
    if record.privacy is not None:
        row["privacy.epsilon"] = record.privacy.epsilon
    for m in record.measurements:
        if m.name.split(".")[0] in ("test", "federated", "attack", "fairness"):
            row[m.name] = m.value
    return row
