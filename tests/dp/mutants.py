"""Planted defects of the engine, each with what must catch it. A test that cannot fail proves nothing."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import dp_models
import numpy as np
import pytest
import test_dp_engine
import test_dp_noise
import test_dp_sampling
import torch
from dp_oracle import Batch, Case, assert_exact, make_optimizer, plan_for
from torch import Tensor, nn
from torch.nn import functional as F

import troth.dp.batches
import troth.dp.clipping
import troth.dp.embedding
import troth.dp.engine
import troth.dp.linear
import troth.dp.norm
import troth.dp.sampling
import troth.dp.tied
import troth.dp.workspace
from troth.dp import PrivateEngine
from troth.dp.linear import LinearBlock
from troth.dp.workspace import Workspace
from troth.errors import PrivacyError
from troth.seeds import PrivateRandomness

Patch = pytest.MonkeyPatch
CAUGHT = (AssertionError, PrivacyError)
"""What a catcher raises: a test's assertion, or one of the engine's own refusals (the self-check's among them)."""


@dataclass(frozen=True)
class Mutant:
    """A defect: how it is planted, and the catchers that must raise while it is there and must not without it."""

    plant: Callable[[Patch], None]
    catchers: dict[str, Callable[[], object]]

    @property
    def name(self) -> str:
        return self.plant.__name__


def oracle(model: str) -> Callable[[], object]:
    """Compare with one example at a time, with ghost norms wherever they can be had."""

    def run() -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(troth.dp.linear, "instantiates", lambda *widths: False)
            assert_exact(dp_models.CASES[model]().double(), tolerance=1e-12)

    return run


def self_check(model: str) -> Callable[[], object]:
    """Take one private step as a user would: the engine's own checks must stop it."""

    def run() -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(troth.dp.linear, "instantiates", lambda *widths: False)
            private_step(dp_models.CASES[model]())

    return run


def private_step(case: Case, physical: int = 100) -> None:
    model = copy.deepcopy(case.model)
    trained = [p for p in model.parameters() if p.requires_grad]
    plan = plan_for(case.rows, noise_multiplier=1.0)
    engine = PrivateEngine(model, make_optimizer("sgd", trained, 0.1), plan, PrivateRandomness())

    def losses_of(rows: np.ndarray) -> Tensor:
        return case.losses(model, {k: v[rows] for k, v in case.batch.items()})

    engine.check_losses(losses_of, np.arange(case.rows))
    for rows in engine.batch(physical):
        engine.backward(losses_of(rows))
    engine.step()


def no_clipping(patch: Patch) -> None:
    patch.setattr(troth.dp.clipping, "clip_factors", lambda squared, c, e: torch.ones_like(squared) / e)


def clip_ten_times_too_wide(patch: Patch) -> None:
    right = troth.dp.clipping.clip_factors
    patch.setattr(troth.dp.clipping, "clip_factors", lambda squared, c, e: right(squared, 10 * c, e))


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


def positions_looked_up_once_for_the_batch(patch: Patch) -> None:
    """As plain training does: their gradient is a sum over examples."""
    patch.setattr(troth.dp.embedding, "_batch_of", lambda site, ids: ids.shape[0])


def mean_over_the_batch(patch: Patch) -> None:
    right = PrivateEngine.backward
    patch.setattr(PrivateEngine, "backward", lambda self, losses: right(self, losses / len(losses)))


def _token_mean(model: nn.Module, batch: Batch) -> Tensor:
    """Token losses over the number of tokens of the whole batch, summed by example: the right shape, the wrong loss."""
    logits = model(**{k: v for k, v in batch.items() if k != "labels"}).logits
    labels = batch["labels"]
    losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="none")
    return losses.view(labels.shape).sum(1) / (labels != -100).sum()


def token_mean_loss(patch: Patch) -> None:
    patch.setattr(dp_models, "token_loss", _token_mean)


def batch_statistics(patch: Patch) -> None:
    """A layer that subtracts the batch's mean, without parameters to betray it."""
    right = nn.Tanh.forward
    patch.setattr(nn.Tanh, "forward", lambda self, x: right(self, x - x.mean(0, keepdim=True)))


def stale_parameters(patch: Patch) -> None:
    """The optimizer updates copies (Opacus issue 820)."""
    right = torch.optim.SGD.step

    def wrong(self: torch.optim.SGD, closure: None = None) -> None:
        kept = [p.detach().clone() for group in self.param_groups for p in group["params"]]
        right(self)
        for p, old in zip((p for group in self.param_groups for p in group["params"]), kept, strict=True):
            p.data.copy_(old)

    patch.setattr(torch.optim.SGD, "step", wrong)


def division_by_the_realised_batch_size(patch: Patch) -> None:
    right = troth.dp.clipping.clip_factors
    patch.setattr(troth.dp.clipping, "clip_factors", lambda squared, c, e: right(squared, c, len(squared)))


def bad_example_not_silenced(patch: Patch) -> None:
    """Weight 0 alone is not enough: 0 times NaN is NaN."""
    for block in (LinearBlock, troth.dp.embedding.EmbeddingBlock, troth.dp.norm.VectorBlock):
        patch.setattr(block, "silence", lambda self, keep: None)


def noise_missing_on_one_tensor(patch: Patch) -> None:
    right = troth.dp.engine.write_noise

    def wrong(flat: Tensor, *args: object, **kwargs: object) -> None:
        right(flat, *args, **kwargs)
        flat[-16:] = 0

    patch.setattr(troth.dp.engine, "write_noise", wrong)


def noise_without_the_clipping_norm(patch: Patch) -> None:
    right = troth.dp.engine.write_noise
    patch.setattr(
        troth.dp.engine, "write_noise", lambda flat, std, *args, **kwargs: right(flat, std / 0.5, *args, **kwargs)
    )  # C is 0.5


def noise_before_clipping(patch: Patch) -> None:
    """The noisy sum is clipped again: less noise than the plan says."""
    right = PrivateEngine._accumulate

    def wrong(self: PrivateEngine, *args: object) -> None:
        right(self, *args)
        flat = self._gradient.flat
        flat.mul_((self.plan.clipping_norm / self.plan.divisor / flat.norm()).clamp(max=1))

    patch.setattr(PrivateEngine, "_accumulate", wrong)


def reused_noise(patch: Patch) -> None:
    patch.setattr(PrivateRandomness, "advance", lambda self: self)


def noise_twice_a_step(patch: Patch) -> None:
    right = PrivateEngine._noise_beside

    def wrong(self: PrivateEngine) -> AbstractContextManager[None]:
        self._fresh = True
        return right(self)

    patch.setattr(PrivateEngine, "_noise_beside", wrong)


def _fixed_size(examples: int, rate: float, generator: np.random.Generator) -> np.ndarray:
    return np.sort(generator.permutation(examples)[: round(examples * rate)])


def shuffled_but_accounted_as_poisson(patch: Patch) -> None:
    patch.setattr(test_dp_sampling, "poisson_sample", _fixed_size)


def wrong_sampling_rate(patch: Patch) -> None:
    right = troth.dp.sampling.poisson_sample
    patch.setattr(troth.dp.sampling, "poisson_sample", lambda n, q, generator: right(n, 1.05 * q, generator))


def last_physical_batch_dropped(patch: Patch) -> None:
    right = PrivateEngine._hand_out
    patch.setattr(PrivateEngine, "_hand_out", lambda self, parts: right(self, parts[:-1]))


def _cut_step() -> None:
    private_step(dp_models.mlp(), physical=2)


def _poison() -> None:
    test_dp_engine.test_an_example_with_a_non_finite_norm_adds_exactly_nothing(math.nan)


def _loop() -> None:
    test_dp_sampling.test_the_running_loop_agrees_with_the_event_of_its_plan()


def _one_draw() -> None:
    test_dp_noise.test_exactly_one_draw_a_step_however_the_batch_is_cut()


def _norms(plant: Callable[[Patch], None], model: str) -> Mutant:
    """A defect of norms or sums on one model: the self-check and the oracle both see it."""
    return Mutant(plant, {"self-check": self_check(model), "oracle": oracle(model)})


MUTANTS = (
    Mutant(no_clipping, {"oracle": oracle("mlp")}),
    Mutant(clip_ten_times_too_wide, {"oracle": oracle("mlp")}),
    _norms(ghost_norm_one_percent_off, "bert"),
    _norms(bias_left_out_of_the_norm, "bert"),
    _norms(one_input_gram_for_all, "bert"),
    _norms(bias_of_one_layer_not_added, "bert"),
    _norms(repeated_uses_as_if_independent, "repeated_layers"),
    _norms(tied_norm_without_cross_term, "gpt2"),
    _norms(equal_ids_as_if_different, "bert"),
    _norms(padding_counted, "bag"),
    _norms(positions_looked_up_once_for_the_batch, "bert"),
    Mutant(mean_over_the_batch, {"oracle": oracle("mlp")}),
    Mutant(token_mean_loss, {"self-check": self_check("gpt2")}),
    Mutant(batch_statistics, {"self-check": self_check("mlp")}),
    Mutant(stale_parameters, {"self-check": self_check("mlp")}),
    Mutant(
        division_by_the_realised_batch_size,
        {"test of the divisor": test_dp_engine.test_the_sum_is_divided_by_the_expected_batch_size},
    ),
    Mutant(bad_example_not_silenced, {"test of poisoned examples": _poison}),
    Mutant(noise_missing_on_one_tensor, {"test of the draws": _one_draw}),
    Mutant(noise_without_the_clipping_norm, {"test of the event": _loop}),
    Mutant(
        noise_before_clipping,
        {"test of sum and noise": test_dp_noise.test_what_reaches_the_optimizer_is_the_sum_plus_that_noise},
    ),
    Mutant(reused_noise, {"test of steps": test_dp_noise.test_steps_are_independent}),
    Mutant(noise_twice_a_step, {"test of the draws": _one_draw}),
    Mutant(
        shuffled_but_accounted_as_poisson,
        {
            "test of sizes": test_dp_sampling.test_batch_sizes_are_binomial,
            "test of pairs": test_dp_sampling.test_rows_are_independent_of_each_other,
        },
    ),
    Mutant(wrong_sampling_rate, {"test of the event": _loop}),
    Mutant(last_physical_batch_dropped, {"self-check": _cut_step}),
)
