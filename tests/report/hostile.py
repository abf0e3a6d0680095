"""A record that fills every section, with texts that try to break out of the page."""

from __future__ import annotations

import html
import re
from pathlib import Path

from troth.config import parse
from troth.results import Cost, Group, Measurement, Privacy, Record, computed
from troth.runs.folders import RunFolder, create

HOSTILE = "<img src=x onerror=\"alert('x')\"><script>alert(1)</script> $\\frac{1}{0}$ ]]> \u202e 'quoted' & \"so on\""


def hostile_record(kind: str = "run", name: str = "hostile") -> Record:
    """A record that fills every section, with hostile text wherever a user's text can stand."""
    accuracy = Measurement(
        "test.accuracy", 0.9, 0.88, 0.92, 0.95, "clopper-pearson", 700, "fraction", "higher",
        protocol={"note": HOSTILE, "warnings": [], "small_groups": [], "resampled": "rows"},
    )  # fmt: skip
    by_round = Measurement(
        "federated.round.accuracy", 0.5, 0.45, 0.55, 0.95, "clopper-pearson", 650, "fraction", "higher"
    )
    trained = computed("data.train.rows", 4321, 4321, "rows")
    groups = {HOSTILE: Group(0.8, 0.7, 0.9, 50), "b": Group(0.9, 0.85, 0.95, 650), "": Group(None, None, None, 0)}
    gap = Measurement(
        "fairness.accuracy_gap", 0.1, 0.0, 0.2, 0.95, "bootstrap-percentile", 700, "fraction", "lower", 0.0, groups
    )
    auc = Measurement(
        "attack.membership.loss.auc", 0.6, 0.55, 0.65, 0.95, "delong", 900, "fraction", "lower", 0.5,
        protocol={"nonmembers_from": "test", "warnings": []},
    )  # fmt: skip
    tpr = Measurement(
        "attack.membership.loss.tpr_at_fpr_0.01",
        0.02,
        0.0,
        0.1,
        0.95,
        "clopper-pearson",
        9,
        "fraction",
        supported=False,
    )
    privacy = Privacy(
        7.99, 1e-5, 1.1, "non-cryptographic", "poisson", 0.04, 312, 0.1, "example", "add_remove", "pld",
        ("the released weights",), "differential_privacy",
    )  # fmt: skip
    return Record(
        kind,
        name,
        "2026-01-01T00:00:00+00:00",
        "0",
        {
            "run": {"name": name},
            "model": {"preset": "tiny-bert"},
            "data": {"train": HOSTILE, "text": "text", "label": "label"},
            "task": {"kind": "classification"},
        },
        1,
        (trained, accuracy, gap, auc, tpr, by_round),
        {
            "train": [{"epoch": 1, "step": 10, "loss": 1.9}, {"epoch": 2, "step": 20, "loss": None}],
            "privacy.epsilon": [{"step": s, "epsilon": 0.1 * s} for s in range(1, 9)],
            "attack.membership.loss.roc": [{"fpr": f, "tpr": f**0.8} for f in (0.0, 0.001, 0.01, 0.1, 1.0)],
            "federated.round": [
                {
                    "round": r,
                    "accuracy": 0.1 * r,
                    "low": 0.09 * r,
                    "high": 0.11 * r,
                    "samples": 10 * r,
                    "bytes": 1e6 * r,
                }
                for r in range(1, 6)
            ],
            "gate": [{"rule": "test.accuracy >= 0.95", "met": False, "actual": 0.9, "reason": "0.9 is not >= 0.95"}],
        },
        privacy,
        Cost(10.0, 2.0, 8.0, 10**9),
        (HOSTILE,),
        {"model": "model"},
    )


def finished(record: Record, out: Path) -> RunFolder:
    """A finished run folder that holds the record."""
    folder = create(parse(dict(record.config)), out)
    folder.write_record(record)
    return folder


def read_aloud(page: str) -> str:
    """The page's text as a reader sees it: without tags, white space as single spaces."""
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", page.replace("<wbr>", ""))).split())
