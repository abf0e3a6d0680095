"""Tables for the federated grid: questions by article, restaurant descriptions by meaning, speeches by speaker."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["DATA", "write_tables"]

DATA = Path(os.environ.get("TROTH_DATA", Path(__file__).parents[2] / "shared" / "data"))
_QUESTIONS_PER_ARTICLE = 60
_SEED = 0


def write_tables(folder: Path) -> None:
    """Write ``squad``, ``e2e`` and ``speakers`` as train, dev and test JSON lines into a folder."""
    for name, parts in (("squad", _questions()), ("e2e", _descriptions()), ("speakers", _speeches())):
        for part, rows in parts.items():
            with (folder / f"{name}.{part}.jsonl").open("w") as file:
                file.writelines(json.dumps(row) + "\n" for row in rows)


def _questions() -> dict[str, list[dict[str, Any]]]:
    """Return up to 60 questions of each article: 36 articles to train on, 4 to tune on, 8 to test on."""
    articles = json.loads((DATA / "squadshifts_new_wiki/new_wiki_v1.0.json").read_text())["data"]
    order = np.random.default_rng(_SEED).permutation(len(articles)).tolist()
    parts = {"train": order[:36], "dev": order[36:40], "test": order[40:]}
    return {part: [row for i in chosen for row in _of_article(articles[i])] for part, chosen in parts.items()}


def _of_article(article: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for paragraph in article["paragraphs"]:
        for asked in paragraph["qas"]:
            texts = [a["text"] for a in asked["answers"]]
            starts = [a["answer_start"] for a in asked["answers"]]
            rows.append(
                {
                    "id": asked["id"],
                    "user": article["title"],
                    "question": asked["question"],
                    "context": paragraph["context"],
                    "answers": {"text": texts, "answer_start": starts},
                }
            )
    picked = np.random.default_rng(_SEED).permutation(len(rows))[:_QUESTIONS_PER_ARTICLE]
    return [rows[i] for i in sorted(picked.tolist())]


def _descriptions() -> dict[str, list[dict[str, str]]]:
    """Return the development set, split by meaning; 150 of each of the small parts, since texts are generated."""
    with (DATA / "e2e_nlg/devset.csv").open(newline="") as file:
        rows = [{"source": r["mr"], "target": r["ref"]} for r in csv.DictReader(file)]
    meanings = sorted({r["source"] for r in rows})
    order = np.random.default_rng(_SEED).permutation(len(meanings))
    place = {meanings[i]: k / len(meanings) for k, i in enumerate(order.tolist())}
    return {
        "train": [r for r in rows if place[r["source"]] < 0.8],
        "dev": [r for r in rows if 0.8 <= place[r["source"]] < 0.9][:150],
        "test": [r for r in rows if place[r["source"]] >= 0.9][:150],
    }


def _speeches() -> dict[str, list[dict[str, str]]]:
    """Return speeches with their speaker; the last tenth of each speaker's tests, the tenth before it tunes."""
    speeches: dict[str, list[str]] = {}
    for block in _blocks((DATA / "tiny_shakespeare/input.txt").read_text().splitlines()):
        speeches.setdefault(block[0].removesuffix(":"), []).append(" ".join(block[1:]))
    parts: dict[str, list[dict[str, str]]] = {"train": [], "dev": [], "test": []}
    for speaker, said in speeches.items():
        texts = [text for text in said if text]
        tenth = len(texts) // 10
        cut = {"train": texts[: len(texts) - 2 * tenth], "dev": texts[len(texts) - 2 * tenth : len(texts) - tenth]}
        cut["test"] = texts[len(texts) - tenth :] if tenth else []
        for part, chosen in cut.items():
            parts[part] += [{"user": speaker, "text": text} for text in chosen]
    return parts


def _blocks(lines: Iterable[str]) -> Iterable[list[str]]:
    block: list[str] = []
    for line in [*lines, ""]:
        if line:
            block.append(line)
        elif block:
            yield block
            block = []
