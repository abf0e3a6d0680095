"""The linear-chain random field against the enumeration of all its paths."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from troth.tasks.crf import LinearChainCRF

ROWS, WORDS, LABELS = 4, 5, 3
LENGTHS = torch.tensor([5, 1, 3, 4])


def field(scale: float = 1.0, seed: int = 0) -> LinearChainCRF:
    torch.manual_seed(seed)
    crf = LinearChainCRF(LABELS).double()
    with torch.no_grad():
        for parameter in crf.parameters():
            parameter.normal_(0, scale)
    return crf


def emissions(scale: float = 1.0, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(ROWS, WORDS, LABELS, generator=generator, dtype=torch.float64)


def tags(*, partial: bool = False) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    found = torch.randint(LABELS, (ROWS, WORDS), generator=generator)
    return found.where(torch.rand(found.shape, generator=generator) > 0.4, -100) if partial else found


def paths(crf: LinearChainCRF, scores: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """All paths of a row [paths, length] and their scores [paths], by the definition."""
    every = torch.tensor(list(itertools.product(range(LABELS), repeat=length)))
    total = crf.start[every[:, 0]] + crf.end[every[:, -1]]
    total = total + scores[torch.arange(length), every].sum(1)
    total = total + crf.transitions[every[:, :-1], every[:, 1:]].sum(1)
    return every, total


def enumerated_losses(crf: LinearChainCRF, scores: Tensor, gold: Tensor) -> Tensor:
    out = []
    for row, length in enumerate(LENGTHS.tolist()):
        every, total = paths(crf, scores[row], length)
        known = gold[row, :length]
        carrying = ((every == known) | (known < 0)).all(1)
        out.append(total.logsumexp(0) - total[carrying].logsumexp(0))
    return torch.stack(out)


@pytest.mark.parametrize("scale", [0.0, 1.0, 30.0])
@pytest.mark.parametrize("partial", [False, True], ids=["all-tags", "some-tags"])
def test_losses_and_gradients_are_those_of_all_paths(partial: bool, scale: float) -> None:
    crf, scores, gold = field(scale), emissions(scale).requires_grad_(), tags(partial=partial)
    found, wanted = crf(scores, gold, LENGTHS), enumerated_losses(crf, scores, gold)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    weights = torch.tensor([1.0, -2.0, 0.5, 3.0]).double()
    variables = [scores, *crf.parameters()]
    ours, theirs = (torch.autograd.grad((losses * weights).sum(), variables) for losses in (found, wanted))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)


def test_the_log_partition_is_the_loss_of_one_path_and_its_score() -> None:
    crf, scores, gold = field(), emissions(), tags()
    for row, length in enumerate(LENGTHS.tolist()):
        every, total = paths(crf, scores[row], length)
        own = total[(every == gold[row, :length]).all(1)]
        torch.testing.assert_close(crf(scores, gold, LENGTHS)[row] + own[0], total.logsumexp(0))


def test_marginals_are_shares_of_paths_and_sum_to_one() -> None:
    crf, scores = field(), emissions()
    found = crf.log_marginals(scores, LENGTHS).exp()
    assert found.dtype == torch.float64
    for row, length in enumerate(LENGTHS.tolist()):
        every, total = paths(crf, scores[row], length)
        shares = total.softmax(0)
        wanted = torch.stack(
            [torch.nn.functional.one_hot(every[:, t], LABELS).double().T @ shares for t in range(length)]
        )
        torch.testing.assert_close(found[row, :length], wanted, rtol=1e-11, atol=1e-13)
        torch.testing.assert_close(found[row, :length].sum(1), torch.ones(length).double())
        assert (found[row, length:] == 1).all()


@pytest.mark.parametrize("seed", range(6))
def test_the_decoded_path_is_the_best_of_all(seed: int) -> None:
    crf, scores = field(2.0, seed), emissions(seed=seed)
    found = crf.decode(scores, LENGTHS)
    assert found.shape == (ROWS, WORDS)
    for row, length in enumerate(LENGTHS.tolist()):
        every, total = paths(crf, scores[row], length)
        assert found[row, :length].tolist() == every[total.argmax()].tolist()
        assert (found[row, length:] == 0).all()


def test_the_best_path_is_not_that_of_the_best_words() -> None:
    """What Viterbi is for: a transition that the words alone do not see."""
    crf = field(0.0)
    with torch.no_grad():
        crf.transitions[0, 1] = -5.0
    scores = torch.tensor([[[1.0, 0.0, -9.0], [0.0, 0.5, -9.0]]])
    assert scores.argmax(2).tolist() == [[0, 1]]
    assert crf.float().decode(scores, torch.tensor([2])).tolist() == [[0, 0]]


def test_what_stands_behind_a_rows_end_changes_nothing() -> None:
    crf, scores, gold = field(), emissions(), tags()
    losses, best, shares = (
        crf(scores, gold, LENGTHS),
        crf.decode(scores, LENGTHS),
        crf.log_marginals(scores, LENGTHS),
    )
    behind = torch.arange(WORDS) >= LENGTHS[:, None]
    other = torch.where(behind[:, :, None], 50 * emissions(seed=9), scores)
    assert torch.equal(crf(other, gold.masked_fill(behind, -100), LENGTHS), losses)
    assert torch.equal(crf.decode(other, LENGTHS), best)
    assert torch.equal(crf.log_marginals(other, LENGTHS), shares)
    wider = torch.nn.functional.pad(scores, (0, 0, 0, 2), value=7.0)
    torch.testing.assert_close(crf(wider, torch.nn.functional.pad(gold, (0, 2)), LENGTHS), losses)


def test_a_row_alone_has_its_loss_in_the_batch() -> None:
    crf, scores, gold = field(), emissions(), tags()
    together = crf(scores, gold, LENGTHS)
    for row in range(ROWS):
        part = slice(row, row + 1)
        torch.testing.assert_close(crf(scores[part], gold[part], LENGTHS[part])[0], together[row])


def test_a_row_without_any_tag_has_loss_zero_and_no_gradient() -> None:
    crf, scores, gold = field(), emissions().requires_grad_(), tags()
    gold[2] = -100
    losses = crf(scores, gold, LENGTHS)
    assert losses[2] == 0
    (grad,) = torch.autograd.grad(losses.sum(), scores)
    assert grad[2].abs().max() == 0
    assert grad[[0, 1, 3]].abs().amax((1, 2)).min() > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_lower_precision_emissions_give_float32_losses(dtype: torch.dtype) -> None:
    crf, scores, gold = field().float(), emissions().to(dtype).requires_grad_(), tags()
    losses = crf(scores, gold, LENGTHS)
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses, enumerated_losses(crf.double(), scores.double(), gold).float())
    (grad,) = torch.autograd.grad(losses.sum(), scores)
    assert grad.dtype == dtype


def test_long_rows_neither_overflow_nor_vanish() -> None:
    """400 words of which each multiplies the weight of a path by up to e^200."""
    crf = field(5.0)
    scores = 200 * torch.randn(2, 400, LABELS, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    best = crf.decode(scores, torch.tensor([400, 400]))
    losses = crf(scores.requires_grad_(), best, torch.tensor([400, 400]))
    assert losses.isfinite().all()
    assert (losses >= 0).all()
    assert losses.max() < 40  # the best path of each row carries almost all the weight
    (grad,) = torch.autograd.grad(losses.sum(), scores)
    assert grad.isfinite().all()
    shares = crf.log_marginals(scores.detach(), torch.tensor([400, 400])).exp()
    torch.testing.assert_close(shares.sum(2), torch.ones(2, 400).double())
