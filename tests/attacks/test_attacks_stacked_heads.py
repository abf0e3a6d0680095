"""Stacked shadow heads: each one is what it would be if trained alone by torch, and they find members."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from troth.attacks import auc
from troth.attacks.scores import rmia_scores
from troth.attacks.stacked_heads import HeadSettings, StackedHeads, faster_way, train_heads
from troth.errors import ConfigError, DataError, ModelError
from troth.seeds import PublicSeeds

SEEDS = PublicSeeds(4)
Rows = tuple[np.ndarray, np.ndarray, np.ndarray]


def _rows(rows: int = 90, width: int = 12, heads: int = 5, classes: int = 4) -> Rows:
    """Return features, labels and who is inside, each head with another number of rows."""
    rng = np.random.default_rng(2)
    features = rng.standard_normal((rows, width))
    labels = (features @ rng.standard_normal((width, classes)) + rng.standard_normal((rows, classes))).argmax(1)
    inside = rng.random((heads, rows)) < np.linspace(0.3, 0.7, heads)[:, None]
    return features, labels, inside


def _settings(hidden: int | None = None, **changes: Any) -> HeadSettings:
    chosen: dict[str, Any] = {
        "classes": 4,
        "epochs": 3,
        "learning_rate": 0.03,
        "batch_size": 8,
        "weight_decay": 0.1,
        **changes,
    }
    return HeadSettings(hidden=hidden, **chosen)


def _alone(data: Rows, head: int, settings: HeadSettings) -> nn.Sequential:
    """Train one head with torch's own layers, loss, gradients and optimizer, on its public shuffles."""
    features, labels, inside = data
    widths = [w for w in (features.shape[1], settings.hidden, settings.classes) if w is not None]
    layers: list[nn.Module] = []
    for place, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
        layer = nn.Linear(inputs, outputs, dtype=torch.float64)
        drawn = SEEDS.generator("shadow heads", "initial", head, place).uniform(-1, 1, (inputs + 1, outputs))
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(drawn[:-1].T / inputs**0.5))
            layer.bias.copy_(torch.from_numpy(drawn[-1] / inputs**0.5))
        layers += [layer, nn.ReLU()]
    model = nn.Sequential(*layers[:-1])
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    x, y = torch.from_numpy(features), torch.from_numpy(labels)
    for epoch in range(settings.epochs):
        order = SEEDS.generator("shadow heads", "shuffle", head, epoch).permutation(np.flatnonzero(inside[head]))
        for start in range(0, len(order), settings.batch_size):
            rows = torch.from_numpy(order[start : start + settings.batch_size])
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x[rows]), y[rows])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return model


@pytest.mark.parametrize("way", ["stacked", "one by one"])
@pytest.mark.parametrize("hidden", [None, 7])
def test_each_head_is_what_torch_makes_of_it_alone(hidden: int | None, way: str) -> None:
    data = _rows()
    settings = _settings(hidden)
    found = train_heads(*data, settings, seeds=SEEDS, way=way)  # type: ignore[arg-type]
    everything = found.log_probabilities(data[0])
    assert len({int(inside.sum()) for inside in data[2]}) > 1  # heads of different lengths
    for head in range(len(found)):
        logits = _alone(data, head, settings)(torch.from_numpy(data[0]))
        expected = logits.log_softmax(-1).detach().numpy()
        np.testing.assert_allclose(everything[head], expected, atol=1e-9, rtol=0)
    true = everything[:, np.arange(len(data[1])), data[1]]
    np.testing.assert_allclose(found.true_label(data[0], data[1]), true, atol=1e-12, rtol=0)


def test_a_head_does_not_depend_on_the_others() -> None:
    features, labels, inside = _rows()
    all_heads = train_heads(features, labels, inside, _settings(), seeds=SEEDS, way="stacked")
    first = train_heads(features, labels, inside[:2], _settings(), seeds=SEEDS, way="stacked")
    np.testing.assert_allclose(first.weights[0], all_heads.weights[0][:2], atol=1e-12)
    others = features.copy()
    others[~inside[1]] = 1e3
    other = train_heads(others, labels, inside[:2], _settings(), seeds=SEEDS, way="stacked")
    np.testing.assert_allclose(other.weights[0][1], all_heads.weights[0][1], atol=1e-12)
    assert not np.allclose(other.weights[0][0], all_heads.weights[0][0])


def test_both_ways_agree_in_float32_and_rows_in_parts_are_rows_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels, inside = _rows(rows=200)
    features = features.astype(np.float32)
    ways = [
        train_heads(features, labels, inside, _settings(6), seeds=SEEDS, way=way).true_label(features, labels)
        for way in ("stacked", "one by one")
    ]
    np.testing.assert_allclose(ways[0], ways[1], atol=1e-4)
    monkeypatch.setattr("troth.attacks.stacked_heads._NUMBERS", 300)
    parts = train_heads(features, labels, inside, _settings(6), seeds=SEEDS, way="stacked").true_label(features, labels)
    np.testing.assert_allclose(parts, ways[0], atol=1e-5)


def test_the_faster_way_is_the_one_with_the_smaller_time() -> None:
    measured = faster_way(*_rows(), _settings(), seeds=SEEDS)
    times = {"stacked": measured.stacked_seconds, "one by one": measured.one_by_one_seconds}
    assert min(times.values()) > 0
    assert measured.way == min(times, key=lambda way: times[way])


def test_without_a_way_the_measured_one_gives_the_same_heads() -> None:
    data = _rows(rows=20, heads=2)
    chosen = train_heads(*data, _settings(), seeds=SEEDS)
    named = train_heads(*data, _settings(), seeds=SEEDS, way="stacked")
    np.testing.assert_allclose(chosen.weights[0], named.weights[0], atol=1e-9)


def test_heads_as_shadows_find_the_members_of_an_overfitted_head() -> None:
    rng = np.random.default_rng(5)
    features = rng.standard_normal((600, 128))
    labels = rng.integers(4, size=600)  # nothing to learn: all that is learnt is memory
    half = rng.random((5, 600)) < 0.5
    inside = np.concatenate([half[:1], half[1:], ~half[1:]])
    settings = _settings(epochs=40, weight_decay=0.0, learning_rate=0.02)
    heads = train_heads(features, labels, inside, settings, seeds=SEEDS)
    scores = heads.true_label(features, labels)
    member, other = half[0], rng.standard_normal((300, 128))
    answers = rng.integers(4, size=300)
    elsewhere = heads.true_label(other, answers)
    found = rmia_scores(scores[0], scores[1:], inside[1:], elsewhere[0], elsewhere[1:])
    assert auc(found[member], found[~member]).value > 0.85


def test_what_cannot_be_trained_is_refused_by_name() -> None:
    features, labels, inside = _rows()

    def train(*data: np.ndarray, **changes: Any) -> StackedHeads:
        features, labels, inside = data
        return train_heads(features, labels, inside, _settings(**changes), seeds=SEEDS, way="stacked")

    broken = features.copy()
    broken[7, 1] = np.nan
    with pytest.raises(DataError, match="features: row 7"):
        train(broken, labels, inside)
    with pytest.raises(DataError, match="float32 or float64"):
        train(features.astype(np.float16), labels, inside)
    with pytest.raises(DataError, match=r"labels: row \d+ has 3: must lie in 0\.\.2"):
        train(features, labels, inside, classes=3)
    with pytest.raises(DataError, match="give one int for each"):
        train(features, labels[:-1], inside)
    with pytest.raises(DataError, match=r"give \[heads, rows\], bool"):
        train(features, labels, inside.astype(int))
    empty = inside.copy()
    empty[2] = False
    with pytest.raises(DataError, match="shadow head 2 has no row"):
        train(features, labels, empty)
    with pytest.raises(ModelError, match="shadow head 0 diverged"):
        train(features * 1e200, labels, inside, learning_rate=1e200)
    found = train(features, labels, inside)
    with pytest.raises(DataError, match="features of width 5"):
        found.log_probabilities(features[:, :5])
    for wrong in ({"classes": 1}, {"epochs": 0}, {"batch_size": 0}, {"learning_rate": 0.0}, {"weight_decay": -1.0}):
        with pytest.raises(ConfigError, match=str(*wrong)):
            _settings(**wrong)
