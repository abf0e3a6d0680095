"""Membership attacks of a run: the rows in question, what is trained to tell them apart, and every attack's score."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from transformers import PreTrainedModel

from troth.attacks import overlapping_nonmembers
from troth.attacks.blind import LEAST_EXAMPLES, blind_scores, shift_warning
from troth.attacks.head_shadows import train_head_shadows
from troth.attacks.membership import MembershipResult, measure_membership
from troth.attacks.quantile import LEAST_NONMEMBERS, quantile_scores
from troth.attacks.scores import calibrated_scores, lira_scores, rmia_scores, student_t_scores
from troth.attacks.shadows import Pool, Shadows, row_confidence, train_shadows
from troth.attacks.shokri import shokri_scores
from troth.attacks.signals import Signals, signal_scores, signals_of
from troth.attacks.slices import Slicing, activity_slices, auc_by_slice, quantile_slices
from troth.attacks.twins import Recipe, train_twin
from troth.config import (
    WITH_SHADOWS,
    AttackConfig,
    DataConfig,
    HoldoutConfig,
    RunConfig,
)
from troth.data import Table, concatenated, load, privacy_units, row_hashes
from troth.errors import ConfigError, DataError, TrothError
from troth.results import Json
from troth.runs.stages import Prepared, StageResult
from troth.seeds import PublicSeeds
from troth.tasks import load_trained

__all__ = ["check_rows", "membership", "recipe_of"]

_NAMED_SPLITS = ("test", "validation")
_FINGERPRINT_KEY_BYTES = 32
_MOST_EXPOSED = 10  # members listed for each attack
_FEWEST_ROWS = 2


@dataclass(frozen=True, eq=False)
class Game:
    """A target, rows it was trained on and rows it was not.

    Attributes:
        recipe: how the target was made.
        model: the target.
        pool: members first, then non-members; all of them have a finite loss.
        signals: the target's, on the pool.
        rows: which rows of the training table the members are, counted from 0 [members].
        facts: for each measurement's protocol.
        warnings: what the user should know.
    """

    recipe: Recipe
    model: PreTrainedModel
    pool: Pool
    signals: Signals
    rows: np.ndarray
    facts: Mapping[str, Json]
    warnings: tuple[str, ...]

    @property
    def member(self) -> np.ndarray:
        """Whether each row of the pool is a member, bool [pool]."""
        return np.arange(len(self.pool.table)) < self.pool.members

    @cached_property
    def texts(self) -> list[str]:
        """What a reader would see of each row of the pool [pool]."""
        return _texts(self.pool.table)


def membership(
    prepared: Prepared, config: AttackConfig, model: PreTrainedModel, folder: Path, *, show_text: bool
) -> StageResult:
    """Return what each attack of ``attack.membership`` tells, and the blind baseline beside them.

    The most exposed members are listed by row, id and length, with their text only where `show_text` says so.
    """
    game = _game(prepared, config, model, folder)
    shadows = _shadows(prepared, config, game, folder) if config.shadowed else None
    slicings = _slicings(prepared, game)
    result = StageResult(warnings=game.warnings)
    fewest = min(game.pool.members, len(game.pool.table) - game.pool.members)
    names = [*config.membership, "blind"] if fewest >= LEAST_EXAMPLES else list(config.membership)
    if fewest < LEAST_EXAMPLES:
        told = f"attack.membership: no blind baseline, which wants {LEAST_EXAMPLES} members and non-members each"
        result = result.plus(StageResult(warnings=(told,)))
    for name in names:
        prepared.progress.message(f"membership by {name}")
        scores, facts = _scores(name, game, shadows, prepared)
        result = result.plus(_measured(name, scores, facts, game, slicings, prepared))
        if name != "blind":
            exposed = _most_exposed(game, scores, show_text=show_text)
            result = result.plus(StageResult(series={f"attack.membership.{name}.most_exposed": exposed}))
    return result


def _most_exposed(game: Game, scores: np.ndarray, *, show_text: bool) -> list[dict[str, Json]]:
    """Return the members with the highest scores, the highest first."""
    best = np.argsort(-scores[: game.pool.members], kind="stable")[:_MOST_EXPOSED]
    table = game.pool.table.take(best)
    found = []
    for place, text in enumerate(_texts(table)):
        row: dict[str, Json] = {"row": int(game.rows[best[place]]), "words": len(text.split())}
        row |= {role: str(table.column(role)[place]) for role in ("id", "label") if table.has(role)}
        row["score"] = float(scores[best[place]])
        found.append({**row, "text": text} if show_text else row)
    return found


def _shadows(prepared: Prepared, config: AttackConfig, game: Game, folder: Path) -> Shadows:
    labels, count, seeds = game.signals.labels, config.shadows, prepared.seeds
    if config.shadow_training == "frozen_features":
        if labels is None:
            raise ConfigError("attack.shadow_training = 'frozen_features' is for classification; use 'full'")
        train = prepared.config.train
        return train_head_shadows(prepared.task, game.model, game.pool, labels, train, count=count, seeds=seeds)
    return train_shadows(
        game.recipe, game.pool, labels, count=count, seeds=seeds, folder=folder, progress=prepared.progress
    )


def _measured(
    name: str,
    scores: np.ndarray,
    facts: Mapping[str, Json],
    game: Game,
    slicings: Mapping[str, Slicing],
    prepared: Prepared,
) -> StageResult:
    member, prefix = game.member, f"attack.membership.{name}"
    found: MembershipResult = measure_membership(
        scores[member],
        scores[~member],
        seeds=prepared.seeds,
        prefix=prefix,
        protocol={**game.facts, **facts},
        outside_guarantee=prepared.outside_guarantee,
    )
    if name == "blind":
        shift = shift_warning(found.measurements[0])
        return StageResult(found.measurements[:1], warnings=() if shift is None else (shift,))
    sliced = auc_by_slice(
        scores[member], scores[~member], slicings, prefix=prefix, outside_guarantee=prepared.outside_guarantee
    )
    # What holds for one attack's rates holds for all: each sentence once, without a measurement's name.
    texts = dict.fromkeys(text.split(": ", 1)[1] for text in found.warnings)
    told = tuple(f"attack.membership: {text}" for text in texts)
    return StageResult((*found.measurements, *sliced), found.series, warnings=told)


def recipe_of(prepared: Prepared) -> Recipe:
    """Return how the run's model was made, so that others can be made like it."""
    return Recipe(prepared.config, prepared.base, prepared.task, prepared.device)


# Members and non-members


def check_rows(prepared: Prepared, config: AttackConfig) -> None:
    """Refuse rows that the attack cannot work on, before anything is trained.

    Raises:
        ConfigError: a split or a file is missing.
        DataError: too few rows, or non-members that are all members.
    """
    if isinstance(config.nonmembers, HoldoutConfig):
        outside = len(_held_out(prepared, config.nonmembers.holdout)[1])
    else:
        train = _trained_on(prepared, config)
        outside = len(_without_members(train, _nonmembers(prepared, config.nonmembers), config.nonmembers)[0])
    if "quantile" in config.membership and outside < LEAST_NONMEMBERS:
        raise DataError(f"{outside} non-members: the quantile attack learns from {LEAST_NONMEMBERS} or more")


def _game(prepared: Prepared, config: AttackConfig, model: PreTrainedModel, folder: Path) -> Game:
    recipe = recipe_of(prepared)
    train = _trained_on(prepared, config)
    rows = np.arange(len(train))
    facts: dict[str, Json] = {}
    if isinstance(config.nonmembers, HoldoutConfig):
        inner, outer = _held_out(prepared, config.nonmembers.holdout)
        rows, train, outside = inner, train.take(inner), train.take(outer)
        prepared.progress.message(f"training the twin on {len(train):,} rows; {len(outside):,} are held out")
        own = PublicSeeds(prepared.seeds.integer("attack", "twin"))
        model = train_twin(recipe, train, seeds=own, folder=folder, progress=prepared.progress).model
        facts |= {"nonmembers_from": "held out of the training rows", "target": "a twin trained on the rest"}
    else:
        outside = _nonmembers(prepared, config.nonmembers)
        facts |= {"nonmembers_from": config.nonmembers}
    outside, told = _without_members(train, outside, str(facts["nonmembers_from"]))
    count = min(len(train), config.maximum_members)
    order = prepared.seeds.generator("attack", "members").permutation(len(train))
    chosen, rest = np.sort(order[:count]), np.sort(order[count:])
    table = concatenated([train.take(chosen), outside], "the attack's rows")
    tick = prepared.progress.labelled("scoring members and non-members")
    signals = signals_of(prepared.task, model, table, progress=tick)
    usable = np.flatnonzero(signals.usable)
    members = int((usable < count).sum())
    if members < 2 or len(usable) - members < 2:
        raise DataError(
            f"attack: {members} members and {len(usable) - members} non-members have a loss; two of each are needed"
        )
    pool = Pool(table.take(usable), members, train.take(rest) if len(rest) else None)
    return Game(recipe, model, pool, signals.take(usable), rows[chosen[usable[:members]]], facts, told)


def _trained_on(prepared: Prepared, config: AttackConfig) -> Table:
    """Return the rows that the target was trained on."""
    return prepared.splits.train if config.members is None else _rows(prepared, config.members, "attack.members")


def _held_out(prepared: Prepared, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows that the twin is trained on, and those held out: whole privacy units, two rows or more a side.

    A row and its augmentations are on one side; so are all rows of a user where users are protected.
    """
    train, privacy = prepared.splits.train, prepared.config.privacy
    units = privacy_units(train, "example" if privacy is None else privacy.unit)
    order = prepared.seeds.generator("attack", "holdout").permutation(len(units))
    rows = [units.rows(u) for u in order]
    held = np.searchsorted(np.cumsum([len(own) for own in rows]), round(len(train) * share)) + 1
    outer, inner = (np.sort(np.concatenate(part or [np.empty(0, np.int64)])) for part in (rows[:held], rows[held:]))
    if min(len(outer), len(inner)) < _FEWEST_ROWS:
        raise DataError(
            f"attack.nonmembers.holdout = {share}: of {len(train)} rows in {len(units)} units two or more must fall on "
            "each side"
        )
    return inner, outer


def _nonmembers(prepared: Prepared, wanted: str) -> Table:
    """Return the rows that stand for non-members: a split, or a file of rows never trained on."""
    if wanted in _NAMED_SPLITS:
        return prepared.split(wanted, f"attack.nonmembers = {wanted!r} needs it: rows that were never trained on")
    return _rows(prepared, wanted, "attack.nonmembers")


def _rows(prepared: Prepared, file: str, key: str) -> Table:
    data = prepared.config.data.model_dump() | {"train": file, "validation": None, "test": None, "builtin": None}
    try:
        return load(DataConfig.model_validate(data), prepared.config.task, prepared.base).train
    except TrothError as error:
        raise type(error)(str(error).replace("data.train", key)) from None


def _without_members(train: Table, outside: Table, wanted: str) -> tuple[Table, tuple[str, ...]]:
    """Leave out non-members whose text also stands in the training data: no attack can tell the two apart.

    Raises:
        DataError: none remains.
    """
    key = secrets.token_bytes(_FINGERPRINT_KEY_BYTES)
    twice = overlapping_nonmembers(row_hashes(train, key).tolist(), row_hashes(outside, key).tolist())
    if twice.all():
        raise DataError(f"attack.nonmembers = {wanted!r}: every row also stands in the training data")
    told = f"attack: {int(twice.sum())} of {len(twice)} non-members have the text of a training row and were left out"
    outside = outside.take(np.flatnonzero(~twice))
    return outside, (*((told,) if twice.any() else ()), *_shared_ids(train, outside))


def _shared_ids(train: Table, outside: Table) -> tuple[str, ...]:
    """Warn of non-members that have the id of a training row and another text."""
    if not (train.has("id") and outside.has("id")):
        return ()
    shared = int(overlapping_nonmembers(train.column("id"), outside.column("id")).sum())
    if not shared:
        return ()
    return (
        f"attack: {shared} of {len(outside)} non-members have the id of a training row and another text: leave them "
        "out if they are versions of the same row",
    )


# Scores


def _scores(
    name: str, game: Game, shadows: Shadows | None, prepared: Prepared
) -> tuple[np.ndarray, Mapping[str, Json]]:
    """Return an attack's score of each row of the pool, and what its protocol should say."""
    if name == "blind":
        return blind_scores(game.texts, game.member, seeds=prepared.seeds), {"score": "text alone"}
    if name == "quantile":
        base, labels = signal_scores("loss", game.signals), game.signals.labels
        known = None if labels is None else labels.tolist()
        found = quantile_scores(game.texts, base, game.member, labels=known, seeds=prepared.seeds)
        return found, {"score": "-loss above the quantile that non-members like it have"}
    if name == "reference":
        return _reference_scores(game, prepared), {"score": "-loss minus that of the reference model"}
    if name in WITH_SHADOWS:
        if shadows is None:
            raise ConfigError(f"attack.membership: {name} wants shadow models")
        return _shadow_scores(name, game, shadows, prepared.seeds), _shadow_facts(game, shadows, prepared.config)
    return signal_scores(name, game.signals), {"score": "-loss" if name == "loss" else name}


def _shadow_facts(game: Game, shadows: Shadows, config: RunConfig) -> Mapping[str, Json]:
    common = 0 if game.pool.common is None else len(game.pool.common)
    how = "as the target was"
    if config.attack and config.attack.shadow_training == "frozen_features":
        whole = config.model.trainable != "head"
        how = "heads on the target's frozen features" + (": a weaker game than the target's training" if whole else "")
    elif config.federated is not None:
        how = "centrally, by [train], where the target was federated: a weaker game"
    return {
        "shadows": len(shadows.inside),
        "shadow_training_rows": len(game.pool.table) // 2 + common,
        "shadow_training": how,
        "inclusion": "complementary pairs: each row in half of the shadows",
    }


def _shadow_scores(name: str, game: Game, shadows: Shadows, seeds: PublicSeeds) -> np.ndarray:
    own, outer = -game.signals.losses, np.flatnonzero(~game.member)
    if name == "rmia":
        ll, inside = shadows.log_likelihoods, shadows.inside
        found = rmia_scores(own, ll, inside, own[outer], ll[:, outer], population_inside=inside[:, outer])
        found[outer] *= len(outer) / (len(outer) - 1)  # a non-member is held against the others, not against itself
        return found
    if name == "shokri":
        if game.signals.log_probabilities is None or shadows.log_probabilities is None or game.signals.labels is None:
            raise DataError("attack.membership: shokri wants class probabilities, hence a classification task")
        return shokri_scores(
            game.signals.log_probabilities,
            game.signals.labels,
            shadows.log_probabilities,
            shadows.inside,
            seeds=seeds,
        )
    signals = game.signals
    confidences = row_confidence(signals.losses, signals.log_probabilities, signals.labels)
    score = lira_scores if name == "lira" else student_t_scores
    return score(confidences, shadows.confidences, shadows.inside)


def _reference_scores(game: Game, prepared: Prepared) -> np.ndarray:
    config = prepared.config
    name = (config.attack and config.attack.reference) or config.model.checkpoint
    if name is None:
        raise ConfigError("attack.reference is not given: name a model of the task that never saw the members")
    task, model = load_trained(prepared.base / name, config)
    model = model.to(prepared.device)  # type: ignore[arg-type]
    losses = task.score(model, game.pool.table).losses
    if not np.isfinite(losses).all():
        raise DataError(f"attack.reference = {name!r}: it has no loss for some rows; its labels must be the target's")
    return calibrated_scores(-game.signals.losses, -losses[None])


# What is known about rows


def _texts(table: Table) -> list[str]:
    """Return what a reader would see of each row."""
    if table.has("tokens"):
        return [" ".join(tokens) for tokens in table.column("tokens")]
    roles = [role for role in ("text", "question", "context", "source", "target") if table.has(role)]
    return [" ".join(parts) for parts in zip(*(table.column(role) for role in roles), strict=True)]


def _slicings(prepared: Prepared, game: Game) -> dict[str, Slicing]:
    """Return how the pool is cut: by label, length, group, and the number of the user's training rows."""
    table, members = game.pool.table, game.pool.members
    lengths = np.array([len(text.split()) for text in game.texts])
    by = {"length": quantile_slices(lengths, unit="words")}
    by |= {role: [str(v) for v in table.column(role)] for role in ("label", "group") if table.has(role)}
    found: dict[str, Slicing] = {name: (values[:members], values[members:]) for name, values in by.items()}
    if table.has("user"):
        users = table.take(np.arange(members)).column("user")
        known = users if game.pool.common is None else [*users, *game.pool.common.column("user")]
        found["user_activity"] = (activity_slices(known)[:members], None)
    return found
