"""What attacks cost beside other ways of doing the same: shadow heads, RMIA, Clopper-Pearson bounds, LiRA.

Run ``python benchmarks/attacks_speed.py``. It prints a table and writes ``results/attacks_speed.json`` and ``.md``
beside this file. Ours and the other way take turns; times are CPU seconds of one thread, medians over the repeats with
the smallest and the largest. Answers are compared, and what they differ by is printed beside the times.

- Shadow heads: K = 16 linear heads on frozen features of SNIPS, each on a random half of the rows, same epochs, batch
  size and optimizer; then RMIA scores of the target's rows. Beside it adversarial-robustness-toolbox (ART): its
  ``ShadowModels`` trains heads on the same halves, the same RMIA formula (sorted, NumPy) scores them. ART's own attack
  on top of its shadow models (``MembershipInferenceBlackBox``, random forest) is timed once, apart. Features are hashed
  words under a fixed random projection, of two widths.
- RMIA: 20,000 examples against a population of 5,000, 8 shadows; beside it all pairs in one matrix, the rule of ML
  Privacy Meter, written by us. Peak memory is what is allocated meanwhile.
- Clopper-Pearson over all thresholds of 3,000 + 3,000 scores; beside it PrivacyGuard's ``compute_acc_auc_ci_epsilon``.
- LiRA: 5,000 examples, 64 shadows, a variance for each example; beside it a loop over the examples, written by us.

Peers run in an environment of their own, made from ``benchmarks/requirements-attacks.txt`` and named by ``--peers
PYTHON``; without it their part is left out. SNIPS is read from ``$TROTH_DATA`` or ``../shared/data``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

RESULTS = Path(__file__).parent / "results"
HEADS, WIDTHS = 16, (128, 768)
EPOCHS, BATCH, RATE = 5, 64, 0.01
EXAMPLES, POPULATION, SHADOWS = 20_000, 5_000, 8
BUCKETS, MINIMUM_REPEATS = 4096, 5

Arrays = dict[str, np.ndarray]
Row = dict[str, Any]


def seconds(action: Callable[[], object]) -> float:
    start = time.thread_time()
    action()
    return time.thread_time() - start


def span(times: list[float]) -> list[float]:
    return [statistics.median(times), min(times), max(times)]


def hashed(word: str) -> int:
    """Return a word's bucket: FNV-1a, the same on every machine."""
    digest = 2166136261
    for byte in word.encode():
        digest = (digest ^ byte) * 16777619 & 0xFFFFFFFF
    return digest % BUCKETS


def snips(width: int) -> Arrays:
    """Return features and labels of SNIPS's rows ("x", "y") and of its held-out ones ("z", "z_labels")."""
    folder = Path(os.environ.get("TROTH_DATA", Path(__file__).parents[2] / "shared" / "data")) / "snips"
    projection = np.random.default_rng(1).standard_normal((BUCKETS, width)) / width**0.5
    names = sorted(set((folder / "train" / "label").read_text().split()))

    def part(*splits: str) -> tuple[np.ndarray, np.ndarray]:
        texts = [line for s in splits for line in (folder / s / "seq.in").read_text().splitlines()]
        labels = [line for s in splits for line in (folder / s / "label").read_text().split()]
        rows = [projection[[hashed(word) for word in text.split()]].sum(0) for text in texts]
        return np.tanh(np.stack(rows)).astype(np.float32), np.array([names.index(label) for label in labels])

    x, y = part("train")
    z, z_labels = part("dev", "test")
    return {"x": x, "y": y, "z": z, "z_labels": z_labels}


def halves(rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the order that ART's ShadowModels(random_state=1) shuffles the rows into, and its heads' halves of it.

    It draws from all rows but the last of its order, which no head ever sees, nor scores.
    """
    rng = np.random.default_rng(1)
    order = rng.permutation(rows)
    inside = np.zeros((HEADS, rows), dtype=bool)
    for head in range(HEADS):
        inside[head, order[rng.choice(rows - 1, rows // 2, replace=False)]] = True
    return order, inside


def plain_rmia(
    own: np.ndarray, shadows: np.ndarray, inside: np.ndarray, z: np.ndarray, z_shadows: np.ndarray
) -> np.ndarray:
    """Return RMIA's scores by sorting, in NumPy: what a user of a peer's shadow models would write."""
    p, of_z = np.exp(shadows), np.exp(z_shadows).mean(0)
    usual = ((p * inside).sum(0) / inside.sum(0) + (p * ~inside).sum(0) / (~inside).sum(0)) / 2
    ranked = np.sort(z - np.log(of_z))
    return np.asarray(np.searchsorted(ranked, own - np.log(usual), side="left") / len(ranked))


# Shadow heads -----------------------------------------------------------------------------------------------------


def our_shadows(data: Arrays, root: int = 1) -> tuple[float, Arrays]:
    """Return CPU seconds from features to scores, and the shadows' log-probabilities and scores."""
    from troth.attacks.scores import rmia_scores
    from troth.attacks.stacked_heads import HeadSettings, train_heads
    from troth.seeds import PublicSeeds

    settings = HeadSettings(int(data["y"].max()) + 1, EPOCHS, RATE, BATCH)
    found: Arrays = {}

    def attack() -> None:
        heads = train_heads(data["x"], data["y"], data["inside"], settings, seeds=PublicSeeds(root))
        found["shadows"] = heads.true_label(data["x"], data["y"])
        elsewhere = heads.true_label(data["z"], data["z_labels"])
        rows = data["rows"]
        found["scores"] = rmia_scores(
            data["target"][rows], found["shadows"][:, rows], data["inside"][:, rows], data["target_on_z"], elsewhere
        )

    return seconds(attack), found


class Classifier(Protocol):
    """What is used of ART's classifiers."""

    model: torch.nn.Linear

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Return logits [rows, classes]."""

    def log_probabilities(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Return those of the true labels [rows]."""


def art_head(width: int, classes: int) -> Classifier:
    """Return an untrained linear head of ART with this benchmark's epochs, batch size and optimizer."""
    from art.estimators.classification import PyTorchClassifier  # type: ignore[import-not-found]

    class Head(PyTorchClassifier):  # type: ignore[misc]
        """ShadowModels calls `fit` with rows and labels only: the rest is set here."""

        def fit(self, x: np.ndarray, y: np.ndarray) -> None:
            super().fit(x, y, batch_size=BATCH, nb_epochs=EPOCHS)

        def log_probabilities(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
            logits = self.predict(x).astype(np.float64)
            shifted = logits - logits.max(1, keepdims=True)
            return np.asarray(shifted[np.arange(len(y)), y] - np.log(np.exp(shifted).sum(1)))

    model = torch.nn.Linear(width, classes)
    # Without weight decay AdamW, ours, is Adam; ART cannot copy an AdamW of this torch.
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    made: Classifier = Head(
        model, torch.nn.CrossEntropyLoss(), (width,), classes, optimizer=optimizer, device_type="cpu"
    )
    return made


def art_shadows(data: Arrays) -> tuple[float, Arrays]:
    """Do the same with ART's shadow models."""
    from art.attacks.inference.membership_inference import ShadowModels  # type: ignore[import-not-found]

    classes = int(data["y"].max()) + 1
    template, found = art_head(data["x"].shape[1], classes), {}

    def attack() -> None:
        models = ShadowModels(template, num_shadow_models=HEADS, random_state=1)
        models.generate_shadow_dataset(data["x"], np.eye(classes, dtype=np.float32)[data["y"]], member_ratio=0.5)
        trained = models.get_shadow_models()
        found["shadows"] = np.stack([model.log_probabilities(data["x"], data["y"]) for model in trained])
        elsewhere = np.stack([model.log_probabilities(data["z"], data["z_labels"]) for model in trained])
        rows = data["rows"]
        found["scores"] = plain_rmia(
            data["target"][rows], found["shadows"][:, rows], data["inside"][:, rows], data["target_on_z"], elsewhere
        )

    return seconds(attack), found


def art_attack(data: Arrays) -> tuple[float, Arrays]:
    """Attack with ART's shadow models and its own attack on top of them, a random forest."""
    from art.attacks.inference.membership_inference import MembershipInferenceBlackBox, ShadowModels

    classes = int(data["y"].max()) + 1
    target, found = art_head(data["x"].shape[1], classes), {}
    one_hot = np.eye(classes, dtype=np.float32)[data["y"]]
    models = ShadowModels(art_head(data["x"].shape[1], classes), num_shadow_models=HEADS, random_state=1)
    with torch.no_grad():
        target.model.weight.copy_(torch.from_numpy(data["weight"]))
        target.model.bias.copy_(torch.from_numpy(data["bias"]))

    def attack() -> None:
        member, nonmember = models.generate_shadow_dataset(data["x"], one_hot, member_ratio=0.5)
        judge = MembershipInferenceBlackBox(target, attack_model_type="rf")
        judge.fit(member[0], member[1], nonmember[0], nonmember[1], member[2], nonmember[2])
        found["scores"] = judge.infer(data["x"], one_hot, probabilities=True)[:, 0][data["rows"]]

    return seconds(attack), found


def with_target(data: Arrays) -> Arrays:
    """Add the target (a head on a random half of the rows), the shadows' halves, and the rows that have both sides."""
    from troth.attacks.stacked_heads import HeadSettings, train_heads
    from troth.seeds import PublicSeeds

    order, inside = halves(len(data["x"]))
    member = np.random.default_rng(2).random((1, len(order))) < 0.5
    settings = HeadSettings(int(data["y"].max()) + 1, EPOCHS, RATE, BATCH)
    target = train_heads(data["x"], data["y"], member, settings, seeds=PublicSeeds(0), way="stacked")
    rows = np.flatnonzero(inside.any(0) & ~inside.all(0))
    return {
        **data,
        "inside": inside,
        "member": member[0],
        "rows": rows,
        "target": target.true_label(data["x"], data["y"])[0],
        "target_on_z": target.true_label(data["z"], data["z_labels"])[0],
        "weight": target.weights[0][0].numpy(),
        "bias": target.biases[0][0, :, 0].numpy(),
    }


def ask(peers: str, what: str, data: Arrays) -> tuple[float, Arrays]:
    """Let a peer do its part in its own environment; return its CPU seconds and what it found."""
    with tempfile.TemporaryDirectory() as folder:
        given, found = Path(folder) / "given.npz", Path(folder) / "found.npz"
        np.savez(given, **data)  # type: ignore[arg-type]
        command = [peers, __file__, "--one", what, "--files", str(given), str(found)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        with np.load(found) as arrays:
            return float(done.stdout.splitlines()[-1]), dict(arrays)


def area(data: Arrays, scores: np.ndarray) -> float:
    from troth.attacks.roc import auc

    member = data["member"][data["rows"]]
    return auc(scores[member], scores[~member]).value


def shadows(width: int, repeats: int, peers: str | None) -> Row:
    from troth.attacks.stacked_heads import HeadSettings, faster_way
    from troth.seeds import PublicSeeds

    data = with_target(snips(width))
    ours, theirs = [], []
    for _ in range(repeats):
        taken, found = our_shadows(data)
        ours.append(taken)
        if peers:
            taken, peer = ask(peers, "shadows", data)
            theirs.append(taken)
    settings = HeadSettings(int(data["y"].max()) + 1, EPOCHS, RATE, BATCH)
    measured = faster_way(data["x"], data["y"], data["inside"], settings, seeds=PublicSeeds(1))
    row: Row = {
        "name": f"{HEADS} shadow heads {width} to {settings.classes}, {len(data['x']):,} rows, {EPOCHS} epochs of "
        f"batches of {BATCH}",
        "ours": span(ours),
        "repeats": repeats,
        "auc": area(data, found["scores"]),
        "way": measured.way,
        "step_stacked_seconds": measured.stacked_seconds,
        "step_one_by_one_seconds": measured.one_by_one_seconds,
    }
    if peers:
        _, again = our_shadows(data, root=2)
        row |= {
            "theirs": span(theirs),
            "ratio": statistics.median(b / a for a, b in zip(ours, theirs, strict=True)),
            "auc_theirs": area(data, peer["scores"]),
            "log_probability_difference": float(np.abs(found["shadows"] - peer["shadows"]).mean()),
            "difference_of_another_seed": float(np.abs(found["shadows"] - again["shadows"]).mean()),
        }
    return row


def own_attack(peers: str) -> Row:
    """Return ART's whole attack, random forest included, beside ours: once, for it takes minutes."""
    data = with_target(snips(WIDTHS[0]))
    taken, found = our_shadows(data)
    theirs, judged = ask(peers, "art attack", data)
    return {
        "name": f"{HEADS} shadow heads {WIDTHS[0]} to {int(data['y'].max()) + 1} with ART's own attack on top of its",
        "ours": span([taken]),
        "theirs": span([theirs]),
        "ratio": theirs / taken,
        "repeats": 1,
        "auc": area(data, found["scores"]),
        "auc_theirs": area(data, judged["scores"]),
    }


# Scores -----------------------------------------------------------------------------------------------------------


def world(examples: int, shadows: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return a target's confidences, the shadows', and who was inside: complementary pairs."""
    rng = np.random.default_rng(seed)
    half = rng.random((shadows // 2, examples)) < 0.5
    inside = np.concatenate([half, ~half])
    hardness = 3 * rng.standard_normal(examples)
    return (
        hardness + rng.standard_normal(examples),
        hardness + inside + rng.standard_normal((shadows, examples)),
        inside,
    )


def rmia_inputs() -> tuple[np.ndarray, ...]:
    (own, seen, inside), (z, of_z, z_inside) = world(EXAMPLES, SHADOWS, 3), world(POPULATION, SHADOWS, 4)
    own, seen, z, of_z = (-np.logaddexp(0, -phi) for phi in (own, seen, z, of_z))
    return own, seen, inside, z, of_z, z_inside


def all_pairs(own: np.ndarray, seen: np.ndarray, inside: np.ndarray, z: np.ndarray, of_z: np.ndarray) -> np.ndarray:
    """Return the share of pairs with a ratio above 1, from the matrix of all ratios."""
    p = np.exp(seen)
    usual = ((p * inside).sum(0) / inside.sum(0) + (p * ~inside).sum(0) / (~inside).sum(0)) / 2
    ratios = (np.exp(own) / usual)[:, None] / (np.exp(z) / np.exp(of_z).mean(0))[None, :]
    return np.asarray((ratios > 1).mean(1))


def rmia(repeats: int) -> list[Row]:
    from troth.attacks.scores import _probabilities, rmia_scores

    own, seen, inside, z, of_z, z_inside = rmia_inputs()
    ways: dict[str, Callable[[], np.ndarray]] = {
        "online": lambda: rmia_scores(own, seen, inside, z, of_z),
        "online, half of the shadows saw the population": lambda: rmia_scores(
            own, seen, inside, z, of_z, population_inside=z_inside
        ),
        "offline": lambda: rmia_scores(own, seen, None, z, of_z),
    }
    times: dict[str, list[float]] = {name: [] for name in (*ways, "exp", "pairs")}
    for _ in range(repeats):
        for name, way in ways.items():
            way()
            times[name] += [seconds(way) for _ in range(5)]
        times["exp"] += [seconds(lambda: (_probabilities(seen), _probabilities(of_z))) for _ in range(5)]
        times["pairs"].append(seconds(lambda: all_pairs(own, seen, inside, z, of_z)))
    gap = float(np.abs(ways["online"]() - all_pairs(own, seen, inside, z, of_z)).max())
    rows: list[Row] = []
    for name in ways:
        row: Row = {
            "name": f"RMIA {EXAMPLES:,} x {POPULATION:,}, {SHADOWS} shadows, {name}",
            "ours": span(times[name]),
            "repeats": repeats,
            "exponentials_seconds": statistics.median(times["exp"]),
        }
        if name == "online":
            row |= {
                "theirs": span(times["pairs"]),
                "ratio": statistics.median(times["pairs"]) / statistics.median(times[name]),
                "largest_difference": gap,
                "memory_ours": peak(ways["online"]),
                "memory_theirs": peak(lambda: all_pairs(own, seen, inside, z, of_z)),
            }
        rows.append(row)
    return rows


def peak(action: Callable[[], object]) -> float:
    """Return the peak of the bytes that NumPy allocates meanwhile; torch works in them too here."""
    tracemalloc.start()
    action()
    found = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return float(found)


def thresholds_bound(members: np.ndarray, nonmembers: np.ndarray, delta: float) -> float:
    """Return the best Clopper-Pearson bound over all thresholds: no valid one, but the same work as the peer's."""
    from troth.attacks.epsilon_bounds import clopper_pearson_bounds

    every = np.unique(np.concatenate([members, nonmembers]))
    hits, alarms = (len(s) - np.searchsorted(np.sort(s), every, side="left") for s in (members, nonmembers))
    limits = {"delta": delta, "significance": 0.05}
    return float(clopper_pearson_bounds(hits, len(members), alarms, len(nonmembers), **limits).max())


def clopper_pearson(repeats: int, peers: str | None) -> Row:
    from troth.attacks.roc import auc

    rng = np.random.default_rng(5)
    data = {"members": rng.standard_normal(3000) + 1, "nonmembers": rng.standard_normal(3000)}
    ours, with_area, theirs, found = [], [], [], float("nan")
    thresholds_bound(**data, delta=1e-5)
    for _ in range(repeats):
        ours.append(seconds(lambda: thresholds_bound(**data, delta=1e-5)))
        with_area.append(ours[-1] + seconds(lambda: auc(data["members"], data["nonmembers"])))
        if peers:
            taken, answer = ask(peers, "clopper-pearson", data)
            theirs.append(taken)
            found = float(answer["epsilon"])
    row: Row = {
        "name": "Clopper-Pearson over all thresholds, 3,000 + 3,000 scores",
        "ours": span(ours),
        "repeats": repeats,
        "with_area_seconds": statistics.median(with_area),
        "epsilon": thresholds_bound(**data, delta=1e-5),
    }
    if peers:
        ratio = statistics.median(b / a for a, b in zip(ours, theirs, strict=True))
        row |= {"theirs": span(theirs), "ratio": ratio, "epsilon_theirs": found}
    return row


def one_clopper_pearson(data: Arrays) -> tuple[float, Arrays]:
    """Return the CPU seconds of PrivacyGuard's loop, and its epsilon."""
    from privacy_guard.analysis.mia.mia_results import MIAResults  # type: ignore[import-not-found]

    results = MIAResults(torch.from_numpy(data["members"]), torch.from_numpy(data["nonmembers"]))
    found: list[float] = []
    taken = seconds(lambda: found.append(float(results.compute_acc_auc_ci_epsilon(delta=1e-5)[2])))
    return taken, {"epsilon": np.array(found[0])}


def lira_loop(own: np.ndarray, seen: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Return online LiRA's scores one example at a time."""
    found = []
    for x in range(len(own)):
        sides = [seen[inside[:, x], x], seen[~inside[:, x], x]]
        laws = [-0.5 * ((own[x] - s.mean()) / s.std(ddof=1)) ** 2 - np.log(s.std(ddof=1)) for s in sides]
        found.append(laws[0] - laws[1])
    return np.array(found)


def lira(repeats: int) -> Row:
    from troth.attacks.scores import lira_scores

    own, seen, inside = world(5000, 64, 6)
    lira_scores(own, seen, inside)
    ours, theirs = [], []
    for _ in range(repeats):
        ours.append(seconds(lambda: lira_scores(own, seen, inside)))
        theirs.append(seconds(lambda: lira_loop(own, seen, inside)))
    return {
        "name": "LiRA 5,000 x 64, a variance for each example",
        "ours": span(ours),
        "theirs": span(theirs),
        "ratio": statistics.median(b / a for a, b in zip(ours, theirs, strict=True)),
        "repeats": repeats,
        "largest_difference": float(np.abs(lira_scores(own, seen, inside) - lira_loop(own, seen, inside)).max()),
    }


# Tables -----------------------------------------------------------------------------------------------------------


def answers(row: Row) -> str:
    """Return what a row's other figures say, in words."""
    texts = {
        "load": "load {load:.1f}",
        "auc": "AUC {auc:.4f}",
        "auc_theirs": "theirs {auc_theirs:.4f}",
        "log_probability_difference": "mean difference of the heads' log-probabilities {log_probability_difference:.4f}"
        " (between two seeds of ours {difference_of_another_seed:.4f})",
        "way": "measured way: {way}, a step {step_stacked_seconds:.2e} s stacked, {step_one_by_one_seconds:.2e} s one "
        "by one",
        "exponentials_seconds": "of which exponentials {exponentials_seconds:.2e} s",
        "largest_difference": "largest difference {largest_difference:.1e}",
        "memory_ours": "peak memory {memory_ours:.2e}, theirs {memory_theirs:.2e} bytes",
        "epsilon": "epsilon {epsilon:.6f}",
        "epsilon_theirs": "theirs {epsilon_theirs:.6f}",
        "with_area_seconds": "with the area under the curve, which the peer returns too, {with_area_seconds:.2e} s",
    }
    return "; ".join(text.format(**row) for key, text in texts.items() if key in row)


def timing(found: list[float] | None) -> str:
    return "not run" if found is None else f"{found[0]:.3g} [{found[1]:.3g}, {found[2]:.3g}]"


def table(rows: list[Row], facts: Row) -> str:
    lines = [
        "# Attacks beside other ways of doing the same",
        "",
        "CPU seconds of one thread: median [smallest, largest] over interleaved repeats. Shadow heads are beside "
        "adversarial-robustness-toolbox's ShadowModels with the same scores on top, from features to scores; RMIA "
        "beside the matrix of all pairs, written by us; Clopper-Pearson beside PrivacyGuard's loop; LiRA beside a "
        "loop, written by us.",
        "",
        "| work | ours, s | other, s | ratio | repeats | answers and parts |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        ratio = f"{row['ratio']:.1f}" if "ratio" in row else ""
        other = timing(row.get("theirs")) if "theirs" in row or "RMIA" not in row["name"] else ""
        lines.append(
            f"| {row['name']} | {timing(row['ours'])} | {other} | {ratio} | {row['repeats']} | {answers(row)} |"
        )
    lines += [
        "",
        f"{facts['date']}, {facts['processor']}, {facts['versions']}. Peers: {facts['peers']}.",
        "",
    ]
    return "\n".join(lines)


def installed(packages: tuple[str, ...]) -> str:
    found = []
    for package in packages:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


PARTS = ("rmia", "clopper-pearson", "lira", "shadows", "own-attack")
PEER_PACKAGES = ("torch", "numpy", "scipy", "scikit-learn", "adversarial-robustness-toolbox", "privacyguard-platform")


def one(what: str, files: list[str] | None) -> None:
    """Do what the peers' environment is for: a part of theirs, or telling their versions."""
    if files is None:
        print(installed(PEER_PACKAGES))
        return
    with np.load(files[0]) as arrays:
        data = dict(arrays)
    ways = {"clopper-pearson": one_clopper_pearson, "shadows": art_shadows, "art attack": art_attack}
    taken, found = ways[what](data)
    np.savez(files[1], **found)  # type: ignore[arg-type]
    print(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=MINIMUM_REPEATS)
    parser.add_argument("--only", nargs="*", choices=PARTS, default=PARTS, help="the others' rows are kept")
    parser.add_argument("--dry", action="store_true", help="print, write nothing")
    parser.add_argument("--peers", help="the Python of an environment with the peers")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--files", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.one:
        one(arguments.one, arguments.files)
        return
    peers, repeats = arguments.peers, arguments.repeats
    parts: dict[str, Callable[[], Iterable[Row]]] = {
        "rmia": lambda: rmia(repeats),
        "clopper-pearson": lambda: [clopper_pearson(repeats, peers)],
        "lira": lambda: [lira(repeats)],
        "shadows": lambda: (shadows(width, repeats, peers) for width in WIDTHS),
        "own-attack": lambda: [own_attack(peers)] if peers else [],
    }
    named = [] if peers is None else [peers, __file__, "--one", "versions"]
    facts: Row = {
        "date": datetime.now(UTC).date().isoformat(),
        "processor": f"{platform.machine()} ({torch.backends.cpu.get_cpu_capability()}), {os.cpu_count()} cores",
        "versions": installed(("torch", "numpy", "scipy")),
        "peers": subprocess.run(named, check=True, capture_output=True, text=True).stdout.strip() if named else "none",
    }
    stored = RESULTS / "attacks_speed.json"
    kept = json.loads(stored.read_text())["rows"] if stored.exists() and arguments.only != PARTS else []
    rows: dict[str, Row] = {row["name"]: row for row in kept}
    for part in arguments.only:
        for row in parts[part]():
            rows[row["name"]] = {**row, "load": os.getloadavg()[0]}
            print(json.dumps(row), flush=True)
            if not arguments.dry:  # after each row: the last ones take long
                RESULTS.mkdir(exist_ok=True)
                stored.write_text(json.dumps({**facts, "rows": list(rows.values())}, indent=1) + "\n")
                stored.with_suffix(".md").write_text(table(list(rows.values()), facts))
    print(table(list(rows.values()), facts))


if __name__ == "__main__":
    main()
