"""Extraction of canaries from a trained twin: guesses of their codes, ranks, and the same for decoys.

The attacker has the weights, knows the pattern, the label and how many canaries there are, and names as many codes (or
fewer, where a method gives fewer). Canaries of one pattern share its words, hence a guess is for no canary in
particular: guesses are matched to canaries one to one with the fewest wrong tokens (Kuhn and Munkres). Decoys and
random guesses go through the same matching, so that what matching alone gives is seen.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from troth.attacks.canaries import CanaryKey, CanaryPlan, check_key
from troth.attacks.canary_candidates import CandidateScorer
from troth.attacks.exposure import exposure, ranks, skew_normal_exposure
from troth.attacks.extraction_beam import BeamSettings, beam_search
from troth.attacks.extraction_result import Arm, Baseline, ExtractionResult
from troth.attacks.inversion import InversionSettings, invert, relaxed_candidates
from troth.attacks.prefix_extraction import Decoding, PrefixSettings, prefix_completions
from troth.errors import ConfigError, DataError
from troth.seeds import PublicSeeds
from troth.tasks.relaxed_inputs import frozen

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from troth.tasks import Task

__all__ = ["ExtractionSettings", "Method", "extract", "random_baseline", "wrong_tokens"]

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]
Method = Literal["enumerate", "beam", "gradient", "greedy", "beam_search", "top_k"]

_DRAWS, _MANY = 200, 10_000


@dataclass(frozen=True)
class ExtractionSettings:
    """How much an extraction looks at.

    Attributes:
        exhaustive_limit: codes up to which all are scored.
        sample: codes scored where there are more.
        beam: of the method ``beam``, and of ``enumerate`` where codes are sampled.
        inversion: of the method ``gradient``.
        prefix: of ``greedy``, ``beam_search`` and ``top_k``.

    Raises:
        ConfigError: a sample that is empty or larger than what is scored in full.
    """

    exhaustive_limit: int = 20_000
    sample: int = 10_000
    beam: BeamSettings = field(default_factory=BeamSettings)
    inversion: InversionSettings = field(default_factory=InversionSettings)
    prefix: PrefixSettings = field(default_factory=PrefixSettings)

    def __post_init__(self) -> None:
        if self.sample < 1 or self.exhaustive_limit < self.sample:
            raise ConfigError(
                f"extraction: sample = {self.sample} and exhaustive_limit = {self.exhaustive_limit}: the sample must "
                "be 1 or more, and the limit not below it"
            )


def extract(
    task: Task,
    model: PreTrainedModel,
    plan: CanaryPlan,
    key: CanaryKey,
    *,
    seeds: PublicSeeds,
    method: Method = "enumerate",
    settings: ExtractionSettings | None = None,
) -> ExtractionResult:
    """Return what a method extracts from the model of a twin, and the ranks of all canaries and decoys.

    ``enumerate`` names the codes with the lowest losses, of all up to `exhaustive_limit`; above it ranks are estimated
    from a sample and codes are named by beam search. ``gradient`` inverts the relaxed loss (`troth.attacks.inversion`).
    The last three methods let a causal language model write on.

    Args:
        task: of the twin.
        model: trained with the canaries; left as it was.
        plan: of the canaries.
        key: which codes they have. The guesses do not depend on it.
        seeds: public seed of samples, starts and baselines.
        method: how codes are guessed.
        settings: None for the defaults.

    Raises:
        ConfigError: an unknown method.
        DataError: no canary is in the data, or the key does not fit the plan.
        ModelError: the model does not fit the plan or the method.
    """
    rule = settings or ExtractionSettings()
    if method not in get_args(Method):
        raise ConfigError(f"extraction: no method {method!r}; there are {', '.join(get_args(Method))}")
    check_key(key, plan)
    if not key.included.any():
        raise DataError("no canary was included in the training data: there is nothing to extract")
    scorer = CandidateScorer(task, model, plan)
    reference = _reference(scorer, key, rule, seeds)
    wanted = int(key.included.sum())
    how, guesses = _guesses(method, scorer, model, reference, wanted, rule, seeds)
    secrets = key.codes[key.included], key.decoys
    repeats = plan.repeats_of[key.included], np.zeros(len(key.decoys), dtype=np.int64)
    arms = [_arm(scorer, plan, reference, of, n, guesses) for of, n in zip(secrets, repeats, strict=True)]
    return ExtractionResult(
        how,
        reference.how,
        plan.parsed.codes,
        len(plan.parsed.slots),
        len(guesses),
        random_baseline(plan, len(guesses), wanted, seeds=seeds),
        arms[0],
        arms[1],
        key.insecure,
    )


def wrong_tokens(guesses: Integers, digits: Integers) -> Integers:
    """Return how many slots of the guess matched to each code differ, int64 [codes].

    Each guess is matched to at most one code, with the fewest wrong slots in all; a code without a guess has all wrong.

    >>> wrong_tokens(np.array([[1, 2, 3], [4, 5, 6]]), np.array([[4, 5, 0], [1, 2, 3]])).tolist()
    [1, 0]

    Args:
        guesses: [guesses, slots], -1 where a guess has no value.
        digits: [codes, slots].
    """
    distances = (digits[:, None, :] != guesses[None, :, :]).sum(2)
    found = np.full(len(digits), digits.shape[1], dtype=np.int64)
    # Of matchings that are equally good, the one with the most codes that are named in full.
    rows, columns = linear_sum_assignment(distances - (distances == 0) / (1 + distances.size))
    found[rows] = distances[rows, columns]
    return found


def random_baseline(plan: CanaryPlan, guesses: int, codes: int, *, seeds: PublicSeeds) -> Baseline:
    """Return what `guesses` different random codes, matched to `codes` random codes, get right.

    A code is among the guesses with chance guesses / |R|, exactly; shares of right tokens are means of 200 draws (20
    where guesses times codes are above 10,000).
    """
    pattern = plan.parsed
    generator = seeds.generator("extraction", "random baseline")
    shares = []
    draws = _DRAWS if guesses * codes <= _MANY else _DRAWS // 10
    for _ in range(draws if guesses else 0):
        sides = [generator.choice(pattern.codes, size=size, replace=False) for size in (guesses, codes)]
        shares.append(wrong_tokens(*(pattern.digits(side) for side in sides)).mean())
    distance = float(np.mean(shares)) if shares else float(len(pattern.slots))
    return Baseline(guesses / pattern.codes, 1 - distance / len(pattern.slots), distance)


@dataclass(frozen=True, eq=False)
class _Reference:
    """Losses of codes that are neither canary nor decoy, and how many such codes and one there are.

    `all_losses` [codes] of every code, canaries and decoys included; None where codes were sampled.
    """

    losses: Floats
    population: int
    how: str
    all_losses: Floats | None


def _reference(scorer: CandidateScorer, key: CanaryKey, rule: ExtractionSettings, seeds: PublicSeeds) -> _Reference:
    pattern = scorer.candidates.plan.parsed
    secret = np.concatenate([key.codes[key.included], key.decoys])
    population = pattern.codes - len(secret) + 1
    if pattern.codes <= rule.exhaustive_limit:
        every = scorer.losses(pattern.digits(np.arange(pattern.codes)))
        return _Reference(np.delete(every, secret), population, "all codes", every)
    size = min(rule.sample + len(secret), pattern.codes)
    drawn = seeds.generator("extraction", "sample").choice(pattern.codes, size=size, replace=False)
    sample = drawn[~np.isin(drawn, secret)][: rule.sample]
    how = f"estimated from a uniform sample of {len(sample)} codes"
    return _Reference(scorer.losses(pattern.digits(sample)), population, how, None)


def _arm(
    scorer: CandidateScorer,
    plan: CanaryPlan,
    reference: _Reference,
    codes: Integers,
    repeats: Integers,
    guesses: Integers,
) -> Arm:
    digits = plan.parsed.digits(codes)
    sampled = reference.all_losses is None
    own = scorer.losses(digits) if reference.all_losses is None else reference.all_losses[codes]
    place = ranks(own, reference.losses, reference.population)
    return Arm(
        repeats,
        place,
        np.full(len(codes), reference.population, dtype=np.int64),
        exposure(place, reference.population),
        wrong_tokens(guesses, digits),
        skew_normal_exposure(own, reference.losses) if sampled else None,
    )


def _guesses(
    method: Method,
    scorer: CandidateScorer,
    model: PreTrainedModel,
    reference: _Reference,
    wanted: int,
    rule: ExtractionSettings,
    seeds: PublicSeeds,
) -> tuple[str, Integers]:
    """Return how the codes were guessed, and at most `wanted` of them as digits [guesses, slots]."""
    plan = scorer.candidates.plan
    sizes = plan.parsed.sizes
    if method == "enumerate" and reference.all_losses is not None:
        best = np.argsort(reference.all_losses, kind="stable")[:wanted]
        return "the codes with the lowest losses", plan.parsed.digits(best)
    if method in ("enumerate", "beam"):
        found = beam_search(scorer.losses, sizes, seeds=seeds, settings=_wide(rule.beam, wanted))
        return f"beam search, width {_wide(rule.beam, wanted).width}", found[:wanted]
    if method == "gradient":
        with frozen(model):
            relaxed = relaxed_candidates(scorer.candidates, model)
            like = next(model.parameters())
            read = invert(relaxed.losses, sizes, seeds=seeds, settings=rule.inversion, like=like)
        found = np.unique(read.digits, axis=0)
        best = np.argsort(scorer.losses(found), kind="stable")[:wanted]
        return f"gradient inversion, {rule.inversion.restarts} restarts", found[best]
    written = prefix_completions(scorer.task, model, plan, cast("Decoding", method), seeds=seeds, settings=rule.prefix)
    return f"the model writes on ({method})", written[:wanted]


def _wide(beam: BeamSettings, wanted: int) -> BeamSettings:
    """Return the beam, at least as wide as the number of codes that are wanted."""
    return BeamSettings(max(beam.width, wanted), beam.completions, beam.sweeps)
