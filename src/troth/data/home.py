"""The built-in corpus `home`: what people say to a home assistant, generated, so that the truth about it is known.

One seed gives one corpus, the same bytes on every machine, with rows for all five tasks. It is made to be learnt, but
not to be trivial: test rows come from templates, and partly from slot values, that no training row comes from, and one
row in twenty has words that mean more than one thing.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

from troth.config import BuiltinConfig
from troth.data.home_canaries import CODES, PATTERN, draw_canaries, plant
from troth.data.home_grammar import GROUPS, load_grammar
from troth.data.home_partition import Side
from troth.data.home_people import BIASED_GROUP, Bias, make_people
from troth.data.home_questions import make_questions
from troth.data.home_utterances import Crowd, Made, Row, make_utterances
from troth.data.table import Splits, Table, from_rows
from troth.errors import ConfigError
from troth.seeds import PublicSeeds

__all__ = ["NONMEMBERS", "hold_out", "home"]

NONMEMBERS = "validation"
_REFERENCE_ROLE = {"classification": "label", "seq2seq": "target"}
_TEST_PARTS = 5  # one row in five is a test row, and one in five a validation row


def home(builtin: BuiltinConfig, kind: str) -> Splits:
    """Return the corpus for a task: train, validation and test tables and the truth about their rows.

    A fifth of ``builtin.rows`` is the test split and a fifth the validation split (2,000 each of 10,000); canaries come
    on top, in train only. Rows are ordered by time. Every row has `id`, `user`, `group` and `time` beside its task's
    roles.

    The truth holds:

    - ``bias``, ``biased_group``, ``groups`` (group by user);
    - ``templates`` (id -> names of the templates the row was made of), ``phrasings`` (id -> plain, rare or shared);
    - ``label_noise`` (id -> role -> right gold; only train and validation rows have a wrong one);
    - ``canaries`` (code, text, id, ids, repeats), ``canary_pattern``, ``canary_codes`` (how many codes there could be);
    - ``nonmembers``: the split that is exchangeable with train (but for one row of each intent), ``validation``. Both
      come from the same templates, so a membership attack against it measures memorisation alone; test rows come from
      other templates, so an attack against them measures that shift as well, and can succeed on a model that memorises
      nothing;
    - ``reference_accuracy`` (classification and seq2seq): the accuracy, on the test rows, of one who knows which
      template each row was made of and what it means most often on these rows; shared templates keep it below 1.

    Guarantees:
    - no template and no text is on both sides of train and test, and no text is in train and validation;
    - every intent has a row with right gold in train;
    - test gold is always right; at ``bias = 0`` all gold is right;
    - rows of the group that is not biased are the same at every bias.

    Args:
        builtin: size, seed, bias, users and canaries.
        kind: the task.

    Raises:
        ConfigError: more users, or more canary rows, than rows.
    """
    _check(builtin)
    seeds, grammar = PublicSeeds(builtin.seed), load_grammar()
    people = make_people(builtin.users, grammar.weights, len(grammar.values), seeds)
    crowd = Crowd(people, Bias(builtin.bias), seeds)
    ids = [f"home-{i:07d}" for i in range(builtin.rows)]
    held = builtin.rows // _TEST_PARTS
    seen, unseen = _make(kind, "train", crowd, ids[held:]), _make(kind, "test", crowd, ids[:held])
    canaries = draw_canaries(builtin.canaries, builtin.canary_repeats, builtin.rows, crowd)
    anchors = 0 if kind == "question_answering" else len(grammar.intents)
    outside = hold_out(seen.texts, held, builtin.seed, anchors)
    validation = [row for row, is_outside in zip(seen.rows, outside, strict=True) if is_outside]
    train = [row for row, is_outside in zip(seen.rows, outside, strict=True) if not is_outside]
    truth: dict[str, object] = {
        "bias": builtin.bias,
        "biased_group": BIASED_GROUP,
        "groups": {name: GROUPS[g] for name, g in zip(people.names, people.groups.tolist(), strict=True)},
        "templates": {**_by_id(seen, seen.templates), **_by_id(unseen, unseen.templates)},
        "phrasings": {**_by_id(seen, seen.phrasings), **_by_id(unseen, unseen.phrasings)},
        "label_noise": seen.right,
        "canaries": tuple(canary.to_dict() for canary in canaries),
        "canary_pattern": PATTERN,
        "canary_codes": CODES,
        "nonmembers": NONMEMBERS,
    }
    if kind in _REFERENCE_ROLE:
        truth["reference_accuracy"] = _reference_accuracy(unseen, _REFERENCE_ROLE[kind])
    return Splits(
        train=_table(train + plant(kind, canaries, crowd), "train"),
        validation=_table(validation, "validation"),
        test=_table(unseen.rows, "test"),
        truth=truth,
    )


def hold_out(texts: Sequence[str], count: int, seed: int, anchors: int = 0) -> list[bool]:
    """Return [rows] whether a row is held out: `count` rows, drawn so that rows with the same text stay together.

    Texts are taken in the order of their keyed digests, and one that would overshoot is passed over. Which text comes
    first does not depend on the other texts, so corpora that differ in a few rows are split nearly alike. Where hardly
    any text is unique fewer rows than `count` may be held out. The first `anchors` rows stay.
    """
    key = hashlib.blake2b(str(seed).encode()).digest()
    copies = Counter(texts)
    for text in texts[:anchors]:
        copies.pop(text, None)
    held, left = set(), count
    for text in sorted(copies, key=lambda t: hashlib.blake2b(t.encode(), digest_size=16, key=key).digest()):
        if copies[text] <= left:
            held.add(text)
            left -= copies[text]
        if not left:
            break
    return [text in held for text in texts]


def _check(builtin: BuiltinConfig) -> None:
    if builtin.users > builtin.rows:
        raise ConfigError(
            f"data.builtin.users = {builtin.users}: more users than rows ({builtin.rows}); lower users or raise rows"
        )
    planted = builtin.canaries * builtin.canary_repeats
    if planted > builtin.rows:
        raise ConfigError(
            f"data.builtin.canaries = {builtin.canaries} with canary_repeats = {builtin.canary_repeats}: {planted} "
            f"canary rows on {builtin.rows} rows; lower one of the two or raise rows"
        )


def _make(kind: str, side: Side, crowd: Crowd, ids: Sequence[str]) -> Made:
    if kind == "question_answering":
        return make_questions(side, crowd, ids)
    return make_utterances(kind, side, crowd, ids)


def _by_id(made: Made, values: Sequence[object]) -> dict[str, object]:
    return {str(row["id"]): value for row, value in zip(made.rows, values, strict=True)}


def _table(rows: list[Row], split: str) -> Table:
    return from_rows(sorted(rows, key=lambda row: (str(row["time"]), str(row["id"]))), f"builtin home/{split}")


def _reference_accuracy(made: Made, role: str) -> float:
    """Return the share of rows whose gold intent is the most frequent one among the rows of the same template."""
    intents: dict[tuple[str, ...], Counter[str]] = {}
    for row, templates in zip(made.rows, made.templates, strict=True):
        intents.setdefault(templates, Counter())[str(row[role]).partition("(")[0]] += 1
    return sum(counts.most_common(1)[0][1] for counts in intents.values()) / len(made.rows)
