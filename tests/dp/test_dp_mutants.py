"""Planted defects: each makes the oracle, or the test named beside it, fail. A test that cannot fail proves nothing."""

from __future__ import annotations

import math
from collections.abc import Callable

import dp_models
import numpy as np
import pytest
import test_dp_engine
import test_dp_noise
import test_dp_sampling
import torch
from dp_oracle import assert_exact
from torch import Tensor

import troth.dp.blocks
import troth.dp.clipping
import troth.dp.embedding
import troth.dp.engine
import troth.dp.linear
import troth.dp.tied
from troth.dp.linear import LinearBlock
from troth.dp.workspace import Workspace
from troth.errors import EngineStateError, UnsupportedModuleError
from troth.seeds import PrivateRandomness

Patch = pytest.MonkeyPatch


def no_clipping(patch: Patch) -> None:
    patch.setattr(troth.dp.engine, "clip_factors", lambda squared, c, e: torch.ones_like(squared) / e)


def clip_ten_times_too_wide(patch: Patch) -> None:
    right = troth.dp.clipping.clip_factors
    patch.setattr(troth.dp.engine, "clip_factors", lambda squared, c, e: right(squared, 10 * c, e))


def ghost_norm_one_percent_off(patch: Patch) -> None:
    """In one layer inside the encoder, the hardest place to see."""
    right = LinearBlock.norms_squared

    def wrong(self: LinearBlock, work: Workspace) -> Tensor:
        inside = "intermediate" in self.uses[0].name and "layer.1" in self.uses[0].name
        return right(self, work) * (1.01 if inside else 1.0)

    patch.setattr(LinearBlock, "norms_squared", wrong)


def bias_left_out_of_the_norm(patch: Patch) -> None:
    right = Workspace.gram
    patch.setattr(Workspace, "gram", lambda self, tensor, plus_one: right(self, tensor, plus_one=False))


def one_input_gram_for_all(patch: Patch) -> None:
    """The cache of input Gram matrices forgets which input they were made from."""
    patch.setattr(troth.dp.workspace, "_key", lambda tensor: tensor.shape)


def bias_of_one_layer_not_added(patch: Patch) -> None:
    right = LinearBlock.add_clipped

    def wrong(self: LinearBlock, views: dict, work: Workspace) -> None:
        if self.bias is not None:
            views = {**views, self.bias: torch.zeros_like(views[self.bias])}
        right(self, views, work)

    patch.setattr(LinearBlock, "add_clipped", wrong)


def repeated_uses_as_if_independent(patch: Patch) -> None:
    """The norms of a weight's uses are added instead of taken of their sum."""
    right = LinearBlock.norms_squared

    def wrong(self: LinearBlock, work: Workspace) -> Tensor:
        return sum(right(LinearBlock([use], self.weight, self.bias), work) for use in self.uses)

    patch.setattr(LinearBlock, "norms_squared", wrong)


def tied_norm_without_cross_term(patch: Patch) -> None:
    patch.setattr(troth.dp.tied.TiedBlock, "_cross", lambda self, work: 0.0)


def equal_ids_as_if_different(patch: Patch) -> None:
    right = troth.dp.embedding.EmbeddingBlock.norms_squared

    def wrong(self: troth.dp.embedding.EmbeddingBlock, work: Workspace) -> Tensor:
        return right(self, work) if self.uses[0].shared else work.squares(self.uses[0].g)

    patch.setattr(troth.dp.embedding.EmbeddingBlock, "norms_squared", wrong)


def padding_counted(patch: Patch) -> None:
    right = troth.dp.embedding.EmbeddingUse
    patch.setattr(troth.dp.embedding, "EmbeddingUse", lambda **fields: right(**{**fields, "padding_idx": None}))


def mean_over_the_batch(patch: Patch) -> None:
    right = troth.dp.engine.PrivateEngine.backward
    patch.setattr(troth.dp.engine.PrivateEngine, "backward", lambda self, losses: right(self, losses / len(losses)))


MODELS = {
    no_clipping: "mlp",
    clip_ten_times_too_wide: "mlp",
    ghost_norm_one_percent_off: "bert",
    bias_left_out_of_the_norm: "bert",
    one_input_gram_for_all: "bert",
    bias_of_one_layer_not_added: "bert",
    repeated_uses_as_if_independent: "repeated_layers",
    tied_norm_without_cross_term: "gpt2",
    equal_ids_as_if_different: "bert",
    padding_counted: "bag",
    mean_over_the_batch: "mlp",
}


@pytest.mark.parametrize(("mutate", "model"), MODELS.items(), ids=lambda v: v if isinstance(v, str) else v.__name__)
def test_the_oracle_catches(mutate: Callable[[Patch], None], model: str, monkeypatch: Patch) -> None:
    case = dp_models.CASES[model]().double()
    assert_exact(case, tolerance=1e-12)
    monkeypatch.setattr(troth.dp.linear, "instantiates", lambda *widths: False)
    assert_exact(case, tolerance=1e-12)
    mutate(monkeypatch)
    with pytest.raises(AssertionError):
        assert_exact(case, tolerance=1e-12)


def test_a_shared_row_for_the_whole_batch_is_refused(monkeypatch: Patch) -> None:
    """Position ids looked up once for the batch, as plain training does: their gradient is a sum over examples."""
    monkeypatch.setattr(troth.dp.embedding, "_batch_of", lambda site, ids: ids.shape[0])
    with pytest.raises(UnsupportedModuleError, match="first dimension is not the batch"):
        assert_exact(dp_models.bert(), tolerance=1e-6)


def test_division_by_the_realised_batch_size_is_caught(monkeypatch: Patch) -> None:
    right = troth.dp.clipping.clip_factors
    monkeypatch.setattr(troth.dp.engine, "clip_factors", lambda squared, c, e: right(squared, c, len(squared)))
    with pytest.raises(AssertionError):
        test_dp_engine.test_the_sum_is_divided_by_the_expected_batch_size()


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_bad_example_that_is_not_silenced_is_caught(poison: float, monkeypatch: Patch) -> None:
    """Weight 0 alone is not enough: 0 times NaN is NaN."""
    for block in (LinearBlock, troth.dp.embedding.EmbeddingBlock, troth.dp.norm.VectorBlock):
        monkeypatch.setattr(block, "silence", lambda self, keep: None)
    with pytest.raises(AssertionError):
        test_dp_engine.test_an_example_with_a_non_finite_norm_adds_exactly_nothing(poison)


def test_noise_missing_on_one_tensor_is_caught(monkeypatch: Patch) -> None:
    right = troth.dp.engine.write_noise

    def wrong(flat: Tensor, std: float, randomness: PrivateRandomness) -> None:
        right(flat, std, randomness)
        flat[-16:] = 0

    monkeypatch.setattr(troth.dp.engine, "write_noise", wrong)
    with pytest.raises(AssertionError):
        test_dp_noise.test_exactly_one_draw_a_step_however_the_batch_is_cut()


def test_noise_without_the_clipping_norm_is_caught(monkeypatch: Patch) -> None:
    right = troth.dp.engine.write_noise
    monkeypatch.setattr(troth.dp.engine, "write_noise", lambda flat, std, key: right(flat, std / 0.5, key))  # C is 0.5
    with pytest.raises(AssertionError):
        test_dp_sampling.test_the_running_loop_agrees_with_the_event_of_its_plan()


def test_reused_noise_is_caught(monkeypatch: Patch) -> None:
    monkeypatch.setattr(PrivateRandomness, "advance", lambda self: self)
    with pytest.raises(AssertionError):
        test_dp_noise.test_steps_are_independent()


def test_noise_twice_a_step_is_caught(monkeypatch: Patch) -> None:
    right = troth.dp.engine.PrivateEngine._write_noise

    def wrong(self: troth.dp.engine.PrivateEngine) -> None:
        self._fresh = True
        right(self)

    monkeypatch.setattr(troth.dp.engine.PrivateEngine, "_write_noise", wrong)
    with pytest.raises((AssertionError, EngineStateError)):
        test_dp_noise.test_exactly_one_draw_a_step_however_the_batch_is_cut()


def _fixed_size(examples: int, rate: float, generator: np.random.Generator) -> np.ndarray:
    return np.sort(generator.permutation(examples)[: round(examples * rate)])


def test_fixed_size_batches_accounted_as_poisson_are_caught(monkeypatch: Patch) -> None:
    monkeypatch.setattr(test_dp_sampling, "poisson_sample", _fixed_size)
    with pytest.raises(AssertionError):
        test_dp_sampling.test_batch_sizes_are_binomial()
    with pytest.raises(AssertionError):
        test_dp_sampling.test_rows_are_independent_of_each_other()


def test_a_wrong_sampling_rate_is_caught(monkeypatch: Patch) -> None:
    right = troth.dp.engine.poisson_sample
    monkeypatch.setattr(troth.dp.engine, "poisson_sample", lambda n, q, generator: right(n, 1.05 * q, generator))
    with pytest.raises(AssertionError):
        test_dp_sampling.test_the_running_loop_agrees_with_the_event_of_its_plan()
