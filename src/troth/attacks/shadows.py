"""Shadow models: each example of the pool is in the training data of exactly half of them.

Shadows come in complementary pairs: what one of a pair was trained on, the other was not. They are trained by the
training stage, as the target was (private ones included), in processes side by side where a measured probe says that
this pays. What each says about the pool is kept in a file as soon as it is trained, so that an interrupted attack goes
on where it stopped.
"""

from __future__ import annotations

import hashlib
import io
import os
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from joblib import Parallel, delayed

from troth.attacks.scores import confidence
from troth.attacks.twins import Recipe, train_twin
from troth.config import training_digest
from troth.data import Table, concatenated
from troth.errors import DataError
from troth.files import failing_in_one_line, remove_unfinished, write_bytes
from troth.seeds import PublicSeeds
from troth.tasks import make_model
from troth.training import Progress

__all__ = ["Pool", "Shadows", "inclusion", "row_confidence", "train_shadows"]

_LEAST_GAIN = 1.1  # by which processes must beat threads in the probe
_PROBE_ROWS, _PROBE_REPEATS = 16, 3
_SMALLEST = 1e-12


@dataclass(frozen=True, eq=False)
class Pool:
    """The rows that the game is about.

    Attributes:
        table: members of the target first, then non-members.
        members: how many of its rows are members.
        common: training rows of the target outside of the game, on which every shadow is trained; None for none.
    """

    table: Table
    members: int
    common: Table | None = None

    def training_rows(self, inside: np.ndarray) -> Table:
        """Return what a shadow is trained on, given which rows of the pool it sees, bool [pool]."""
        seen = self.table.take(np.flatnonzero(inside))
        return seen if self.common is None else concatenated([self.common, seen], self.table.source)


@dataclass(frozen=True, eq=False)
class Shadows:
    """What the shadow models say about the pool.

    Attributes:
        inside: bool [shadows, pool]: whether a shadow was trained on a row.
        log_likelihoods: [shadows, pool] minus the row's loss, nats.
        confidences: [shadows, pool] logit of the true answer's probability (`row_confidence`).
        log_probabilities: float32 [shadows, pool, classes]; classification only.
    """

    inside: np.ndarray
    log_likelihoods: np.ndarray
    confidences: np.ndarray
    log_probabilities: np.ndarray | None = None


def inclusion(pool: int, shadows: int, seeds: PublicSeeds) -> np.ndarray:
    """Return which rows each shadow is trained on, bool [shadows, pool], in complementary pairs of random halves.

    Raises:
        DataError: an odd number of shadows, or fewer than four rows.
    """
    if shadows < 2 or shadows % 2 or pool < 4:
        raise DataError(f"{shadows} shadows on {pool} rows: give an even number of shadows and four rows or more")
    inside = np.zeros((shadows, pool), dtype=bool)
    for pair in range(0, shadows, 2):
        order = seeds.generator("attack", "shadows", pair).permutation(pool)
        inside[pair, order[: pool // 2]] = True
        inside[pair + 1] = ~inside[pair]
    return inside


def row_confidence(losses: np.ndarray, log_probabilities: np.ndarray | None, labels: np.ndarray | None) -> np.ndarray:
    """Return the logit of the probability of each row's true answer [rows].

    With class probabilities it is that of the true label; elsewhere p = exp(-loss), the geometric mean of a row's
    tokens, takes its place (ours).

    Args:
        losses: of a model [rows], nats.
        log_probabilities: [rows, classes], where the task has classes.
        labels: the true ones [rows], where there are class probabilities.
    """
    if log_probabilities is not None and labels is not None:
        return confidence(log_probabilities, labels)
    held = np.maximum(losses, _SMALLEST)
    return np.asarray(-held - np.log(-np.expm1(-held)))


def train_shadows(
    recipe: Recipe,
    pool: Pool,
    labels: np.ndarray | None,
    *,
    count: int,
    seeds: PublicSeeds,
    folder: Path,
    progress: Progress,
) -> Shadows:
    """Return what `count` shadow models say about the pool.

    Args:
        recipe: how the target was made.
        pool: the rows of the game.
        labels: number of each row's true class [pool], for classification.
        count: of shadow models, even.
        seeds: public seeds of who sees what, and of each shadow's training.
        folder: where what each shadow says is kept; shadows found there from the same game are not trained again.
        progress: where to say how far it is.

    Raises:
        TrothError: what training refuses.
        RunError: the disk is full.
    """
    inside = inclusion(len(pool.table), count, seeds)
    place = folder / f"shadows-{_game(recipe, pool, inside)}"
    with failing_in_one_line(place):
        place.mkdir(parents=True, exist_ok=True)
        remove_unfinished(place)
    missing = [k for k in range(count) if not _whole(_file(place, k), len(pool.table))]
    tell = progress.labelled("training shadow models")
    if missing:
        tell(count - len(missing), count)
        jobs = _processes(recipe, pool.table, len(missing))
        work = Parallel(n_jobs=jobs, return_as="generator_unordered")(
            delayed(_train_one)(recipe, pool, labels, inside[k], k, seeds, place, jobs > 1) for k in missing
        )
        for done, _ in enumerate(work, count - len(missing) + 1):
            tell(done, count)
    return _read(place, inside)


def _train_one(
    recipe: Recipe,
    pool: Pool,
    labels: np.ndarray | None,
    inside: np.ndarray,
    index: int,
    seeds: PublicSeeds,
    place: Path,
    one_thread: bool,
) -> None:
    """Train one shadow and keep what it says about the pool."""
    if one_thread:
        torch.set_num_threads(1)
    own = PublicSeeds(seeds.integer("attack", "shadow", index))
    twin = train_twin(recipe, pool.training_rows(inside), seeds=own, folder=place)
    scores = recipe.task.score(twin.model, pool.table)
    arrays = {
        "log_likelihoods": -scores.losses,
        "confidences": row_confidence(scores.losses, scores.log_probabilities, labels),
    }
    if scores.log_probabilities is not None:
        arrays["log_probabilities"] = scores.log_probabilities.astype(np.float32)
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    with failing_in_one_line(place):
        write_bytes(_file(place, index), buffer.getvalue(), 0o600)


def _read(place: Path, inside: np.ndarray) -> Shadows:
    found: list[dict[str, np.ndarray]] = []
    for index in range(len(inside)):
        with np.load(_file(place, index), allow_pickle=False) as arrays:
            found.append({name: arrays[name] for name in arrays.files})
    stacked = {name: np.stack([one[name] for one in found]) for name in found[0]}
    return Shadows(inside, **stacked)


def _whole(path: Path, rows: int) -> bool:
    """Return whether a shadow's file is there and can be read; a damaged one is made again."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return all(arrays[name].shape[:1] == (rows,) for name in arrays.files) and "confidences" in arrays.files
    except (OSError, ValueError, EOFError, BadZipFile, zlib.error):
        return False


def _file(place: Path, index: int) -> Path:
    return place / f"shadow-{index}.npz"


def _game(recipe: Recipe, pool: Pool, inside: np.ndarray) -> str:
    """Return a digest of all that decides what the shadows say."""
    parts: Sequence[bytes] = (
        training_digest(recipe.config).encode(),
        pool.table.fingerprint.encode(),
        b"" if pool.common is None else pool.common.fingerprint.encode(),
        np.packbits(inside).tobytes(),
    )
    return hashlib.sha256(b"|".join(parts)).hexdigest()[:12]


def _processes(recipe: Recipe, table: Table, wanted: int) -> int:
    """Return how many processes to train in: as many as there are cores, where one thread each beats all in one."""
    cores = min(len(os.sched_getaffinity(0)), wanted)
    if recipe.device.type != "cpu" or cores < 2:
        return 1
    threads = torch.get_num_threads()
    try:
        together, alone = (_step_seconds(recipe, table, n) for n in (threads, 1))
    finally:
        torch.set_num_threads(threads)
    return cores if cores * together / alone >= _LEAST_GAIN else 1


def _step_seconds(recipe: Recipe, table: Table, threads: int) -> float:
    """Return the least time of a forward and backward pass of a small batch, with so many threads."""
    torch.set_num_threads(threads)
    task, rows = recipe.task, np.arange(min(_PROBE_ROWS, len(table)))
    with torch.random.fork_rng(devices=[]):
        model = make_model(recipe.config, task, PublicSeeds(0), recipe.base)
        batch = task.collate(task.encode(table.take(rows)), rows)
        times = []
        for _ in range(_PROBE_REPEATS):
            start = time.perf_counter()
            task.per_example_loss(model, batch).sum().backward()  # type: ignore[no-untyped-call]
            times.append(time.perf_counter() - start)
    return min(times)
