"""Canary extraction in the setting of Parikh, Dupuy and Gupta (ACL 2022, arXiv 2203.13920), cell by cell, resumable.

Run ``python benchmarks/attacks_extraction.py``. Data: SNIPS and ATIS in ``$TROTH_DATA`` (default: the data folder
beside the repository). Each cell is written to ``results/attacks_extraction/`` as it ends and skipped when it is there;
after each the table ``results/attacks_extraction.md`` is made anew. ``--cells N`` or ``--hours H`` run a part,
``--share 1/2`` every other cell (one process per core), ``--table`` makes the table alone.

The setting, not the authors' numbers: models, optimizer and attack are troth's own. A cell is a data set, a model, a
pattern with n unknown digits, R repetitions and a defence. Ten canaries of one seed share a model, at R = 1000 they are
dealt over three models (4, 3, 3), so that canaries do not become most of the data; three seeds. Each canary is one
user, however often it is repeated. The label is the canaries' own, as in the paper: it over-states what is leaked with
an ordinary label. Reported for each cell: exact match, token accuracy and Hamming distance of the codes with the lowest
losses and of gradient inversion, exposure, all beside random guesses and decoys; the model's accuracy or span F1; the
canaries' share of the rows. At n = 6 ranks come from a sample of codes and codes are named by beam search.

Defences (SNIPS, ``my pin code is``, n = 4, R = 100 and 1000). Characters are in the tagger of all other cells; the cell
``words only`` is the tagger without them. ``combined`` is dropout 0.5 and early stopping, for the tagger with
characters. DP with the user as unit: epsilon covers all repetitions of a canary. DP with the example as unit does *not*
cover them: the epsilon of the group of R rows stands beside it (group privacy: R epsilon, at a delta that may be 1).
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from os import environ
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from troth.accounting import make_plan
from troth.attacks.canaries import CanaryKey, CanaryPlan, draw_key
from troth.attacks.canary_insertion import insert
from troth.attacks.extraction import ExtractionSettings, Method, extract
from troth.attacks.extraction_result import ExtractionResult, measure_extraction, pooled
from troth.attacks.inversion import InversionSettings
from troth.config import RunConfig, parse
from troth.data import Splits, Table, from_rows, load, privacy_units
from troth.seeds import PrivateRandomness, PublicSeeds
from troth.tasks import Task, length_buckets, make_model, make_task
from troth.tasks.modeling_tagger import TrothTaggerForTokenClassification
from troth.training import SilentProgress, TrainInputs, fit
from troth.training.optimizer import learning_rate, make_optimizer, set_learning_rate

RESULTS = Path(__file__).parent / "results"
PATTERNS = {"pin": "my pin code is", "call": "call"}
KINDS = {"bilstm-crf": "tagging", "tiny-bert": "classification"}
UTILITY = {"tagging": "span_f1", "classification": "accuracy"}
TRAIN: dict[str, dict[str, Any]] = {
    "bilstm-crf": {"epochs": 5, "expected_batch_size": 32, "learning_rate": 5e-3},
    "tiny-bert": {"epochs": 5, "expected_batch_size": 64, "learning_rate": 1e-3},
}
TRAIN_PRIVATELY: dict[str, dict[str, Any]] = {
    "bilstm-crf": {"epochs": 3, "expected_batch_size": 256, "learning_rate": 2e-2},
    "tiny-bert": {"epochs": 6, "expected_batch_size": 512, "learning_rate": 2e-3},
}
CANARIES, MODELS_AT_1000, SEEDS = 10, 3, (1, 2, 3)
DROPOUT, DELTA, CLIPPING = 0.5, 1e-5, 0.1
EPSILONS = (2.0, 8.0, 32.0)
METHODS: tuple[Method, ...] = ("enumerate", "gradient")
SETTINGS = ExtractionSettings(inversion=InversionSettings(restarts=64))

Unit = Literal["user", "example"]


@dataclass(frozen=True)
class Cell:
    """One setting of the study."""

    dataset: str
    model: str
    pattern: str
    unknown: int
    repeats: int
    defence: str = "none"

    @property
    def name(self) -> str:
        """What the cell's file is called."""
        return f"{self.dataset}-{self.model}-{self.pattern}-n{self.unknown}-R{self.repeats}-{self.defence}"

    @property
    def dp(self) -> tuple[Unit, float] | None:
        """The unit and epsilon of a private cell."""
        parts = self.defence.split("_")
        return (parts[1], float(parts[2])) if parts[0] == "dp" else None  # type: ignore[return-value]


def cells() -> Iterator[Cell]:
    """Yield all cells, the cheap ones of every kind first."""
    for repeats in (100, 1, 10, 1000):
        for dataset in ("snips", "atis"):
            for model in KINDS:
                for unknown in (4, 6):
                    for pattern in PATTERNS:
                        yield Cell(dataset, model, pattern, unknown, repeats)
        if repeats >= 100:
            for model in KINDS:
                for defence in defences(model):
                    yield Cell("snips", model, "pin", 4, repeats, defence)


def defences(model: str) -> list[str]:
    own = ["words_only"] if model == "bilstm-crf" else []
    private = [f"dp_user_{epsilon:g}" for epsilon in EPSILONS]
    return [*own, "dropout", "early_stopping", "combined", *private, f"dp_example_{EPSILONS[1]:g}"]


def configured(cell: Cell, seed: int) -> RunConfig:
    folder = Path(environ.get("TROTH_DATA", Path(__file__).parents[2] / "shared" / "data")) / cell.dataset
    if not folder.is_dir():
        raise SystemExit(f"no {cell.dataset} beside the repository: set TROTH_DATA to the folder of data sets")
    raw: dict[str, Any] = {
        "run": {"name": "extraction", "seed": seed},
        "model": {"preset": cell.model},
        "data": {"train": str(folder / "train"), "validation": str(folder / "dev"), "test": str(folder / "test")},
        "task": {"kind": KINDS[cell.model]},
        "train": TRAIN[cell.model] if cell.dp is None else TRAIN_PRIVATELY[cell.model],
    }
    raw["data"]["unseen_labels"] = "count_as_error"
    if cell.dp is not None:
        raw["run"] |= {"insecure_seed": seed, "guarantee": "none"}
        raw["privacy"] = {
            "target_epsilon": cell.dp[1],
            "target_delta": DELTA,
            "unit": cell.dp[0],
            "clipping_norm": CLIPPING,
            "secure_noise": False,
        }
    return parse(raw)


def groups(key: CanaryKey, models: int) -> list[CanaryKey]:
    """Return the key once for each model, the canaries dealt over them; those of other models are left out."""
    owner = np.arange(len(key.codes)) % models
    return [replace(key, included=key.included & (owner == model)) for model in range(models)]


def owned(table: Table) -> Table:
    """Return the table with each row a user of its own."""
    roles = ("text", "label") if table.has("label") else ("tokens", "tags")
    columns = [table.column(role) for role in roles]
    rows = [
        {**dict(zip(roles, values, strict=True)), "user": f"u{i}"}
        for i, values in enumerate(zip(*columns, strict=True))
    ]
    return from_rows(rows, table.source)


def without_characters(model: PreTrainedModel) -> None:
    """Let the convolutions over characters answer 0 for ever."""
    if not isinstance(model, TrothTaggerForTokenClassification):
        raise SystemExit("words_only is a cell of the tagger")
    reader = model.encoder.characters
    for parameter in reader.parameters():
        with torch.no_grad():
            parameter.zero_()
        parameter.requires_grad_(False)


def train_plainly(config: RunConfig, task: Task, model: PreTrainedModel, table: Table, validation: Table | None) -> int:
    """Train in place and return the epochs made; with `validation`, stop at its lowest loss."""
    encoded, seeds, train = task.encode(table), PublicSeeds(config.run.seed), config.train
    optimizer = make_optimizer(model, train)
    per_epoch = math.ceil(len(encoded) / train.expected_batch_size)
    lowest, best, epoch, step = math.inf, None, 0, 0
    torch.manual_seed(seeds.integer("dropout"))
    for epoch in range(1, train.epochs + 1):
        model.train()
        for rows in length_buckets(encoded.lengths, train.expected_batch_size, seeds.generator("epoch", epoch)):
            set_learning_rate(optimizer, learning_rate(train, step, train.epochs * per_epoch))
            optimizer.zero_grad()
            task.per_example_loss(model, task.collate(encoded, rows)).mean().backward()
            optimizer.step()
            step += 1
        if validation is not None:
            loss = float(np.nanmean(task.score(model, validation).losses))
            if loss >= lowest:
                break
            lowest, best = loss, copy.deepcopy(model.state_dict())
    if best is not None:
        model.load_state_dict(best)
    model.eval()
    return epoch


def train_privately(config: RunConfig, task: Task, model: PreTrainedModel, table: Table) -> dict[str, Any]:
    """Train in place with DP-SGD and return what epsilon speaks of."""
    if config.privacy is None:
        raise SystemExit("a private cell without [privacy]")
    encoded, unit = task.encode(table), config.privacy.unit
    units = privacy_units(table, unit) if unit == "user" else None
    plan = make_plan(config.privacy, config.train, len(encoded) if units is None else len(units))
    with tempfile.TemporaryDirectory() as folder:
        inputs = TrainInputs(
            task, model, encoded, config, PublicSeeds(config.run.seed), Path(folder), torch.device("cpu"), units
        )
        fit(inputs, plan=plan, reservation=None, resume=False, progress=SilentProgress())
    model.eval()
    return {"unit": unit, "epsilon": plan.epsilon(), "delta": plan.delta, "noise_multiplier": plan.noise_multiplier}


def group_privacy(epsilon: float, delta: float, repeats: int) -> dict[str, float]:
    """Return epsilon and delta of a group of rows (Dwork and Roth 2014, theorem 2.2 with the usual delta)."""
    logs = math.log(delta) + math.log(-math.expm1(-repeats * epsilon)) - math.log(-math.expm1(-epsilon))
    return {"group_epsilon": repeats * epsilon, "group_delta": math.exp(min(0.0, logs + (repeats - 1) * epsilon))}


def twin(cell: Cell, plan: CanaryPlan, key: CanaryKey, splits: Splits, config: RunConfig) -> dict[str, Any]:
    """Train one model with the key's canaries and return what is extracted from it, its utility and its privacy."""
    seeds, kind = PublicSeeds(config.run.seed), KINDS[cell.model]
    planted = insert(plan, key, owned(splits.train), kind)
    task = make_task(config, planted.table, Path.cwd())
    model = make_model(config, task, seeds, Path.cwd())
    if cell.defence == "words_only":
        without_characters(model)
    if cell.defence in ("dropout", "combined"):
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = DROPOUT
    privacy: dict[str, Any] | None = None
    epochs = config.train.epochs
    if cell.dp is not None:
        privacy = train_privately(config, task, model, planted.table)
        if privacy["unit"] == "example":
            privacy |= group_privacy(privacy["epsilon"], privacy["delta"], cell.repeats)
    else:
        stopping = splits.validation if cell.defence in ("early_stopping", "combined") else None
        epochs = train_plainly(config, task, model, planted.table, stopping)
    found = {m: extract(task, model, plan, key, seeds=seeds, method=m, settings=SETTINGS) for m in METHODS}
    test = splits.test
    if test is None:
        raise SystemExit("the data set has no test split")
    measured = task.measure(task.score(model, test), test, prefix="test", seeds=seeds, outside_guarantee=False)
    utility = next(m.value for m in measured if m.name == f"test.{UTILITY[kind]}")
    return {"found": found, "share": planted.share, "utility": utility, "privacy": privacy, "epochs": epochs}


def run_cell(cell: Cell) -> dict[str, Any]:
    """Return a cell's record: measurements over all its models, and what each model was. No code is in it."""
    plan = CanaryPlan(f"{PATTERNS[cell.pattern]} {{d*{cell.unknown}}}", CANARIES, (cell.repeats,))
    results: dict[Method, list[ExtractionResult]] = {m: [] for m in METHODS}
    models: list[dict[str, Any]] = []
    start = time.perf_counter()
    for seed in SEEDS:
        config = configured(cell, seed)
        splits = load(config.data, config.task, Path.cwd())
        key = draw_key(plan, PrivateRandomness.create(insecure_seed=seed))
        for part in groups(key, MODELS_AT_1000 if cell.repeats >= 1000 else 1):
            one = twin(cell, plan, part, splits, config)
            for method, result in one.pop("found").items():
                results[method].append(result)
            models.append({"seed": seed, "canaries": int(part.included.sum()), **one})
            print(
                f"{cell.name}: {len(models)} models, {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True
            )
    share = float(np.mean([m["share"] for m in models]))
    methods = {}
    for method, found in results.items():
        made = measure_extraction(pooled(found), seeds=PublicSeeds(0), canary_share=share)
        methods[method] = {"measurements": [m.to_dict() for m in made.measurements], "series": made.series}
    return {
        "cell": asdict(cell),
        "date": datetime.now(UTC).date().isoformat(),
        "seconds": time.perf_counter() - start,
        "training": TRAIN[cell.model] if cell.dp is None else TRAIN_PRIVATELY[cell.model],
        "canary_share": share,
        "models": models,
        "methods": methods,
    }


def shown(record: dict[str, Any]) -> str:
    """Return a cell's line of the table."""
    cell, models = Cell(**record["cell"]), record["models"]
    exact = {m["name"]: m for m in record["methods"]["enumerate"]["measurements"]}
    inverted = {m["name"]: m for m in record["methods"]["gradient"]["measurements"]}

    def percent(found: dict[str, Any], name: str) -> str:
        m = found[f"attack.canaries.{name}"]
        return f"{100 * m['value']:.0f} [{100 * m['low']:.0f}, {100 * m['high']:.0f}]"

    bits, null = exact["attack.canaries.exposure"], exact["attack.canaries.decoy.exposure"]
    privacy = models[0]["privacy"]
    said = cell.defence.replace("_", " ")
    if privacy is not None and privacy["unit"] == "example":
        said += f" (group of R: {privacy['group_epsilon']:.0f}, delta {privacy['group_delta']:.2g})"
    return (
        f"| {cell.dataset} | {cell.model} | {cell.pattern} | {cell.unknown} | {cell.repeats} | {said} | "
        f"{bits['n']} | {percent(exact, 'exact_match')} | {percent(inverted, 'exact_match')} | "
        f"{percent(exact, 'token_accuracy')} | {exact['attack.canaries.hamming_distance']['value']:.2f} | "
        f"{100 * exact['attack.canaries.token_accuracy']['neutral']:.0f} | "
        f"{bits['value']:.1f} [{bits['low']:.1f}, {bits['high']:.1f}] | {null['value']:.1f} | "
        f"{exact['attack.canaries.decoy_rank_p_value']['value']:.2f} | {100 * record['canary_share']:.1f} | "
        f"{100 * float(np.mean([m['utility'] for m in models])):.1f} |"
    )


def write_table(folder: Path) -> None:
    """Make the table of the cells that are there."""
    found = [folder / f"{cell.name}.json" for cell in cells()]
    records = [json.loads(path.read_text()) for path in found if path.is_file()]
    lines = [
        "# Canary extraction: the setting of Parikh, Dupuy and Gupta (2022)",
        "",
        f"{len(records)} of {len(found)} cells. The setting, not the authors' models, attack or numbers. Percent with "
        "95 % intervals over the canaries of all models (models are not resampled). Exact: codes named in full, by "
        "lowest loss (n = 6: beam search) and by gradient inversion with 64 starts. Random: right tokens of as many "
        "random guesses, matched in the same way. Exposure in bits; decoys' is 1.4 on average where ranks are fair, "
        "and p tests that their ranks are uniform. Utility: accuracy (tiny-bert) or span F1 (bilstm-crf) on the test "
        "set. DP with the user as unit covers all repetitions of a canary; with the example it does not.",
        "",
        "| data | model | pattern | n | R | defence | canaries | exact % | exact %, gradient | tokens % | Hamming | "
        "random tokens % | exposure | decoys | p | canary rows % | utility % |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [shown(record) for record in records]
    (folder.parent / "attacks_extraction.md").write_text("\n".join([*lines, ""]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=10**6, help="stop after so many new cells")
    parser.add_argument("--hours", type=float, default=8.0, help="begin no cell after so many hours")
    parser.add_argument("--share", default="1/1", help="i/k: every k-th cell, from the i-th on")
    parser.add_argument("--only", default="", help="cells whose name contains this")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="make the table of what is there, run nothing")
    parser.add_argument("--out", type=Path, default=RESULTS)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    first, every = (int(part) for part in chosen.share.split("/"))
    folder = chosen.out / "attacks_extraction"
    folder.mkdir(parents=True, exist_ok=True)
    begun, made = time.monotonic(), 0
    for number, cell in enumerate([] if chosen.table else cells()):
        path = folder / f"{cell.name}.json"
        if number % every != first - 1 or path.is_file() or chosen.only not in cell.name:
            continue
        if made >= chosen.cells or time.monotonic() - begun > 3600 * chosen.hours:
            break
        record = run_cell(cell)
        temporary = path.with_suffix(".writing")
        temporary.write_text(json.dumps(record, indent=1) + "\n")
        temporary.replace(path)
        made += 1
        print(f"{record['seconds']:.0f} s", shown(record), flush=True)
        write_table(folder)
    write_table(folder)


if __name__ == "__main__":
    main()
