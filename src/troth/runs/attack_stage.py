"""The attack stage: membership, canaries in a twin, and the audit of a twin, as [attack] asks for them."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from transformers import PreTrainedModel

from troth.accounting import Ledger, SpendRequest
from troth.attacks.audit_twin import audit_twin, make_audit_canaries
from troth.attacks.canaries import OWN_LABEL, CanaryKey, CanaryPlan, draw_key, save_key
from troth.attacks.canary_candidates import Candidates
from troth.attacks.canary_insertion import Insertion, insert
from troth.attacks.extraction import extract
from troth.attacks.extraction_result import measure_extraction
from troth.attacks.membership import measure_membership
from troth.attacks.score_files import read_scores
from troth.attacks.twins import Twin, train_twin
from troth.config import (
    AttackConfig,
    AuditConfig,
    CanariesConfig,
    HoldoutConfig,
    RunConfig,
    digest,
)
from troth.data import row_hashes
from troth.errors import ConfigError
from troth.results import Json
from troth.runs.membership_stage import check_rows, membership, recipe_of
from troth.runs.stages import Prepared, StageResult
from troth.seeds import PrivateRandomness, PublicSeeds
from troth.tasks import Task, make_task

__all__ = ["attack", "attack_scores", "check_attack"]


def attack(prepared: Prepared, model: PreTrainedModel, folder: Path, *, show_text: bool = False) -> StageResult:
    """Attack a model as [attack] says; what the models trained for it say is kept below `folder`.

    Call `check_attack` first, before anything is trained.

    `show_text` puts the text of the most exposed rows into the record; without it ids and lengths stand there.

    Raises:
        ConfigError: a split or file is missing.
        DataError: too few rows remain.
        BudgetError: shadows or twins are wanted on a data set with a budget.
    """
    config = prepared.config.attack
    if config is None:
        raise ConfigError("the run file has no [attack]; add it")
    start = time.perf_counter()
    found = StageResult(warnings=_ask_ledger(prepared, folder.parent.name) if _trains(config) else ())
    if config.membership:
        found = found.plus(membership(prepared, config, model, folder, show_text=show_text))
    if config.canaries is not None:
        found = found.plus(_canaries(prepared, config.canaries, folder))
    if config.audit is not None:
        found = found.plus(_audit(prepared, config.audit, folder))
    return replace(found, work_seconds=time.perf_counter() - start)


def check_attack(prepared: Prepared) -> None:
    """Refuse what the attack would refuse after hours of training: budget, rows, canaries.

    Raises:
        ConfigError: a split or file is missing, or canaries that the task or its tokenizer has no place for.
        DataError: too few rows.
        BudgetError: shadows or twins are wanted on a data set with a budget.
    """
    config = prepared.config.attack
    if config is None:
        return
    if _trains(config):
        ledger = Ledger()
        ledger.check_plain(_request(prepared, ledger, "check"))
    if config.membership:
        check_rows(prepared, config)
    if config.canaries is not None:
        _planted(prepared, config.canaries)


def attack_scores(config: RunConfig, base: Path) -> StageResult:
    """Return what the scores of a file tell, made by any attack on any model.

    Raises:
        DataError: the file is missing, or holds no scores of members and non-members.
    """
    start = time.perf_counter()
    name = config.attack.scores if config.attack else None
    if name is None:
        raise ConfigError("attack.scores is not given")
    file = read_scores(base / name)
    result = measure_membership(
        file.scores[file.member],
        file.scores[~file.member],
        seeds=PublicSeeds(config.run.seed),
        prefix="attack.membership.scores",
        protocol={"score": f"of the file {Path(name).name}"},
        outside_guarantee=config.privacy is not None,
    )
    return StageResult(
        result.measurements, result.series, warnings=result.warnings, work_seconds=time.perf_counter() - start
    )


def _trains(config: AttackConfig) -> bool:
    """Whether models are trained for the attack."""
    return bool(config.shadowed or config.canaries or config.audit or isinstance(config.nonmembers, HoldoutConfig))


def _request(prepared: Prepared, ledger: Ledger, run_name: str) -> SpendRequest:
    config = prepared.config
    return SpendRequest(
        dataset_id=config.data.dataset_id,
        run_name=run_name,
        plan=None,
        guarantee="none" if config.run.guarantee == "none" else "differential_privacy",
        row_hashes=row_hashes(prepared.splits.train, ledger.key),
        config_hash=digest(config),
        kind="attack",
    )


def _ask_ledger(prepared: Prepared, run_name: str) -> tuple[str, ...]:
    """Hold models that the attack trains on private rows against the data set's budget."""
    ledger = Ledger()
    request = _request(prepared, ledger, run_name)
    if request.guarantee != "none":
        return ledger.check_plain(request)
    entry = ledger.reserve(request)  # written down as infinity
    entry.finish()
    return entry.warnings


def _planted(prepared: Prepared, config: CanariesConfig) -> tuple[CanaryPlan, CanaryKey, Insertion, Task]:
    """Return a plan, a fresh key, the training rows with the canaries among them, and the task with their label."""
    plan = CanaryPlan(config.pattern, config.count, tuple(config.repeats), label=config.label or OWN_LABEL)
    key = draw_key(plan, PrivateRandomness.create(prepared.config.run.insecure_seed))
    planted = insert(plan, key, prepared.splits.train, prepared.task.kind)
    task = make_task(prepared.config, planted.table, prepared.base)
    Candidates(task, plan)  # refuses codes that the tokenizer cannot tell
    return plan, key, planted, task


def _canaries(prepared: Prepared, config: CanariesConfig, folder: Path) -> StageResult:
    """Train a twin on the training rows and planted codes, and look for the codes in it.

    The key is kept below `folder` (mode 600), apart from plan, record and report.
    """
    seeds = prepared.seeds
    plan, key, planted, task = _planted(prepared, config)
    save_key(key, folder / "canaries.key.json")
    rows, share = len(planted.table), planted.share
    prepared.progress.message(f"canaries: a twin is trained on {rows:,} rows, {share:.2%} of them planted")
    twin = train_twin(
        replace(recipe_of(prepared), task=task),
        planted.table,
        seeds=PublicSeeds(seeds.integer("attack", "canaries")),
        folder=folder,
        progress=prepared.progress,
    )
    facts: dict[str, Json] = {"pattern_words": len(plan.parsed.words), "rows": rows}
    told = _repetition_warning(twin, max(plan.repeats))
    found = StageResult(warnings=told)
    for place, method in enumerate(config.extraction):
        prepared.progress.message(f"looking for canaries: {method}")
        result = extract(task, twin.model, plan, key, seeds=seeds, method=method)
        made = measure_extraction(
            result,
            seeds=seeds,
            canary_share=share,
            prefix="attack.canaries" if place == 0 else f"attack.canaries.{method}",
            protocol=facts,
            outside_guarantee=prepared.outside_guarantee,
        )
        found = found.plus(StageResult(made.measurements, made.series))
    return found


def _repetition_warning(twin: Twin, repeats: int) -> tuple[str, ...]:
    """Say what epsilon does not cover: a code in many rows, where single rows are protected."""
    plan = twin.plan
    if plan is None or plan.unit == "user" or repeats == 1:
        return ()
    epsilon = plan.epsilon()
    return (
        f"attack.canaries: epsilon {epsilon:.3g} is of one row; a code that stands in {repeats} rows has that of group "
        f"privacy, {repeats * epsilon:.3g} at a larger delta; privacy.unit = 'user' covers all rows of a user",
    )


def _audit(prepared: Prepared, config: AuditConfig, folder: Path) -> StageResult:
    """Train a twin on the training rows and canaries, and bound epsilon from below by what it says of them."""
    task, train = prepared.task, prepared.splits.train
    randomness = PrivateRandomness.create(prepared.config.run.insecure_seed)
    canaries = make_audit_canaries(train, task.kind, task.labels, config.canaries, randomness)
    rows = canaries.training_rows(train)
    prepared.progress.message(f"auditing: a twin is trained on {len(rows):,} rows, canaries among them")
    twin = train_twin(
        recipe_of(prepared),
        rows,
        seeds=PublicSeeds(prepared.seeds.integer("attack", "audit")),
        folder=folder,
        progress=prepared.progress,
    )
    losses = task.score(twin.model, canaries.table).losses
    prepared.progress.message("bounding epsilon")
    _, found = audit_twin(canaries, losses, twin.plan, training_rows=len(rows), confidence=config.confidence)
    return StageResult(found)
