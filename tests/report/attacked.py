"""Synthetic records of attacked models: every attack, audit and canary measurement that the report can show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from troth.results import Group, Json, Measurement, Privacy, Record, computed

ATTACKS = (
    "loss",
    "modified_entropy",
    "margin",
    "quantile",
    "reference",
    "rmia",
    "lira",
    "student_t",
    "shokri",
    "blind",
)
RATES = (0.001, 0.01, 0.1)
PRIORS = (0.01, 0.1, 0.5)


def share(name: str, value: float | None, n: int = 1000, half: float = 0.03, **facts: object) -> Measurement:
    """A fraction with an interval of that half width."""
    ends = (None, None) if value is None else (max(0.0, value - half), min(1.0, value + half))
    return Measurement(name, value, *ends, 0.95, "clopper-pearson", n, "fraction", **facts)  # type: ignore[arg-type]


def membership(attack: str, area: float, groups: Mapping[str, Group] | None = None) -> list[Measurement]:
    """All that one attack measures; at 0.1 % the examples do not suffice."""
    prefix = f"attack.membership.{attack}"
    facts: dict[str, Json] = {"nonmembers_from": "test", "score": attack, "warnings": []}
    found = [share(f"{prefix}.auc", area, direction="lower", neutral=0.5, protocol=facts)]
    if attack == "blind":
        return found
    for rate in RATES:
        told = {**facts, "target_false_positive_rate": rate, "threshold": 1.5}
        enough = rate > 0.001
        found += [
            share(f"{prefix}.tpr_at_fpr_{rate:g}", rate * 4, 500, supported=enough, protocol=told),
            share(f"{prefix}.fpr_at_threshold_{rate:g}", rate * 1.1, 400, supported=enough, protocol=told),
        ]
    told = {**facts, "target_false_positive_rate": 0.01}
    found += [share(f"{prefix}.ppv_at_prior_{p:g}", min(1.0, 2 * p), 900, protocol=told) for p in PRIORS]
    by_label = groups or {f"intent_{i}": Group(0.5 + i / 50, 0.45 + i / 50, 0.55 + i / 50, 80) for i in range(15)}
    by_group = {"young": Group(0.55, 0.5, 0.6, 300), "old": Group(0.7, 0.6, 0.8, 200), "few": Group(0.9, 0.2, 1.0, 9)}
    for kind, slices in (("label", by_label), ("group", by_group)):
        small = {"small_groups": ["few"]} if kind == "group" else {"intervals": "of the slices together (Bonferroni)"}
        whole = share(f"{prefix}.auc_by_{kind}", area, neutral=0.5, groups=slices, protocol={**facts, **small})
        found.append(whole)
    return found


def curves(attack: str, area: float, *, band: bool = True) -> dict[str, list[dict[str, Json]]]:
    """An attack's ROC curve and histogram."""
    if attack == "blind":
        return {}
    rows: list[dict[str, Json]] = []
    for rate in (0.0, *np.geomspace(1e-3, 1, 25).tolist()):
        true = float(rate ** (1 / area - 1))
        row: dict[str, Json] = {"fpr": rate, "tpr": true}
        if band:
            row |= {"low": max(0.0, true - 0.02), "high": min(1.0, true + 0.02)}
        rows.append(row)
    edges = np.linspace(-3, 3, 13).tolist()
    weights = np.exp(-np.square(np.linspace(-3, 3, 12)) / 2)
    bins: list[dict[str, Json]] = [
        {"low": low, "high": high, "members": int(100 * w * (1 + low / 6)), "nonmembers": int(100 * w * (1 - low / 6))}
        for low, high, w in zip(edges, edges[1:], weights.tolist(), strict=False)
    ]
    prefix = f"attack.membership.{attack}"
    return {f"{prefix}.roc": rows, f"{prefix}.histogram": bins}


def audit(bound: float, claim: float | None, verdict: str | None = "consistent") -> list[Measurement]:
    """An audited bound, with the largest one that could have been proved, and the AUC of the canaries."""
    protocol: dict[str, Json] = {
        "method": "f-dp-one-run", "delta": 1e-5, "canaries": 1000, "selection": "bonferroni", "guesses": 250,
        "correct": 200, "largest_provable_epsilon": 5.8, "theoretical_epsilon": claim, "verdict": verdict,
        "assumes": "each canary included by an independent fair coin",
    }  # fmt: skip
    low = Measurement(
        "attack.audit.epsilon_lower_bound", bound, bound, None, 0.95, "f-dp-one-run", 1000, "nats", protocol=protocol
    )
    return [low, share("attack.audit.canary_auc", 0.7, neutral=0.5)]


def canaries(secret: str = "") -> list[Measurement]:
    """What extraction found over all canaries, and the decoys; `secret` stands where no page may look."""
    facts: dict[str, Json] = {"codes": 10000, "best_code": secret, "texts": [secret], "random_baseline": 0.001}
    found = []
    for arm in ("", "decoy."):
        for last, value, unit in (
            ("exact_match", 0.8, "fraction"),
            ("token_accuracy", 0.9, "fraction"),
            ("hamming_distance", 0.4, "tokens"),
            ("exposure", 12.1, "bits"),
            ("rank", 3.0, "codes"),
        ):
            name, ends = f"attack.canaries.{arm}{last}", (0.9 * value, 1.1 * value)
            found.append(
                Measurement(name, value, *ends, 0.95, "bayesian-bootstrap", 30, unit, neutral=0.001, protocol=facts)
            )
    p = Measurement("attack.canaries.decoy_rank_p_value", 0.43, None, None, 0.95, "kolmogorov-smirnov", 30, "fraction")
    return [*found, p]


def by_repeats(
    repeats: Sequence[int] = (1, 10, 100), tokens: Sequence[int] = (4, 6), secret: str = ""
) -> list[dict[str, Json]]:
    """The series of extraction by repetitions, with a decoy arm; `secret` stands in a column that is not of it."""
    rows: list[dict[str, Json]] = []
    for n in tokens:
        for i, r in enumerate((0, *repeats)):
            exact = min(1.0, 0.3 * i)
            rows.append(
                {
                    "arm": "canary" if r else "decoy", "repeats": r, "unknown_tokens": n, "canaries": 10,
                    "exposure": 1.0 + 4 * i, "exposure_low": 0.5 + 3.5 * i, "exposure_high": 2.0 + 4.2 * i,
                    "exact_match": exact, "exact_match_low": max(0.0, exact - 0.2),
                    "exact_match_high": min(1.0, exact + 0.2), "token_accuracy": 0.5, "hamming_distance": 2.0,
                    "random_exact_match": 1e-4, "text": secret, "code": secret,
                }
            )  # fmt: skip
    return rows


def guarantee(epsilon: float) -> Privacy:
    """The privacy of a run with that epsilon."""
    return Privacy(
        epsilon, 1e-5, 1.1, "non-cryptographic", "poisson", 0.04, 312, 0.1, "example", "add_remove", "pld",
        ("the released weights",), "differential_privacy",
    )  # fmt: skip


def attacked(
    name: str = "attacked",
    *,
    epsilon: float | None = None,
    seed: int = 1,
    attacks: Mapping[str, float] | None = None,
    accuracy: float = 0.9,
    bound: float | None = 0.9,
    secret: str = "",
) -> Record:
    """A run whose model was attacked in every way."""
    areas = (
        attacks if attacks is not None else {a: 0.55 + 0.02 * i for i, a in enumerate(ATTACKS[:-1])} | {"blind": 0.5}
    )
    verdict = None if epsilon is None else "consistent"
    measured = [
        computed("data.train.rows", 4321, 4321, "rows"),
        share("test.accuracy", accuracy, 700, direction="higher"),
        *(m for attack, area in areas.items() for m in membership(attack, area)),
        *(audit(bound, epsilon, verdict) if bound is not None else ()),
        *(canaries(secret) if secret else ()),
    ]
    series = {k: v for attack, area in areas.items() for k, v in curves(attack, area).items()}
    if secret:
        series["attack.canaries.by_repeats"] = by_repeats(secret=secret)
    config: dict[str, Json] = {
        "run": {"name": name, "seed": seed},
        "model": {"preset": "tiny-bert"},
        "data": {"train": "train.jsonl", "test": "test.jsonl", "text": "text", "label": "label"},
        "task": {"kind": "classification"},
    }
    if epsilon is not None:
        config["privacy"] = {"target_epsilon": epsilon, "target_delta": 1e-5}
    privacy = None if epsilon is None else guarantee(epsilon)
    return Record("run", name, "2026-01-01T00:00:00+00:00", "0", config, seed, tuple(measured), series, privacy)
