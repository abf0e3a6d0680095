"""Every task keeps the contract, on stock architectures and on the presets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from contracts import stock_checkpoints
from contracts.task_contract import Case, TaskContract
from contracts.task_tables import TABLES
from troth.config import parse
from troth.seeds import PublicSeeds
from troth.tasks import Batch, Encoded, make_model, make_task
from troth.tasks.language_modeling import SCORING_DRAW


def case_of(kind: str, save: Callable[[Path], Path], folder: Path, objective: str | None = None) -> Case:
    return case_from(kind, {"checkpoint": str(save(folder / "checkpoint")), "max_length": 48}, folder, objective)


def preset_case(kind: str, preset: str, folder: Path, objective: str | None = None) -> Case:
    """A preset with noise on its weights: some start at zero, where nothing depends on the text."""
    case = case_from(kind, {"preset": preset, "max_length": 48}, folder, objective)
    noise = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in case.model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=noise))
    return case


def case_from(kind: str, model: dict[str, object], folder: Path, objective: str | None) -> Case:
    task = {"kind": kind} if objective is None else {"kind": kind, "objective": objective}
    config = parse({"run": {"name": "contract", "seed": 3}, "model": model, "data": {"train": "rows"}, "task": task})
    made = make_task(config, TABLES[kind], folder)
    return Case(made, make_model(config, made, PublicSeeds(3), folder), TABLES[kind], config)


class Classifies(TaskContract):
    names = ("accuracy", "macro_f1", "loss")

    def test_an_unseen_label_has_loss_zero_with_a_graph(self, case: Case, encoded: Encoded) -> None:
        batch = case.task.collate(encoded, np.arange(4))
        batch["labels"][1] = -1
        assert_zero_loss_with_graph(self.losses(case, batch), 1)


class Tags(TaskContract):
    names = ("span_f1", "token_accuracy", "loss")

    def test_a_row_without_tags_has_loss_zero_with_a_graph(self, case: Case, encoded: Encoded) -> None:
        batch = case.task.collate(encoded, np.arange(4))
        batch["labels"][1] = -100
        assert_zero_loss_with_graph(self.losses(case, batch), 1)


class Models(TaskContract):
    names = ("perplexity", "token_accuracy", "loss")

    def test_a_row_without_targets_has_loss_zero_with_a_graph(self, case: Case, encoded: Encoded) -> None:
        batch = case.task.collate(encoded, np.arange(4))
        batch["labels"][1] = -100
        assert_zero_loss_with_graph(self.losses(case, batch), 1)


def assert_zero_loss_with_graph(losses: torch.Tensor, row: int) -> None:
    assert losses[row] == 0
    assert losses[row].requires_grad
    losses[row].backward()
    assert (losses[torch.arange(len(losses)) != row] > 0).all()


class TestBertClassifies(Classifies):
    @classmethod
    def make_case(cls, folder: Path) -> Case:
        return case_of("classification", stock_checkpoints.save_bert, folder)


class TestGpt2Classifies(Classifies):
    @classmethod
    def make_case(cls, folder: Path) -> Case:
        return case_of("classification", stock_checkpoints.save_gpt2, folder)


class TestBertTags(Tags):
    @classmethod
    def make_case(cls, folder: Path) -> Case:
        return case_of("tagging", stock_checkpoints.save_bert, folder)


class TestRobertaTags(Tags):
    @classmethod
    def make_case(cls, folder: Path) -> Case:
        return case_of("tagging", stock_checkpoints.save_roberta, folder)


class Answers(TaskContract):
    names = ("exact_match", "f1", "loss")


class TestBertAnswers(Answers):
    @classmethod
    def make_case(cls, folder: Path) -> Case:
        return case_of("question_answering", stock_checkpoints.save_bert, folder)


class TestRobertaAnswers(Answers):
    @classmethod
    def make_case(cls, folder: Path) -> Case:
        return case_of("question_answering", stock_checkpoints.save_roberta, folder)


class Writes(TaskContract):
    names = ("rouge_l", "exact_match", "loss")


class TestT5Writes(Writes):
    @classmethod
    def make_case(cls, folder: Path) -> Case:
        return case_of("seq2seq", stock_checkpoints.save_t5, folder)


class TestGpt2Models(Models):
    @classmethod
    def make_case(cls, folder: Path) -> Case:
        return case_of("language_modeling", stock_checkpoints.save_gpt2, folder)


class ModelsMasked(Models):
    def scoring_batch(self, case: Case, encoded: Encoded) -> Batch:
        return case.task.collate(encoded, np.arange(len(encoded)), draw=SCORING_DRAW)


class TestBertModelsMasked(ModelsMasked):
    @classmethod
    def make_case(cls, folder: Path) -> Case:
        return case_of("language_modeling", stock_checkpoints.save_bert, folder, "masked")


class TestTinyBertClassifies(Classifies):
    @classmethod
    def make_case(cls, folder: Path) -> Case:
        return preset_case("classification", "tiny-bert", folder)


class TestTinyBertTags(Tags):
    @classmethod
    def make_case(cls, folder: Path) -> Case:
        return preset_case("tagging", "tiny-bert", folder)


class TestBilstmCrfTags(Tags):
    @classmethod
    def make_case(cls, folder: Path) -> Case:
        return preset_case("tagging", "bilstm-crf", folder)

    def wider(self, name: str, values: torch.Tensor, case: Case) -> torch.Tensor:
        if name != "characters":
            return super().wider(name, values, case)
        return torch.nn.functional.pad(values, (0, 3, 0, 1))  # longer words, and one more of them


class TestTinyBertAnswers(Answers):
    @classmethod
    def make_case(cls, folder: Path) -> Case:
        return preset_case("question_answering", "tiny-bert", folder)


class TestTinyBertModelsMasked(ModelsMasked):
    @classmethod
    def make_case(cls, folder: Path) -> Case:
        return preset_case("language_modeling", "tiny-bert", folder)


class TestTinyGpt2Models(Models):
    @classmethod
    def make_case(cls, folder: Path) -> Case:
        return preset_case("language_modeling", "tiny-gpt2", folder)


class TestTinyT5Writes(Writes):
    @classmethod
    def make_case(cls, folder: Path) -> Case:
        return preset_case("seq2seq", "tiny-t5", folder)
