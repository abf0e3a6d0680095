"""A linear-chain conditional random field over tags: losses, marginals, Viterbi paths (Lafferty et al., ICML 2001).

The probability of tags y of a row of n words with emissions e [n, labels] is exp(s(y)) / Z with

    s(y) = start[y_1] + Σ_t e_t[y_t] + Σ_{t>1} transitions[y_{t-1}, y_t] + end[y_n]

and Z the sum of exp(s) over all paths. Sums over paths are products of matrices of probabilities, scaled at each step
(Rabiner 1989, section V.A), in float64: as long as potentials differ by less than some 700 nats nothing is lost.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

__all__ = ["LinearChainCRF", "Potentials"]


class Potentials(NamedTuple):
    """What a path scores beside its emissions, in nats, once for each row of a batch and the same for all rows.

    Attributes:
        start: [batch, labels] of the first tag.
        transitions: [batch, labels, labels] from a tag (dimension 1) to the next one (dimension 2).
        end: [batch, labels] of the last tag.
    """

    start: Tensor
    transitions: Tensor
    end: Tensor


class LinearChainCRF(nn.Module):
    """Scores of first tags, last tags and pairs of neighbouring tags; all paths are allowed.

    A row is its first `lengths` words; what stands behind them changes nothing.
    """

    def __init__(self, labels: int) -> None:
        super().__init__()
        self.start = nn.Parameter(torch.zeros(labels))
        self.transitions = nn.Parameter(torch.zeros(labels, labels))
        self.end = nn.Parameter(torch.zeros(labels))

    def potentials(self, batch: int) -> Potentials:
        """Return the parameters once for each of `batch` rows.

        All that this module computes comes by here, so that private training can tell rows apart (`troth.dp`).
        """
        return Potentials(
            self.start.expand(batch, -1), self.transitions.expand(batch, -1, -1), self.end.expand(batch, -1)
        )

    def forward(self, emissions: Tensor, tags: Tensor, lengths: Tensor) -> Tensor:
        """Return [batch] negative log-likelihoods of the tags in nats, at least 0, in the emissions' type.

        A word whose tag is negative may have any: the likelihood is that of the other words' tags (Tsuboi et al.,
        COLING 2008, equation 5). A row without any tag has loss 0.

        Args:
            emissions: [batch, time, labels], any floating dtype; half precision gives float32.
            tags: [batch, time] int64, negative where unknown.
            lengths: [batch] int64, at least 1.
        """
        out = _Loss.apply(emissions, tags, lengths, *self.potentials(len(emissions)))  # type: ignore[no-untyped-call]
        return cast("Tensor", out)

    def log_marginals(self, emissions: Tensor, lengths: Tensor) -> Tensor:
        """Return [batch, time, labels] float64: the log-probability of each tag at each word, given the whole row.

        They are summed over all paths by the forward-backward algorithm, and are without a gradient; 0 nats for every
        tag behind a row's end.
        """
        with torch.no_grad():
            chain = _Chain.of(self.potentials(len(emissions)))
            sums = _forward(emissions.double(), chain, lengths)
            return _expected(sums, chain).unary.where(sums.inside.t()[:, :, None], 1).log()

    def decode(self, emissions: Tensor, lengths: Tensor) -> Tensor:
        """Return [batch, time] int64: the tags of each row's most probable path (Viterbi), 0 behind its end."""
        with torch.no_grad():
            return _viterbi(emissions, self.potentials(len(emissions)), lengths)


@dataclass(frozen=True)
class _Chain:
    """Potentials as weights: exp(potential - shift) in float64, one copy for all rows."""

    start: Tensor  # [labels]
    moves: Tensor  # [labels, labels]
    end: Tensor  # [labels]
    shifts: tuple[Tensor, Tensor, Tensor]

    @classmethod
    def of(cls, potentials: Potentials) -> _Chain:
        own = [part.detach()[0].double() for part in potentials]
        peaks = [part.max() for part in own]
        start, moves, end = ((part - peak).exp() for part, peak in zip(own, peaks, strict=True))
        return cls(start, moves, end, (peaks[0], peaks[1], peaks[2]))


@dataclass(frozen=True)
class _Sums:
    """Sums over all paths up to each word; what stands behind a row's end is finite and means nothing.

    Attributes:
        log_partition: [batch] log Z.
        alphas: [time, batch, labels] the share of each tag among the paths up to a word.
        weights: [time, batch, labels] the emissions as weights, divided by what the weights of a step summed to.
        inside: [time, batch] True at a row's own words.
    """

    log_partition: Tensor
    alphas: Tensor
    weights: Tensor
    inside: Tensor


@dataclass(frozen=True)
class _Counts:
    """How often a row's paths show each tag and each pair of neighbours; expected counts are gradients of log Z.

    Attributes:
        unary: [batch, time, labels], 0 behind a row's end.
        pairs: [batch, labels, labels], summed over the row.
    """

    unary: Tensor
    pairs: Tensor


def _forward(emissions: Tensor, chain: _Chain, lengths: Tensor) -> _Sums:
    """Return the sums of float64 emissions [batch, time, labels], -inf where a tag is ruled out."""
    scores = emissions.transpose(0, 1)
    time, batch, _ = scores.shape
    inside = torch.arange(time, device=scores.device)[:, None] < lengths
    peaks = scores.amax(2, keepdim=True)
    weights = torch.sub(scores, peaks).exp_()
    alphas, scales = torch.empty_like(weights), torch.empty_like(peaks)
    for t in range(time):
        torch.mul(chain.start if t == 0 else alphas[t - 1] @ chain.moves, weights[t], out=alphas[t])
        torch.sum(alphas[t], 1, keepdim=True, out=scales[t])
        alphas[t].div_(scales[t])
    last = alphas[lengths - 1, torch.arange(batch, device=lengths.device)]
    logs = (scales.log() + peaks).squeeze(2).where(inside, 0).sum(0) + (last @ chain.end).log()
    start, move, end = chain.shifts
    return _Sums(logs + start + move * (lengths - 1) + end, alphas, weights.div_(scales), inside)


def _expected(sums: _Sums, chain: _Chain) -> _Counts:
    """Return the expected counts, by the sums over all paths from each word on."""
    betas, onward = torch.empty_like(sums.alphas), torch.zeros_like(sums.alphas)
    betas[-1] = chain.end
    for t in range(len(betas) - 1, 0, -1):
        torch.mul(sums.weights[t], betas[t], out=onward[t])
        betas[t - 1] = torch.where(sums.inside[t][:, None], onward[t] @ chain.moves.t(), chain.end)
    unary = betas.mul_(sums.alphas)
    shares = (1 / unary.sum(2, keepdim=True)).where(sums.inside[:, :, None], 0)
    onward.mul_(shares)
    pairs = torch.bmm(sums.alphas[:-1].permute(1, 2, 0), onward[1:].transpose(0, 1)).mul_(chain.moves)
    return _Counts(unary.mul_(shares).transpose(0, 1), pairs)


def _observed(emissions: Tensor, tags: Tensor, inside: Tensor, potentials: Potentials) -> tuple[Tensor, _Counts]:
    """Return the scores [batch] of float64 emissions' only path, all of whose tags are known, and its counts."""
    batch, _, labels = emissions.shape
    tags, own = tags.where(inside, 0), inside.double()
    unary = torch.zeros_like(emissions).scatter_(2, tags[:, :, None], own[:, :, None])
    places = tags[:, :-1] * labels + tags[:, 1:]
    pairs = emissions.new_zeros(batch, labels * labels).scatter_add_(1, places, own[:, 1:])
    start, transitions, end = (part[0].double() for part in potentials)
    rows = torch.arange(batch, device=tags.device)
    scores = (emissions * unary).sum((1, 2)) + start[tags[:, 0]] + end[tags[rows, inside.sum(1) - 1]]
    scores = scores + (transitions.flatten()[places] * own[:, 1:]).sum(1)
    return scores, _Counts(unary, pairs.view(batch, labels, labels))


class _LossContext(FunctionCtx):
    saved_tensors: tuple[Tensor, ...]


class _Loss(torch.autograd.Function):
    """log Z less the log of the sum over the paths that carry the known tags; gradients are differences of counts."""

    @staticmethod
    def forward(
        ctx: _LossContext,
        emissions: Tensor,
        tags: Tensor,
        lengths: Tensor,
        start: Tensor,
        transitions: Tensor,
        end: Tensor,
    ) -> Tensor:
        potentials = Potentials(start, transitions, end)
        chain = _Chain.of(potentials)
        scores, inside = emissions.double(), torch.arange(tags.shape[1], device=tags.device) < lengths[:, None]
        every = _forward(scores, chain, lengths)
        expected = _expected(every, chain)
        if bool(((tags >= 0) | ~inside).all()):
            carried, counts = _observed(scores, tags, inside, potentials)
        else:
            allowed = (tags[:, :, None] < 0) | (tags[:, :, None] == torch.arange(scores.shape[2], device=tags.device))
            these = _forward(scores.where(allowed, -torch.inf), chain, lengths)
            carried, counts = these.log_partition, _expected(these, chain)
        unary, pairs = expected.unary.sub_(counts.unary), expected.pairs.sub_(counts.pairs)
        last = unary[torch.arange(len(tags), device=tags.device), lengths - 1]
        grads = ((unary, emissions), (unary[:, 0], start), (pairs, transitions), (last, end))
        ctx.save_for_backward(*(grad.to(of.dtype) for grad, of in grads))
        # Both sums round on their own: their difference may come out a hair below 0.
        loss = (every.log_partition - carried).clamp(min=0)
        return loss.to(torch.promote_types(emissions.dtype, torch.float32))

    @staticmethod
    @once_differentiable
    def backward(ctx: _LossContext, g: Tensor) -> tuple[Tensor | None, ...]:
        unary, first, pairs, last = ctx.saved_tensors
        row = g[:, None]
        return row[:, :, None] * unary, None, None, row * first, row[:, :, None] * pairs, row * last


def _viterbi(emissions: Tensor, potentials: Potentials, lengths: Tensor) -> Tensor:
    """Return the tags [batch, time] of the best paths."""
    batch, time, labels = emissions.shape
    own = torch.arange(labels, device=emissions.device).expand(batch, -1)
    best = potentials.start + emissions[:, 0]
    came_from = []
    for t in range(1, time):
        inside = (t < lengths)[:, None]
        totals, before = (best[:, :, None] + potentials.transitions).max(1)
        best = torch.where(inside, totals + emissions[:, t], best)
        came_from.append(torch.where(inside, before, own))
    tags = [(best + potentials.end).argmax(1)]
    for before in reversed(came_from):
        tags.append(before.gather(1, tags[-1][:, None]).squeeze(1))
    path = torch.stack(tags[::-1], 1)
    return path.where(torch.arange(time, device=path.device) < lengths[:, None], 0)
