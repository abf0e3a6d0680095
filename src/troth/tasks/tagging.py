"""One tag per word: mean cross-entropy over words; span F1 as seqeval defines it, token accuracy."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from troth.tasks.encoded import Encoded, Ragged
from troth.tasks.measures import Measures
from troth.tasks.spans import spans
from troth.tasks.task import IGNORED, Batch, Scores, ScoringProgress, Task, evaluating, scoring_batches, token_mean_loss
from troth.tasks.token_scores import TokenGathering
from troth.tasks.tokens import Ids, tokenize

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from troth.data import Table
    from troth.results import Json, Measurement
    from troth.seeds import PublicSeeds

__all__ = ["Tagging", "Words"]

OUTSIDE = "O"


@dataclass(frozen=True)
class Words:
    """Rows of words as tokens: ids with special tokens, and where the first piece of each kept word stands."""

    ids: list[Ids]
    starts: list[list[int]]
    truncated: int  # rows of which pieces were cut


@dataclass(frozen=True, eq=False)
class Tagging(Task):
    """Token classification at the first piece of each word.

    Words beyond the maximum length are predicted as ``O``; they are counted in ``protocol.words_cut``. A tag outside of
    `labels` has no loss, is never predicted right, and is counted in ``protocol.unseen_labels``.
    """

    kind: ClassVar[str] = "tagging"

    def encode(self, table: Table) -> Encoded:
        """Return ``input_ids`` and, where the table has tags, ``labels``: the tag at first pieces, else ignored."""
        return self._encode(table)[0]

    def per_example_loss(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        """Return [batch] mean cross-entropy over the row's tagged words in nats; 0 where it has none."""
        return self._losses(model, self._logits(model, batch), batch)

    def token_log_probabilities(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        """Return [batch, time, labels] float64: the natural-log probability of each tag at each token."""
        return self._log_probabilities(model, self._logits(model, batch), batch)

    def score(
        self,
        model: PreTrainedModel,
        table: Table,
        *,
        batch_size: int = 64,
        progress: ScoringProgress | None = None,
        tokens: bool = False,
    ) -> Scores:
        """Return losses, shares of right tags and, in `detail`, span counts, word counts and the predicted tags.

        Tokens are the words that carry a known tag, each with the probabilities of `token_log_probabilities`.
        """
        encoded, words = self._encode(table)
        gathered = TokenGathering()
        losses = np.full(len(encoded), np.nan)
        found: list[list[str]] = [[] for _ in range(len(encoded))]
        with evaluating(model) as device:
            for rows in scoring_batches(encoded.lengths, batch_size, progress):
                batch = {name: values.to(device) for name, values in self.collate(encoded, rows).items()}
                logits = self._logits(model, batch)
                if "labels" in batch:
                    losses[rows] = self._losses(model, logits.double(), batch).cpu().numpy()
                    if tokens:
                        gathered.add(rows, self._log_probabilities(model, logits, batch), batch["labels"])
                codes = self._codes(model, logits, batch).cpu().numpy()
                for place, row in enumerate(rows):
                    found[row] = [self.labels[code] for code in codes[place, words.starts[row]]]
        scores = self._scores(table, losses, found)
        return replace(scores, tokens=gathered.scores(len(encoded))) if tokens else scores

    def measure(
        self, scores: Scores, table: Table, *, prefix: str, seeds: PublicSeeds, outside_guarantee: bool
    ) -> tuple[Measurement, ...]:
        """Return ``span_f1`` (0 without any span), ``token_accuracy`` and ``loss``, rows (sentences) reweighted."""
        known = set(self.labels)
        unseen = sum(tag not in known for tags in table.column("tags") for tag in tags)
        detail = scores.detail
        measures = Measures(
            prefix, seeds, outside_guarantee, {"unseen_labels": unseen, "words_cut": int(detail["words_cut"].sum())}
        )
        found, spans_of_both = 2 * detail["true_positives"], detail["predicted"] + detail["gold"]
        definition: dict[str, Json] = {"definition": "seqeval default mode, micro average"}
        words: dict[str, Json] = {"words": int(detail["words"].sum())}
        return (
            measures.share("span_f1", found, spans_of_both, definition, of_nothing=0.0),
            measures.share("token_accuracy", detail["right"], detail["words"], words),
            measures.loss(scores.losses, detail["labelled"] > 0),
        )

    # What a model's outputs mean; a task whose model scores whole rows of tags reads them otherwise.

    def _logits(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        logits: Tensor = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        return logits

    def _losses(self, model: PreTrainedModel, logits: Tensor, batch: Batch) -> Tensor:
        return token_mean_loss(logits, batch["labels"])

    def _log_probabilities(self, model: PreTrainedModel, logits: Tensor, batch: Batch) -> Tensor:
        return logits.double().log_softmax(2)

    def _codes(self, model: PreTrainedModel, logits: Tensor, batch: Batch) -> Tensor:
        return logits.argmax(dim=2)

    def _encode(self, table: Table) -> tuple[Encoded, Words]:
        words = self._words(table.column("tokens"))
        ids = Ragged.from_rows(words.ids)
        ragged = {"input_ids": ids}
        if table.has("tags"):
            codes = {tag: code for code, tag in enumerate(self.labels)}
            labels = np.full(len(ids.values), IGNORED, dtype=np.int64)
            for row, tags in enumerate(table.column("tags")):
                places = ids.offsets[row] + np.asarray(words.starts[row], dtype=np.int64)
                labels[places] = [codes.get(tag, IGNORED) for tag in tags[: len(places)]]
            ragged["labels"] = Ragged(labels, ids.offsets)
        return Encoded(ragged, {}, ids.lengths, words.truncated), words

    def _words(self, rows: list[list[str]]) -> Words:
        """Return the rows as tokens, each distinct word tokenized once."""
        spaced = [[word if place == 0 else self._gap + word for place, word in enumerate(row)] for row in rows]
        distinct = sorted({word for row in spaced for word in row})
        pieces = dict(zip(distinct, tokenize(self.tokenizer, distinct), strict=True))
        blank = self._blank
        room = self.max_length - self.template.length
        ids: list[Ids] = []
        places: list[list[int]] = []
        truncated = 0
        for row in spaced:
            tokens: Ids = []
            starts: list[int] = []
            for word in row:
                starts.append(len(tokens))
                tokens.extend(pieces[word] or blank)
            truncated += len(tokens) > room
            ids.append(self.template.wrap(tokens, self.max_length))
            places.append([len(self.template.prefix) + start for start in starts if start < room])
        return Words(ids, places, truncated)

    @cached_property
    def _gap(self) -> str:
        """A space where the tokenizer reads words after the first differently with one before them, else nothing."""
        both, first, bare, spaced = tokenize(self.tokenizer, ["one two", "one", "two", " two"])
        return " " if both != first + bare and both == first + spaced else ""

    @property
    def _blank(self) -> Ids:
        """What stands for a word of which the tokenizer leaves nothing, such as a lone control character."""
        tokenizer = self.tokenizer
        known = (tokenizer.unk_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
        return [next(token for token in known if isinstance(token, int))]

    def _scores(self, table: Table, losses: NDArray[np.float64], found: list[list[str]]) -> Scores:
        golds = table.column("tags") if table.has("tags") else [[OUTSIDE] * len(row) for row in table.column("tokens")]
        counts = np.zeros((len(golds), 7), dtype=np.int64)
        predictions = np.empty(len(golds), dtype=object)
        known = set(self.labels)
        for row, gold in enumerate(golds):
            cut = len(gold) - len(found[row])
            predicted = found[row] + [OUTSIDE] * cut
            predictions[row] = predicted
            right = sum(a == b for a, b in zip(gold, predicted, strict=True))
            labelled = sum(tag in known for tag in gold[: len(found[row])])
            want, have = spans(gold), spans(predicted)
            counts[row] = (len(want & have), len(have), len(want), right, len(gold), labelled, cut)
        names = ("true_positives", "predicted", "gold", "right", "words", "labelled", "words_cut")
        detail = {name: counts[:, column] for column, name in enumerate(names)}
        losses[detail["labelled"] == 0] = np.nan
        correct = detail["right"] / np.maximum(detail["words"], 1)
        return Scores(losses, correct, None, {**detail, "prediction": predictions})
