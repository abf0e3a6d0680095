"""The private engine: exact per-example clipping in one backward pass around the user's own model and optimizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MethodType
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from troth.dp.blocks import Block, make_blocks
from troth.dp.checks import (
    probe_independence,
    refuse_changed,
    refuse_losses,
    refuse_mismatch,
    refuse_unseen,
    trainable,
)
from troth.dp.clipping import clip_factors
from troth.dp.flat import FlatGradient
from troth.dp.inspect import refuse_unsupported
from troth.dp.noise import write_noise
from troth.dp.registry import make_sites
from troth.dp.sampling import poisson_sample
from troth.dp.tape import Site, Tape, Use
from troth.dp.workspace import Workspace
from troth.errors import EngineStateError, UnsupportedModuleError
from troth.results import Privacy

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from torch.utils.hooks import RemovableHandle

    from troth.accounting.plan import PrivacyPlan
    from troth.seeds import PrivateRandomness

__all__ = ["EngineCounters", "PrivateEngine"]


@dataclass
class EngineCounters:
    """What the running loop really did, counted where it happened.

    Realised batch sizes are private (they are drawn): never show them beside a guarantee.

    Attributes:
        steps: updates made.
        noise_draws: times the whole buffer was filled with noise.
        batch_sizes: examples clipped and added in each step.
        silenced: examples whose gradient norm was not finite, so that they added nothing.
    """

    steps: int = 0
    noise_draws: int = 0
    batch_sizes: list[int] = field(default_factory=list)
    silenced: int = 0

    @property
    def examples(self) -> int:
        """Examples clipped and added in all steps made."""
        return sum(self.batch_sizes)


class PrivateEngine:
    """Drives DP-SGD through a model and an optimizer that stay what they are.

    One step is: `sample` the rows, call `backward` with the per-example losses of each physical batch of these rows,
    then `step`. The plan owns sampling rate, clipping norm, noise and the accounting event; `randomness` gives both the
    sample and the noise of a step and is ratcheted after it.

    Guarantees:
    - the update uses (Σ_i g_i min(1, C / (norm(g_i) + 1e-6)) + N(0, (σC)²)) / E, with g_i the exact gradient of example
      i over all trainable parameters and E the *expected* batch size, however the batch is cut into physical batches;
    - an example whose gradient norm is not finite adds exactly 0; an empty batch makes a step of noise alone;
    - the noise is drawn once per step, before anything is added to it;
    - `before_step` has returned before the update becomes visible;
    - the model's class, `state_dict` and exports are untouched; `detach` puts everything back.

    Attributes:
        step_index: steps done.
        randomness: the key of the step that comes next.
        counters: what the running loop did.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        plan: PrivacyPlan,
        randomness: PrivateRandomness,
        *,
        before_step: Callable[[int], None] | None = None,
        record_noise: Callable[[Tensor], None] | None = None,
        record_norms: Callable[[Mapping[str, Tensor]], None] | None = None,
    ) -> None:
        """Attach to a model and an optimizer.

        Args:
            model: its trainable parameters lie in modules that `troth.dp.inspect` calls supported.
            optimizer: holds exactly the model's trainable parameters.
            plan: what each step does and how it is accounted.
            randomness: where the private draws come from.
            before_step: called with the 0-based step index before each update; what it raises stops the step.
            record_noise: for tests: called with the buffer [elements] right after the noise was written.
            record_norms: for tests: called with the squared gradient norms [batch] of each physical batch by block.

        Raises:
            UnsupportedModuleError: a parameter or module cannot be clipped per example.
            PrivacyError: optimizer and model do not hold the same trainable parameters.
        """
        refuse_unsupported(model)
        parameters = trainable(model)
        refuse_mismatch(parameters, optimizer)
        self.plan = plan
        self.randomness = randomness
        self.step_index = 0
        self.counters = EngineCounters()
        self._model, self._optimizer = model, optimizer
        self._before_step, self._record_noise, self._record_norms = before_step, record_noise, record_norms
        self._names = {p: name for name, p in parameters.items()}
        self._gradient = FlatGradient(parameters)
        self._device = self._gradient.flat.device
        self._tape = Tape()
        self._seen: set[nn.Parameter] = set()
        self._all_seen = self._independent = False
        self._attached = self._whole = True
        self._stepping = False
        self._handles: list[RemovableHandle] = []
        self._open_batch()
        self._patch(list(make_sites(model, self._tape)))

    # Attaching and detaching

    def _patch(self, sites: list[Site]) -> None:
        """Stand in for the methods of the sites and put the guards up."""
        for site in sites:
            self._tape.sites[site.module] = site
            # A bound method in the instance's own dict: a deep copy of the module binds it to the copy.
            vars(site.host)[site.rule.method] = MethodType(site.rule.forward(self._tape), site.host)
        for parameter, name in self._names.items():
            self._handles.append(parameter.register_hook(_refuse_bypass(name)))  # type: ignore[no-untyped-call]
        self._handles.append(self._model.register_forward_pre_hook(self._note_batch, with_kwargs=True, prepend=True))
        self._handles.append(self._optimizer.register_step_pre_hook(self._refuse_stray_step))
        self._gradient.take_over()

    def detach(self) -> None:
        """Put model, gradients and optimizer back as they were; the engine cannot be used any more."""
        if not self._attached:
            return
        self._attached = False
        for site in self._tape.sites.values():
            vars(site.host).pop(site.rule.method, None)
        self._tape.sites.clear()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._gradient.release()

    def _note_batch(self, module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        self._tape.forward_batch = _batch_size(args, kwargs)

    def _refuse_stray_step(self, optimizer: Optimizer, args: object, kwargs: object) -> None:
        if not self._stepping:
            raise EngineStateError(
                "optimizer.step() was called while the private engine is attached: call engine.step(), which adds the "
                "noise and counts the step, or engine.detach() first"
            )

    # One logical batch

    def _open_batch(self) -> None:
        self._sampled: int | None = None
        self._accumulated = 0
        self._fresh = True

    def _require_usable(self) -> None:
        if not self._attached:
            raise EngineStateError("the private engine was detached: attach a new one")
        if not self._whole:
            raise EngineStateError(
                "a private step was interrupted half-way: call engine.restore with a checkpoint's step and randomness"
            )

    def sample(self) -> np.ndarray:
        """Return the row indices of the next logical batch, int64: a Poisson sample, which may be empty.

        Until `step` is called, the same rows come back.

        Raises:
            EngineStateError: all steps of the plan are done.
        """
        self._require_usable()
        if self.step_index >= self.plan.steps:
            raise EngineStateError(
                f"all {self.plan.steps} steps of the privacy plan are done: make a plan with more steps"
            )
        rows = poisson_sample(self.plan.examples, self.plan.sampling_rate, self.randomness.generator("sample"))
        self._sampled = len(rows)
        return rows

    def backward(self, losses: Tensor) -> None:
        """Clip each example's gradient and add it to the step's sum.

        Args:
            losses: one loss per example of this physical batch [batch]; never a mean over the batch.

        Raises:
            EngineStateError: `sample` was not called, more rows than sampled, or losses that are not [batch].
            UnsupportedModuleError: rows of a module cannot be told apart by example.
        """
        self._require_usable()
        refuse_losses(losses)
        batch = len(losses)
        if self._sampled is None or self._accumulated + batch > self._sampled:
            raise EngineStateError(
                f"{self._accumulated + batch} examples in a batch of which engine.sample() drew {self._sampled or 0}: "
                "take the rows of each step from engine.sample(), each row once"
            )
        if batch == 0:
            return
        self._prepare()
        with torch.autocast(self._device.type, enabled=False):
            if not self._independent:
                self._independent = probe_independence(self._tape, losses, list(self._names))
            with self._tape.running(batch) as uses:
                losses.sum().backward()  # type: ignore[no-untyped-call]
                recorded = list(uses)
            self._whole = False
            with torch.no_grad():
                self._accumulate(recorded, batch)
        self._gradient.seal()
        self._accumulated += batch
        self._whole = True

    def _prepare(self) -> None:
        """Put dropped views back and refuse gradients that somebody else wrote to."""
        self._gradient.attach()
        if not self._fresh:
            self._gradient.verify()

    def _accumulate(self, uses: list[Use], batch: int) -> None:
        blocks = make_blocks(uses)
        work = Workspace(self._gradient.flat.dtype)
        squares = [block.norms_squared(work) for block in blocks]
        if self._record_norms is not None:
            self._record_norms({self._label(b): s for b, s in zip(blocks, squares, strict=True)})
        total = torch.stack(squares).sum(0, dtype=torch.float64)
        finite = total.isfinite()
        if not bool(finite.all()):
            self.counters.silenced += batch - int(finite.sum())
            for block in blocks:
                block.silence(finite)
        work.set_factors(clip_factors(total, self.plan.clipping_norm, self.plan.expected_batch_size))
        self._write_noise()
        for block in blocks:
            block.add_clipped(self._gradient.views, work)
            self._seen.update(block.parameters)

    def _label(self, block: Block) -> str:
        return "+".join(self._names[p] for p in block.parameters)

    def _write_noise(self) -> None:
        """Fill a fresh buffer with the step's noise: once per step, before anything is added to it."""
        if not self._fresh:
            return
        scale = self.plan.noise_multiplier * self.plan.clipping_norm / self.plan.expected_batch_size
        write_noise(self._gradient.flat, scale, self.randomness)
        self._fresh = False
        self.counters.noise_draws += 1
        if self._record_noise is not None:
            self._record_noise(self._gradient.flat)

    def step(self) -> None:
        """Make one private update: noise is in, `before_step` is told, the optimizer steps, the randomness ratchets.

        Raises:
            EngineStateError: `sample` was not called, rows of the sample are missing, or gradients were changed.
            UnsupportedModuleError: in the first step, a trainable parameter got no gradient through its module.
        """
        self._require_usable()
        if self._sampled is None or self._accumulated != self._sampled:
            raise EngineStateError(
                f"engine.step() after {self._accumulated} examples where engine.sample() drew "
                f"{'none yet' if self._sampled is None else self._sampled}: pass every sampled row through "
                "engine.backward once"
            )
        refuse_changed(list(self._names), self._model, self._optimizer)
        if not self._all_seen and self._accumulated:
            refuse_unseen(self._names, self._seen)
            self._all_seen = True
        self._prepare()
        with torch.no_grad():
            self._write_noise()
        if self._before_step is not None:
            self._before_step(self.step_index)
        self._update()
        self.counters.steps += 1
        self.counters.batch_sizes.append(self._accumulated)
        self.randomness = self.randomness.advance()
        self.step_index += 1
        self._open_batch()

    def _update(self) -> None:
        self._stepping, self._whole = True, False
        try:
            self._optimizer.step()
        finally:
            self._stepping = False
        self._whole = True

    def restore(self, step_index: int, randomness: PrivateRandomness) -> None:
        """Go on from a checkpoint: `step_index` steps are done, `randomness` is the key of the next one.

        Whatever was accumulated since the last step is dropped.
        """
        if not self._attached:
            raise EngineStateError("the private engine was detached: attach a new one")
        self.step_index = step_index
        self.randomness = randomness
        self._whole = True
        self._open_batch()

    def privacy(self) -> Privacy:
        """Return the privacy of the weights as they are now, after `step_index` steps."""
        plan = self.plan
        epsilon: float | None = None
        if not self.randomness.insecure and plan.noise_multiplier > 0:
            epsilon = plan.epsilon(self.step_index) if self.step_index else 0.0
        held = epsilon is not None and np.isfinite(epsilon)
        return Privacy(
            epsilon=epsilon if held else None,
            delta=plan.delta,
            noise_multiplier=plan.noise_multiplier,
            noise="non-cryptographic",
            sampler="poisson",
            sampling_rate=plan.sampling_rate,
            steps=self.step_index,
            clipping_norm=plan.clipping_norm,
            unit="example",
            neighboring_relation="add_remove",
            accountant=plan.accountant,
            covers=("released weights",),
            guarantee="differential_privacy" if held else "none",
        )


def _refuse_bypass(name: str) -> Callable[[Tensor | None], None]:
    """Return a gradient hook that refuses a gradient which did not come through the tape."""

    def hook(gradient: Tensor | None) -> None:
        if gradient is not None:
            raise UnsupportedModuleError(
                f"parameter {name} got a gradient outside of its module, which cannot be clipped per example: call the "
                "module instead of using its weight, or freeze it (requires_grad_(False))"
            )

    return hook


def _batch_size(args: tuple[object, ...], kwargs: Mapping[str, object]) -> int | None:
    """Return the batch size of a call of the model: that of its token ids, or what all its inputs agree on."""
    for value in (kwargs.get("input_ids"), kwargs.get("inputs_embeds"), *args[:1]):
        if isinstance(value, Tensor) and value.dim():
            return value.shape[0]
    sizes = {v.shape[0] for v in (*args, *kwargs.values()) if isinstance(v, Tensor) and v.dim()}
    if len(sizes) > 1:
        sizes.discard(1)
    return sizes.pop() if len(sizes) == 1 else None
