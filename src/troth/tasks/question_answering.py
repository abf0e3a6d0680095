"""Extractive question answering: the answer's first and last token in its context; EM and F1 as SQuAD 1.1."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from troth.errors import DataError, ModelError
from troth.tasks.answers import answer_exact_match, answer_f1
from troth.tasks.encoded import Encoded
from troth.tasks.measures import Measures
from troth.tasks.task import Batch, Scores, ScoringProgress, Task, evaluating, full_precision, scoring_batches
from troth.tasks.token_scores import TokenGathering
from troth.tasks.tokens import Offsets, PairTemplate, pair_template, tokenize, tokenize_with_offsets
from troth.tasks.windows import (
    Question,
    Window,
    best_spans,
    features,
    first_context_token,
    span_text,
    token_span,
    window_with_answer,
    windows,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from troth.data import Table
    from troth.results import Measurement
    from troth.seeds import PublicSeeds

__all__ = ["QuestionAnswering"]

ANSWER_TOKENS = 30
"""The longest answer looked for, in tokens that cover characters, as in the usual SQuAD set-up."""

_LEAST_CONTEXT = 8
_IMPOSSIBLE = -1e9


@dataclass(frozen=True, eq=False)
class QuestionAnswering(Task):
    """Start and end of the answer, by softmax over the context's tokens only.

    Training sees one window of the context per row, the one that holds the answer in its middle: one row is one
    clipping unit. Scoring slides windows with half a window's stride over the whole context, knows nothing of the
    answer, and takes the span of at most 30 tokens with the highest sum of start and end logits.
    """

    kind: ClassVar[str] = "question_answering"

    def encode(self, table: Table) -> Encoded:
        """Return ``input_ids``, ``context_mask``, token types where the model has them, and the answer's positions.

        Raises:
            DataError: a row has no answer, or its answer does not stand in the context where it says.
        """
        questions = self._questions(table)
        chosen = [window_with_answer(row, question, self._room(question)) for row, question in enumerate(questions)]
        return self._features(questions, chosen)

    def per_example_loss(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        """Return [batch] nats: cross-entropy of the first plus that of the last token of the answer."""
        start, end = self._logits(model, batch)
        cross_entropy = torch.nn.functional.cross_entropy
        return cross_entropy(start, batch["start_positions"], reduction="none") + cross_entropy(
            end, batch["end_positions"], reduction="none"
        )

    def score(
        self,
        model: PreTrainedModel,
        table: Table,
        *,
        batch_size: int = 64,
        progress: ScoringProgress | None = None,
        tokens: bool = False,
    ) -> Scores:
        """Return losses of the training window, exact matches and, in `detail`, ``f1`` and the predicted text.

        Tokens are the answer's first and last one in the training window, in this order, among the context's.
        """
        questions = self._questions(table)
        chosen, searched = self._all_windows(questions)
        encoded = self._features(questions, chosen)
        losses = np.zeros(len(questions))
        sums = np.zeros(len(chosen))
        spans = np.zeros((len(chosen), 2), dtype=np.int64)
        gathered = TokenGathering()
        with evaluating(model) as device:
            for places in scoring_batches(encoded.lengths, batch_size, progress):
                batch = {name: values.to(device) for name, values in self.collate(encoded, places).items()}
                start, end = self._logits(model, batch)
                own = places < len(questions)
                losses[places[own]] = _losses(start, end, batch)[own]
                if tokens:
                    logits, gold = _ends(start, end, batch)
                    gathered.add(places[own], logits[torch.from_numpy(own)], gold[torch.from_numpy(own)])
                sums[places], spans[places] = best_spans(start, end, batch["context_mask"], ANSWER_TOKENS)
        sums[~searched] = -np.inf
        predictions = self._texts(table.column("context"), questions, chosen, sums, spans)
        golds = [answers["text"] for answers in table.column("answers")]
        pairs = list(zip(predictions, golds, strict=True))
        hits = np.array([answer_exact_match(found, gold) for found, gold in pairs])
        f1 = np.array([answer_f1(found, gold) for found, gold in pairs])
        detail = {"f1": f1, "prediction": predictions}
        return Scores(losses, hits, None, detail, gathered.scores(len(questions)) if tokens else None)

    def measure(
        self, scores: Scores, table: Table, *, prefix: str, seeds: PublicSeeds, outside_guarantee: bool
    ) -> tuple[Measurement, ...]:
        """Return ``exact_match`` (exact interval), ``f1`` and ``loss`` (rows, that is questions, reweighted)."""
        measures = Measures(prefix, seeds, outside_guarantee, {"max_length": self.max_length})
        return (
            measures.proportion("exact_match", scores.correct, definition="SQuAD 1.1"),
            measures.mean_share("f1", scores.detail["f1"], definition="SQuAD 1.1"),
            measures.loss(scores.losses, np.ones(len(scores), dtype=bool), window="the one that holds the answer"),
        )

    def _logits(self, model: PreTrainedModel, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return start and end logits [batch, time], impossible outside of the context."""
        types = {"token_type_ids": batch["token_type_ids"]} if "token_type_ids" in batch else {}
        output = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], **types)
        outside = batch["context_mask"] == 0
        return (
            full_precision(output.start_logits).masked_fill(outside, _IMPOSSIBLE),
            full_precision(output.end_logits).masked_fill(outside, _IMPOSSIBLE),
        )

    def _questions(self, table: Table) -> list[Question]:
        contexts, answers = table.column("context"), table.column("answers")
        distinct = list(dict.fromkeys(contexts))
        tokens = dict(zip(distinct, tokenize_with_offsets(self.tokenizer, distinct), strict=True))
        asked = tokenize(self.tokenizer, table.column("question"))
        most = self._question_room
        questions = []
        for row, (question, context) in enumerate(zip(asked, contexts, strict=True)):
            ids, offsets = tokens[context]
            span = _answer_span(answers[row], offsets)
            if span is None:
                raise DataError(
                    f"{table.source}: row {row + 1}: the first answer is missing or no token of the context covers it; "
                    "SQuAD 1.1 form wants an answer in each row: remove the row or mend answer_start"
                )
            questions.append(Question(question[:most], ids, offsets, span))
        return questions

    def _features(self, questions: list[Question], chosen: list[Window]) -> Encoded:
        truncated = sum(len(question.context) > self._room(question) for question in questions)
        with_types = "token_type_ids" in self.tokenizer.model_input_names
        return features(questions, chosen, self._pair, with_types=with_types, truncated=truncated)

    def _all_windows(self, questions: list[Question]) -> tuple[list[Window], NDArray[np.bool_]]:
        """Return the training window of each row, then all windows of rows with more than one, and which to search.

        The training window of a long context lies where the answer is: it gives the loss, and is not searched.
        """
        chosen = [window_with_answer(row, question, self._room(question)) for row, question in enumerate(questions)]
        searched = [True] * len(chosen)
        for row, question in enumerate(questions):
            if len(question.context) > self._room(question):
                more = windows(row, len(question.context), self._room(question))
                searched[row] = False
                chosen.extend(more)
                searched.extend([True] * len(more))
        return chosen, np.array(searched)

    def _texts(
        self,
        contexts: list[str],
        questions: list[Question],
        chosen: list[Window],
        sums: NDArray[np.float64],
        spans: NDArray[np.int64],
    ) -> NDArray[np.object_]:
        """Return [rows] the text of each row's best span over its windows."""
        texts = np.full(len(questions), "", dtype=object)
        best = np.full(len(questions), -np.inf)
        for place, window in enumerate(chosen):
            if sums[place] > best[window.row]:
                question = questions[window.row]
                shift = window.start - first_context_token(question, self._pair)
                first, last = spans[place] + shift
                best[window.row] = sums[place]
                texts[window.row] = span_text(contexts[window.row], question.offsets, first, last)
        return texts

    @cached_property
    def _pair(self) -> PairTemplate:
        return pair_template(self.tokenizer)

    @property
    def _question_room(self) -> int:
        """Tokens a question may have: half of what there is."""
        room = (self.max_length - self._pair.length) // 2
        if room < _LEAST_CONTEXT:
            raise ModelError(
                f"model.max_length = {self.max_length}: too short for a question beside its context; "
                f"write at least {2 * _LEAST_CONTEXT + self._pair.length}"
            )
        return room

    def _room(self, question: Question) -> int:
        """Return how many tokens of the context fit beside the question."""
        return self.max_length - self._pair.length - len(question.question)


def _answer_span(answers: dict[str, Any], offsets: Offsets) -> tuple[int, int] | None:
    """Return the tokens of the first answer, or None."""
    if not answers["text"]:
        return None
    start = answers["answer_start"][0]
    return token_span(offsets, start, start + len(answers["text"][0]))


def _ends(start: Tensor, end: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return both ends' logits [batch, 2, time], minus infinity outside of the context, and the answer's [batch, 2]."""
    outside = batch["context_mask"] == 0
    logits = torch.stack([start, end], dim=1).masked_fill(outside[:, None], -torch.inf)
    return logits, torch.stack([batch["start_positions"], batch["end_positions"]], dim=1)


def _losses(start: Tensor, end: Tensor, batch: Batch) -> NDArray[np.float64]:
    rows = torch.arange(len(start), device=start.device)
    found = torch.log_softmax(start.double(), 1)[rows, batch["start_positions"]]
    found = found + torch.log_softmax(end.double(), 1)[rows, batch["end_positions"]]
    out: NDArray[np.float64] = -found.cpu().numpy()
    return out
