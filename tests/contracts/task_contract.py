"""The contract every task keeps, whatever the model: subclass it and give a task, a model and a table."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from troth.config import RunConfig
from troth.data import Table
from troth.seeds import PublicSeeds
from troth.tasks import Batch, Encoded, Task, load_trained
from troth.tasks.measures import SMALLEST_UNLIMITED

TOLERANCE = 2e-5  # float32 sums in another order
ROWS = np.arange(8)


@dataclass(frozen=True)
class Case:
    """A task with a model, a table of at least 16 rows of different length, and the run file they come from."""

    task: Task
    model: PreTrainedModel
    table: Table
    config: RunConfig


class TaskContract(ABC):
    """Every task passes these; a subclass gives `make_case`."""

    names: tuple[str, ...]  # the measurements, without the prefix

    @classmethod
    @abstractmethod
    def make_case(cls, folder: Path) -> Case:
        """Return what to test; `folder` may be written to."""

    @pytest.fixture(scope="class")
    @classmethod
    def made(cls, tmp_path_factory: pytest.TempPathFactory) -> Case:
        return cls.make_case(tmp_path_factory.mktemp("case"))

    @pytest.fixture
    def case(self, made: Case) -> Case:
        """The case with its model in eval mode and without gradients, so that tests cannot see each other."""
        made.model.eval()
        made.model.zero_grad(set_to_none=True)
        return made

    @pytest.fixture
    def encoded(self, case: Case) -> Encoded:
        return case.task.encode(case.table)

    def losses(self, case: Case, batch: Batch) -> torch.Tensor:
        return case.task.per_example_loss(case.model, batch)

    # encode and collate

    def test_encode_gives_one_row_per_example_within_the_maximum_length(self, case: Case, encoded: Encoded) -> None:
        assert len(encoded) == len(case.table)
        ids = encoded.ragged["input_ids"]
        assert len(ids) == len(case.table)
        assert ids.lengths.min() >= 1 and ids.lengths.max() <= case.task.max_length
        assert len(set(ids.lengths)) > 1, "the table must have rows of different length for this contract to bite"

    def test_encoding_a_row_does_not_depend_on_other_rows(self, case: Case, encoded: Encoded) -> None:
        chosen = np.array([5, 2])
        alone, together = case.task.encode(case.table.take(chosen)), encoded.take(chosen)
        for name, column in alone.ragged.items():
            np.testing.assert_array_equal(column.values, together.ragged[name].values)
        for name, values in alone.scalars.items():
            np.testing.assert_array_equal(values, together.scalars[name])

    def test_rows_that_are_cut_are_counted(self, case: Case, encoded: Encoded) -> None:
        longest = int(encoded.ragged["input_ids"].lengths.max())
        short = replace(case.task, max_length=longest - 1)
        again = short.encode(case.table)
        assert again.ragged["input_ids"].lengths.max() <= longest - 1
        assert again.truncated > 0
        assert again.truncated >= encoded.truncated

    def test_collate_is_pure_and_pads_to_the_longest(self, case: Case, encoded: Encoded) -> None:
        first, second = (case.task.collate(encoded, ROWS) for _ in range(2))
        lengths = encoded.ragged["input_ids"].lengths[ROWS]
        assert first.keys() == second.keys()
        for name, values in first.items():
            assert values.device.type == "cpu"
            assert torch.equal(values, second[name])
        assert first["input_ids"].shape == (len(ROWS), lengths.max())
        assert torch.equal(first["attention_mask"].sum(dim=1), torch.from_numpy(lengths))

    # per_example_loss

    def test_losses_are_float32_nats_with_a_graph_one_per_example(self, case: Case, encoded: Encoded) -> None:
        losses = self.losses(case, case.task.collate(encoded, ROWS))
        assert losses.shape == (len(ROWS),)
        assert losses.dtype == torch.float32
        assert losses.requires_grad
        assert torch.isfinite(losses).all()
        assert (losses >= 0).all()
        assert losses.detach().std() > 0

    def test_the_loss_of_a_row_alone_is_its_loss_in_a_batch(self, case: Case, encoded: Encoded) -> None:
        together = self.losses(case, case.task.collate(encoded, ROWS)).detach()
        alone = torch.cat([self.losses(case, case.task.collate(encoded, ROWS[i : i + 1])) for i in range(len(ROWS))])
        torch.testing.assert_close(together, alone.detach(), atol=TOLERANCE, rtol=TOLERANCE)

    def test_the_order_of_rows_does_not_matter(self, case: Case, encoded: Encoded) -> None:
        order = np.array([3, 7, 0, 5, 1, 6, 2, 4])
        straight = self.losses(case, case.task.collate(encoded, ROWS)).detach()
        shuffled = self.losses(case, case.task.collate(encoded, ROWS[order])).detach()
        torch.testing.assert_close(shuffled, straight[order], atol=TOLERANCE, rtol=TOLERANCE)

    def test_padding_does_not_matter(self, case: Case, encoded: Encoded) -> None:
        batch = case.task.collate(encoded, ROWS)
        padded = {name: self.wider(name, values, case) for name, values in batch.items()}
        torch.testing.assert_close(self.losses(case, padded), self.losses(case, batch), atol=TOLERANCE, rtol=TOLERANCE)

    def wider(self, name: str, values: torch.Tensor, case: Case) -> torch.Tensor:
        """Return a padded column with one more column of padding."""
        if values.ndim == 1 or values.shape[1] >= case.task.max_length:
            return values
        fill = {"input_ids": case.task.tokenizer.pad_token_id, "labels": -100}.get(name, 0)
        return torch.nn.functional.pad(values, (0, 1), value=fill)

    def test_the_gradient_of_a_row_is_that_of_the_row_alone(self, case: Case, encoded: Encoded) -> None:
        model = copy.deepcopy(case.model).double()
        trained = [p for p in model.parameters() if p.requires_grad]
        together = case.task.per_example_loss(model, case.task.collate(encoded, ROWS))[3]
        alone = case.task.per_example_loss(model, case.task.collate(encoded, ROWS[3:4]))[0]
        first = torch.autograd.grad(together, trained, allow_unused=True)
        second = torch.autograd.grad(alone, trained, allow_unused=True)
        assert [g is None for g in first] == [g is None for g in second]
        a, b = (torch.cat([g.flatten() for g in gradients if g is not None]) for gradients in (first, second))
        assert b.norm() > 0
        assert (a - b).norm() < 1e-10 * b.norm()

    def test_the_model_never_sees_labels(self, case: Case, encoded: Encoded, monkeypatch: pytest.MonkeyPatch) -> None:
        seen: list[set[str]] = []
        forward = case.model.forward

        def spy(**inputs: object) -> object:
            seen.append(set(inputs))
            return forward(**inputs)

        monkeypatch.setattr(case.model, "forward", spy)
        self.losses(case, case.task.collate(encoded, ROWS))
        assert seen
        assert not {"labels", "start_positions", "end_positions", "num_items_in_batch"} & set.union(*seen)

    def test_descending_the_losses_learns(self, case: Case, encoded: Encoded) -> None:
        before = {name: value.clone() for name, value in case.model.state_dict().items()}
        optimizer = torch.optim.Adam([p for p in case.model.parameters() if p.requires_grad], lr=1e-2)
        batch = case.task.collate(encoded, ROWS)
        first = float(self.losses(case, batch).detach().mean())
        for _ in range(12):
            optimizer.zero_grad()
            self.losses(case, batch).mean().backward()
            optimizer.step()
        last = float(self.losses(case, batch).detach().mean())
        case.model.load_state_dict(before)
        assert last < 0.9 * first

    def test_losses_under_autocast_are_still_float32(self, case: Case, encoded: Encoded) -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            losses = self.losses(case, case.task.collate(encoded, ROWS))
        assert losses.dtype == torch.float32
        assert torch.isfinite(losses).all()

    # score

    def test_scores_hold_the_losses_training_descends(self, case: Case, encoded: Encoded) -> None:
        scores = case.task.score(case.model, case.table)
        assert scores.losses.shape == scores.correct.shape == (len(case.table),)
        assert scores.losses.dtype == np.float64
        assert ((scores.correct >= 0) & (scores.correct <= 1)).all()
        expected = self.losses(case, self.scoring_batch(case, encoded)).detach().numpy()
        np.testing.assert_allclose(scores.losses, expected, atol=TOLERANCE, rtol=TOLERANCE)

    def scoring_batch(self, case: Case, encoded: Encoded) -> Batch:
        return case.task.collate(encoded, np.arange(len(encoded)))

    def test_scores_do_not_depend_on_batch_size_or_order(self, case: Case) -> None:
        whole = case.task.score(case.model, case.table, batch_size=64)
        order = np.arange(len(case.table))[::-1].copy()
        other = case.task.score(case.model, case.table.take(order), batch_size=7)
        np.testing.assert_allclose(other.losses, whole.losses[order], atol=TOLERANCE, rtol=TOLERANCE)
        np.testing.assert_array_equal(other.correct, whole.correct[order])

    def test_scoring_leaves_the_model_as_it_was(self, case: Case) -> None:
        case.model.train()
        frozen = next(m for m in case.model.modules() if isinstance(m, torch.nn.Dropout))
        frozen.eval()
        before = {name: value.clone() for name, value in case.model.state_dict().items()}
        first, second = (case.task.score(case.model, case.table) for _ in range(2))
        np.testing.assert_array_equal(first.losses, second.losses)  # no dropout at work
        assert case.model.training and not frozen.training
        assert all(p.grad is None for p in case.model.parameters())
        assert all(torch.equal(value, before[name]) for name, value in case.model.state_dict().items())

    def test_progress_hears_of_every_row(self, case: Case) -> None:
        heard: list[tuple[int, int]] = []
        case.task.score(case.model, case.table, batch_size=5, progress=lambda done, total: heard.append((done, total)))
        assert [done for done, _ in heard] == sorted({done for done, _ in heard})
        assert heard[-1][0] == heard[-1][1] >= len(case.table)

    # measure

    def test_measurements_have_intervals_n_and_protocol(self, case: Case) -> None:
        scores = case.task.score(case.model, case.table)
        measured = case.task.measure(scores, case.table, prefix="test", seeds=PublicSeeds(1), outside_guarantee=True)
        assert tuple(m.name for m in measured) == tuple(f"test.{name}" for name in self.names)
        for m in measured:
            assert m.value is not None and m.low is not None and m.high is not None
            assert m.low <= m.value <= m.high
            assert m.low < m.high
            assert m.n == len(case.table)
            assert m.outside_guarantee
            assert m.supported == (m.unit == "fraction" or m.n >= SMALLEST_UNLIMITED)
            assert m.interval_method in ("clopper-pearson", "bayesian-bootstrap", "zero-event-bound")
            if m.interval_method == "bayesian-bootstrap":
                assert m.protocol["resampled"] == "rows, by exponential weights"

    def test_measuring_twice_gives_the_same_and_another_seed_another_interval(self, case: Case) -> None:
        scores = case.task.score(case.model, case.table)

        def measured(seed: int) -> dict[str, object]:
            found = case.task.measure(
                scores, case.table, prefix="test", seeds=PublicSeeds(seed), outside_guarantee=False
            )
            return {m.name: (m.value, m.low, m.high) for m in found}

        assert measured(1) == measured(1)
        assert measured(1)["test.loss"] != measured(2)["test.loss"]

    # export and back

    def test_an_exported_folder_comes_back_with_the_same_scores(self, case: Case, tmp_path: Path) -> None:
        case.model.save_pretrained(tmp_path)
        case.task.tokenizer.save_pretrained(tmp_path)
        task, model = load_trained(tmp_path, case.config)
        assert (type(task), task.labels, task.max_length) == (type(case.task), case.task.labels, case.task.max_length)
        assert not model.training
        before, after = case.task.score(case.model, case.table), task.score(model, case.table)
        np.testing.assert_array_equal(after.losses, before.losses)
        np.testing.assert_array_equal(after.correct, before.correct)
