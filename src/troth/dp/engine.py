"""The private engine: exact per-example clipping in one backward pass around the user's own model and optimizer."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MethodType
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from troth.data import Units
from troth.dp.batches import PhysicalBatch, draw_groups, physical_batches
from troth.dp.blocks import Block, make_blocks
from troth.dp.checks import (
    persistent_buffers,
    probe_independence,
    refuse_changed,
    refuse_losses,
    refuse_mismatch,
    refuse_other_units,
    refuse_unseen,
    refuse_written_buffers,
    trainable,
)
from troth.dp.clipping import Clipper
from troth.dp.flat import FlatGradient
from troth.dp.grid import grid_step, round_to_grid
from troth.dp.inspect import refuse_unsupported
from troth.dp.noise import beside, write_noise
from troth.dp.observation import EngineCounters, Observer
from troth.dp.registry import make_sites
from troth.dp.sampling import sample_units
from troth.dp.self_check import Call, check_engine, check_losses, refuse_unmoved, weights_of
from troth.dp.tape import Site, Tape, Use
from troth.dp.workspace import Workspace
from troth.errors import EngineStateError, SelfCheckError, UnsupportedModuleError
from troth.host_memory import keep_freed_memory
from troth.results import Privacy

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from torch.utils.hooks import RemovableHandle

    from troth.accounting.plan import PrivacyPlan
    from troth.seeds import PrivateRandomness

__all__ = ["PrivateEngine"]


class PrivateEngine:
    """Drives DP-SGD through a model and an optimizer that stay what they are.

    One step is: `batch` draws the rows and cuts them into physical batches; for each of these, `backward` takes the
    losses of its rows; then `step`. The plan owns sampling rate, clipping, noise and the accounting event;
    `randomness` gives both the sample and the noise of a step and is ratcheted after it.

    >>> import torch
    >>> from torch import nn
    >>> from torch.nn import functional as F
    >>> from troth.accounting import PrivacyPlan
    >>> from troth.seeds import PrivateRandomness
    >>> texts, labels = torch.randn(64, 8), torch.randint(2, (64,))
    >>> model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 2))
    >>> optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    >>> plan = PrivacyPlan(64, 16, 0.25, 3, noise_multiplier=1.0, clipping_norm=0.1, delta=1e-3)
    >>> engine = PrivateEngine(model, optimizer, plan, PrivateRandomness())
    >>> def losses_of(rows):
    ...     return F.cross_entropy(model(texts[rows]), labels[rows], reduction="none")
    >>> engine.check_losses(losses_of, range(4))
    >>> for batch in engine.batches(physical_batch_size=8):
    ...     for rows in batch:
    ...         engine.backward(losses_of(rows))
    ...     engine.step()
    >>> engine.privacy().steps
    3

    Guarantees:
    - the update uses (Σ_i g_i f_i + N(0, (σ S)²)) / E, with g_i the exact gradient of clipped unit i over all trainable
      parameters, f_i its factor by the plan's clipping rule, S the sensitivity and E the *expected* number of clipped
      gradients, however the batch is cut into physical batches;
    - a unit whose gradient norm is not finite adds exactly 0; an empty batch makes a step of noise alone;
    - the noise is drawn once per step, before anything is added to it;
    - `before_step` has returned before the update becomes visible;
    - the first batch is used to check the engine on this very model (`troth.dp.self_check`): nothing is released by an
      engine that plain autograd does not agree with, nor from losses that were not compared alone and in company;
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
        units: Units | None = None,
        before_step: Callable[[int], None] | None = None,
        self_check: bool = True,
        observer: Observer | None = None,
    ) -> None:
        """Attach to a model and an optimizer.

        Args:
            model: its trainable parameters lie in modules that `troth.dp.inspect` calls supported.
            optimizer: holds exactly the model's trainable parameters.
            plan: what each step does and how it is accounted.
            randomness: where the private draws come from.
            units: which rows make up a unit (`troth.data.privacy_units`); None where every row is one.
            before_step: called with the 0-based step index before each update; what it raises stops the step.
            self_check: whether to try the engine on the model before the first update, and to insist on `check_losses`.
            observer: told what the loop really does, for tests and studies.

        Raises:
            UnsupportedModuleError: a parameter or module cannot be clipped per example.
            PrivacyError: optimizer and model do not hold the same trainable parameters, or the plan is not for this
                number of units.
        """
        keep_freed_memory()
        refuse_unsupported(model)
        parameters = trainable(model)
        refuse_mismatch(parameters, optimizer)
        refuse_other_units(plan, units)
        self._units = Units.single(plan.examples) if units is None else units
        self.plan = plan
        self.randomness = randomness
        self.step_index = 0
        self.counters = EngineCounters()
        self._model, self._optimizer = model, optimizer
        self._before_step, self._observer = before_step, observer or Observer()
        self._names = {p: name for name, p in parameters.items()}
        self._gradient = FlatGradient(parameters)
        self._device = self._gradient.flat.device
        self._tape = Tape()
        self._seen: set[nn.Parameter] = set()
        self._all_seen = self._independent = False
        self._to_check = self._to_move = self._to_compare = self_check
        self._call: Call | None = None
        self._buffers = persistent_buffers(model)
        self._attached = self._whole = True
        self._stepping = False
        self._handles: list[RemovableHandle] = []
        sites = list(make_sites(model, self._tape))
        layers = {p: site.name for site in reversed(sites) for p in site.trained.values()}
        self._clipper = Clipper(plan, layers)
        self._open_batch()
        self._patch(sites)

    # Attaching and detaching

    def _patch(self, sites: list[Site]) -> None:
        """Stand in for the methods of the sites and put the guards up."""
        for site in sites:
            self._tape.sites[site.module] = site
            # A bound method in the instance's own dict: a deep copy of the module binds it to the copy.
            vars(site.host)[site.rule.method] = MethodType(site.rule.forward(self._tape), site.host)
        for parameter, name in self._names.items():
            self._handles.append(parameter.register_hook(_refuse_bypass(self._tape, name)))  # type: ignore[no-untyped-call]
        self._handles.append(self._model.register_forward_pre_hook(self._note_batch, with_kwargs=True, prepend=True))
        self._handles.append(self._optimizer.register_step_pre_hook(self._refuse_stray_step))
        self._handles.append(register_optimizer_step_pre_hook(_refuse_other_optimizers(weakref.ref(self))))
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
        self._tape.forward_batch = rows = _batch_size(args, kwargs)
        if self._to_check and rows and not self._tape.is_paused:
            self._call = Call(args, kwargs, rows)

    def _refuse_stray_step(self, optimizer: Optimizer, args: object, kwargs: object) -> None:
        if not self._stepping:
            raise EngineStateError(
                "optimizer.step() was called while the private engine is attached (by a GradScaler, which private "
                "training cannot use, a Trainer or the loop): call engine.step(), which adds the noise and counts the "
                "step, or engine.detach() first"
            )

    # One logical batch

    def _open_batch(self) -> None:
        self._sampled: int | None = None  # rows that backward must see, padding included; None: nothing drawn yet
        self._units_drawn = 0
        self._accumulated = 0
        self._current: PhysicalBatch | None = None
        self._fresh = True
        self._clipper.open_step()

    def _require_usable(self) -> None:
        if not self._attached:
            raise EngineStateError("the private engine was detached: attach a new one")
        if not self._whole:
            raise EngineStateError(
                "a private step was interrupted half-way: call engine.restore with a checkpoint's step and randomness"
            )

    def _require_steps(self) -> None:
        self._require_usable()
        if self.step_index >= self.plan.steps:
            raise EngineStateError(
                f"all {self.plan.steps} steps of the privacy plan are done: make a plan with more steps"
            )

    def sample(self) -> np.ndarray:
        """Return the rows of the next logical batch, int64, sorted, where every row is clipped alone; maybe none.

        The lower half of `batch`: cut the rows as you like, and pass each to `backward` once. Until `step` is called,
        the same rows come back.

        Raises:
            EngineStateError: all steps of the plan are done, or units or clip units hold several rows: use `batch`.
        """
        self._require_steps()
        if self.plan.clip_unit != "example" or not self._units.all_single:
            raise EngineStateError("units of several rows are clipped: draw with engine.batch or engine.batches")
        rows = sample_units(self.plan, self.randomness)
        self._sampled = self._units_drawn = len(rows)
        self._current = None
        return rows

    def batch(self, physical_batch_size: int, lengths: np.ndarray | None = None) -> Iterator[np.ndarray]:
        """Draw the next logical batch; yields the rows of one physical batch after the other, int64.

        Call `backward` with one loss for each row, in their order, before the next rows are taken. A row may come
        up several times in one physical batch: units of unlike size are padded, and the padding has weight 0.

        Args:
            physical_batch_size: rows that go through the model at once; pure performance, the result is the same. A
                unit of more rows is not cut.
            lengths: length of every row of the data set [rows], to put like ones together; None leaves the order.

        Raises:
            EngineStateError: all steps of the plan are done, or the losses of earlier rows are missing.
        """
        self._require_steps()
        if physical_batch_size < 1:
            raise EngineStateError(f"physical_batch_size = {physical_batch_size}: give 1 or more")
        if self.plan.clip_unit == "example" and self._units.all_single:
            rows = self.sample()
            if lengths is not None:
                rows = rows[np.asarray(lengths)[rows].argsort(kind="stable")]
            parts = [PhysicalBatch(part) for part in _cut(rows, physical_batch_size)]
        else:
            groups, self._units_drawn = draw_groups(self.plan, self._units, self.randomness)
            parts = physical_batches(groups, physical_batch_size, lengths)
        self._sampled = sum(len(part.rows) for part in parts)
        return self._hand_out(parts)

    def _hand_out(self, parts: list[PhysicalBatch]) -> Iterator[np.ndarray]:
        for part in parts:
            if self._current is not None:
                raise EngineStateError("the losses of the rows before are missing: call engine.backward for each batch")
            self._current = part
            yield part.rows

    def batches(self, physical_batch_size: int, lengths: np.ndarray | None = None) -> Iterator[Iterator[np.ndarray]]:
        """Yield the logical batches of all steps that are left; see `batch`. Call `step` after each."""
        while self.step_index < self.plan.steps:
            before = self.step_index
            yield self.batch(physical_batch_size, lengths)
            if self.step_index == before:
                raise EngineStateError("engine.step() is missing at the end of the batch: it adds the noise")

    def backward(self, losses: Tensor) -> None:
        """Clip each unit's gradient and add it to the step's sum.

        Args:
            losses: one loss per row of this physical batch [rows]; never a mean over the batch.

        Raises:
            EngineStateError: no batch was drawn, more rows than drawn, or losses that are not [rows].
            UnsupportedModuleError: rows of a module cannot be told apart by example.
            SelfCheckError: the engine is not exact on this model.
        """
        self._require_usable()
        refuse_losses(losses)
        part = self._current or PhysicalBatch(np.empty(len(losses), dtype=np.int64))
        if len(losses) != len(part.rows):
            raise EngineStateError(f"{len(losses)} losses for {len(part.rows)} rows: give one for each row, in order")
        if self._sampled is None or self._accumulated + len(losses) > self._sampled:
            raise EngineStateError(
                f"{self._accumulated + len(losses)} examples in a batch of which engine.sample() drew "
                f"{self._sampled or 0}: take the rows of each step from engine.sample(), each row once"
            )
        if len(losses) == 0:
            return
        if self._accumulated == 0:
            refuse_changed(self._names, self._model, self._optimizer)
        self._prepare()
        with torch.autocast(self._device.type, enabled=False):
            self._check(losses)
            if part.weights is not None:
                losses = losses * torch.from_numpy(part.weights).to(losses)
            work = self._workspace()
            with self._noise_beside(), self._tape.running(part.groups, part.size, work) as uses:
                losses.sum().backward()  # type: ignore[no-untyped-call]
                recorded = list(uses)
            self._whole = False
            with torch.no_grad():
                self._accumulate(recorded, part.groups, work)
        self._gradient.seal()
        self._accumulated += len(losses)
        self._current = None
        self._whole = True

    def check_losses(self, losses_of: Callable[[np.ndarray], Tensor], rows: np.ndarray) -> None:
        """Check that the losses of a few rows alone are their losses in company; nothing is counted or changed.

        The engine sees losses only after they were computed, so it cannot do this by itself, and the first `backward`
        refuses to go on without. Call it once, with rows of the data set or of the first physical batch.

        Raises:
            SelfCheckError: the loss of an example depends on the other examples of its batch.
        """
        call = self._call
        with self._tape.paused():
            check_losses(self._model, losses_of, rows)
        self._call, self._to_compare = call, False

    def _check(self, losses: Tensor) -> None:
        """Before anything is released: examples are independent, and the engine is exact on this model."""
        if not self._independent:
            self._independent = probe_independence(self._tape, losses, list(self._names))
        if self._to_compare:
            raise SelfCheckError(
                "whether a loss depends on the rest of its batch was not checked: call engine.check_losses(losses_of, "
                "rows) before the first engine.backward, losses_of(rows) being the losses of these rows, or attach the "
                "engine with self_check=False"
            )
        if not self._to_check:
            return
        if self._call is None:
            raise SelfCheckError(
                "the model itself was not called with a batch of inputs, so that the private engine cannot be checked "
                "on it: call the model rather than parts of it, or attach the engine with self_check=False"
            )
        check_engine(self._model, self._tape, self._call, self._names, self._workspace())
        self._to_check, self._call = False, None

    def _prepare(self) -> None:
        """Put dropped views back and refuse gradients that somebody else wrote to."""
        self._gradient.attach()
        if not self._fresh:
            self._gradient.verify()

    def _accumulate(self, uses: list[Use], batch: int, work: Workspace) -> None:
        blocks = make_blocks(uses)
        squares = [block.norms_squared(work) for block in blocks]
        if self._observer.norms is not None:
            self._observer.norms({self._label(b): s for b, s in zip(blocks, squares, strict=True)})
        factors, finite = self._clipper.factors(blocks, squares)
        if not bool(finite.all()):
            self.counters.silenced += batch - int(finite.sum())
            for block in blocks:
                block.silence(finite)
        for block, own in zip(blocks, factors, strict=True):
            work.set_factors(own)
            block.add_clipped(self._gradient.views, work)
            self._seen.update(block.parameters)

    def _workspace(self) -> Workspace:
        """Return fresh caches; a run that is to be reproducible elsewhere decides by formula, not by timings."""
        return Workspace(self._gradient.flat.dtype, self._device, measures=not self.randomness.insecure)

    def _label(self, block: Block) -> str:
        return "+".join(self._names[p] for p in block.parameters)

    @contextmanager
    def _noise_beside(self) -> Iterator[None]:
        """Fill a fresh buffer with the step's noise beside the block: once per step, before anything is added to it."""
        if not self._fresh:
            yield
            return
        plan, flat, std = self.plan, self._gradient.flat, self._clipper.noise_std

        def write(threads: int) -> None:
            write_noise(flat, std, self.randomness, secure=plan.secure_noise, draws=plan.noise_draws, threads=threads)

        with beside(flat, write):
            yield
        self._fresh = False
        self.counters.noise_draws += 1
        if self._observer.noise is not None:
            self._observer.noise(flat)

    def _round(self) -> None:
        """Round the noisy sum to the plan's grid: post-processing of what is about to be released."""
        if self.plan.grid_bits is not None and self.plan.noise_multiplier > 0:
            round_to_grid(self._gradient.flat, grid_step(self._clipper.noise_std, self.plan.grid_bits))

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
        refuse_changed(self._names, self._model, self._optimizer)
        if not self._all_seen and self._accumulated:
            refuse_unseen(self._names, self._seen)
            refuse_written_buffers(self._buffers, self._model)
            self._all_seen, self._buffers = True, {}
        self._prepare()
        with torch.no_grad():
            with self._noise_beside():
                pass  # a batch without rows is noise alone
            self._round()
        if self._before_step is not None:
            self._before_step(self.step_index)
        self._update()
        self._clipper.close_step(self.randomness)
        self.counters.steps += 1
        self.counters.batch_sizes.append(self._units_drawn)
        self.randomness = self.randomness.advance()
        self.step_index += 1
        self._open_batch()

    def _update(self) -> None:
        rates = [float(group.get("lr", 1.0)) for group in self._optimizer.param_groups]
        watched = self._to_move and all(rates) and self.plan.noise_multiplier > 0
        before = weights_of(self._names) if watched else {}
        self._stepping, self._whole = True, False
        try:
            self._optimizer.step()
        finally:
            self._stepping = False
        if watched:
            refuse_unmoved(before, self._names)
            self._to_move = False
        self._whole = True

    @property
    def clipping_norm(self) -> float:
        """C as it stands: the plan's, or what adaptive clipping made of it."""
        return self._clipper.norm

    def restore(self, step_index: int, randomness: PrivateRandomness, clipping_norm: float | None = None) -> None:
        """Go on from a checkpoint: `step_index` steps are done, `randomness` is the key of the next one.

        Whatever was accumulated since the last step is dropped. `clipping_norm` is the engine's at that step, which
        adaptive clipping needs.
        """
        if not self._attached:
            raise EngineStateError("the private engine was detached: attach a new one")
        if clipping_norm is None and self.plan.clipping == "adaptive" and step_index:
            raise EngineStateError("adaptive clipping goes on from the clipping norm of the checkpoint: pass it")
        self.step_index = step_index
        self.randomness = randomness
        if clipping_norm is not None:
            self._clipper.norm = clipping_norm
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
            noise="cryptographic" if plan.secure_noise else "non-cryptographic",
            sampler=plan.sampler,
            sampling_rate=plan.sampling_rate,
            steps=self.step_index,
            clipping_norm=plan.clipping_norm,
            unit=plan.unit,
            neighboring_relation=plan.neighboring_relation,
            accountant=plan.accountant,
            covers=("released weights",),
            guarantee="differential_privacy" if held else "none",
        )


def _cut(rows: np.ndarray, size: int) -> Iterator[np.ndarray]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def _refuse_other_optimizers(engine: weakref.ref[PrivateEngine]) -> Callable[..., None]:
    """Return a hook before every optimizer's step that refuses a second one over the engine's parameters."""

    def hook(optimizer: Optimizer, args: object, kwargs: object) -> None:
        mine = engine()
        if mine is None or not mine._attached or optimizer is mine._optimizer:
            return
        if any(p in mine._names for group in optimizer.param_groups for p in group["params"]):
            raise EngineStateError(
                "another optimizer steps over parameters of the private engine, whose gradients may lack their noise "
                "or show it twice: give the engine the one optimizer, or engine.detach() first"
            )

    return hook


def _refuse_bypass(tape: Tape, name: str) -> Callable[[Tensor | None], None]:
    """Return a gradient hook that refuses a gradient which did not come through the tape."""

    def hook(gradient: Tensor | None) -> None:
        if gradient is not None and not tape.is_paused:
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
    plain = {name: v for name, v in kwargs.items() if not isinstance(v, Mapping)}
    within = [v for v in (*args, *kwargs.values()) if isinstance(v, Mapping)]
    if within:
        return _batch_size((), plain | {name: v for part in within for name, v in part.items()})
    sizes = {v.shape[0] for v in (*args, *kwargs.values()) if isinstance(v, Tensor) and v.dim()}
    if len(sizes) > 1:
        sizes.discard(1)
    return sizes.pop() if len(sizes) == 1 else None
