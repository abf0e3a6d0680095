"""The tokenizer of the bert presets: words and pieces hashed into a fixed table, so that no vocabulary can leak.

A vocabulary made from private text tells which words stand in it. Here every token (see `troth.tasks.word_pieces`)
has a row given by a hash, which nobody chose by looking at text. Tokens that fall into the same row share it, so ids
cannot be turned back into text: `decode` gives the names of rows.

It is a Python tokenizer of transformers 5, with what only the fast ones give otherwise: `word_ids`, `sequence_ids`,
character offsets and overflowing windows. A single text has no special tokens; a pair has one separator between its
texts. Names of special tokens inside a text are plain text unless ``split_special_tokens=False`` is passed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray
from transformers import AutoTokenizer, BatchEncoding, PreTrainedTokenizer
from transformers.tokenization_utils_base import TruncationStrategy
from transformers.utils.generic import PaddingStrategy

from troth.errors import ModelError
from troth.tasks.hashed_encoding import SPECIAL_TOKENS, UNKNOWN, HashedEncoding, Limit, join, pad
from troth.tasks.modeling_bert import TrothBertConfig
from troth.tasks.word_pieces import hashed_row, split_words, word_tokens

__all__ = ["HashedTokenizer"]

_SPECIAL_ROWS = {token: row for row, token in enumerate(SPECIAL_TOKENS)}
_SPECIAL_TEXT = re.compile("|".join(re.escape(token) for token in SPECIAL_TOKENS))
_ROW_NAME = re.compile(r"\[row (\d+)\]")
_RULES = 1  # raised when the rules of word_pieces change: a table trained under other rules is refused
_CACHED_WORDS = 2**16
_CACHED_LENGTH = 32  # characters; longer words are hashed anew each time

_Word = tuple[tuple[str, ...], tuple[int, ...]]


class HashedTokenizer(PreTrainedTokenizer):
    """Words and pieces, hashed into `vocabulary_size` rows of which the first four are special.

    Guarantees:
    - ids depend on the text alone: the same on every machine, whatever was tokenized before;
    - nothing of any text is stored with `save_pretrained` or by pickling.

    >>> tokenizer = HashedTokenizer()
    >>> tokenizer("play 5 songs").tokens()
    ('play', '5', '##<1>', 'songs')

    Args:
        vocabulary_size: rows of the table, special ones included; at least 64.
        rules: the version of the rules that a saved tokenizer was made under.
        **kwargs: as for every transformers tokenizer, such as `model_max_length`.

    Raises:
        ModelError: too few rows, or other rules than this version's.
    """

    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012  transformers' protocol

    def __init__(self, vocabulary_size: int = 8192, rules: int = _RULES, **kwargs: Any) -> None:  # noqa: ANN401
        if vocabulary_size < 64:
            raise ModelError(f"vocabulary_size = {vocabulary_size}: a hashed table wants at least 64 rows")
        if rules != _RULES:
            raise ModelError(f"the tokenizer was saved under word rules {rules}; this version of troth has {_RULES}")
        self.vocabulary_size = vocabulary_size
        self.rules = rules
        self._cache: dict[str, _Word] = {}
        for name, token in zip(("pad_token", "unk_token", "sep_token", "mask_token"), SPECIAL_TOKENS, strict=True):
            kwargs[name] = token
        kwargs.setdefault("split_special_tokens", True)
        super().__init__(vocabulary_size=vocabulary_size, rules=rules, **kwargs)  # type: ignore[no-untyped-call]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": {}}

    @property
    def vocab_size(self) -> int:
        """Rows of the table."""
        return self.vocabulary_size

    def get_vocab(self) -> dict[str, int]:
        """Return the name of each row: the special tokens, then ``[row 4]`` and so on."""
        named = {f"[row {row}]": row for row in range(len(SPECIAL_TOKENS), self.vocabulary_size)}
        return {**_SPECIAL_ROWS, **named}

    def add_tokens(self, *args: object, **kwargs: object) -> NoReturn:
        """Refuse: every word has its row already.

        Raises:
            ModelError: always.
        """
        raise ModelError("a hashed tokenizer takes no further tokens: every word has a row; raise vocabulary_size")

    def encode_texts(
        self, texts: Sequence[str], max_length: int | None = None
    ) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Return the ids of all texts in one array and where each text starts in it; the fast path.

        Args:
            texts: any strings; one without a word gives a single ``[UNK]``.
            max_length: most tokens of a text; None for all. To count the texts that would be cut, ask for one more.

        Returns:
            ids [tokens] and offsets [texts + 1]: text i is ``ids[offsets[i] : offsets[i + 1]]``.
        """
        flat: list[int] = []
        offsets = np.zeros(len(texts) + 1, dtype=np.int64)
        for place, text in enumerate(texts):
            start = len(flat)
            for match in split_words(text):
                flat.extend(self._word(match.group())[1])
                if max_length is not None and len(flat) - start >= max_length:
                    del flat[start + max_length :]
                    break
            if len(flat) == start:
                flat.append(UNKNOWN)
            offsets[place + 1] = len(flat)
        return np.array(flat, dtype=np.int32), offsets

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Return the tokens with blanks between them."""
        return " ".join(tokens)

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """Return one text as it is, a pair with a separator between its texts."""
        return token_ids_0 if token_ids_1 is None else [*token_ids_0, self.sep_token_id, *token_ids_1]

    def get_special_tokens_mask(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None, already_has_special_tokens: bool = False
    ) -> list[int]:
        """Return 1 at special tokens, 0 elsewhere."""
        ids = token_ids_0
        if not already_has_special_tokens:
            ids = self.build_inputs_with_special_tokens(token_ids_0, token_ids_1)
        return [int(row < len(SPECIAL_TOKENS)) for row in ids]

    def _word(self, word: str) -> _Word:
        """Return the tokens of a word and their rows."""
        known = self._cache.get(word)
        if known is not None:
            return known
        tokens = word_tokens(word)
        found = tokens, tuple(self._convert_token_to_id(token) for token in tokens)
        if len(word) <= _CACHED_LENGTH:
            if len(self._cache) >= _CACHED_WORDS:
                self._cache.clear()
            self._cache[word] = found
        return found

    def _tokenize(self, text: str, **kwargs: object) -> list[str]:
        return [token for match in split_words(text) for token in self._word(match.group())[0]]

    def _convert_token_to_id(self, token: str) -> int:
        special = _SPECIAL_ROWS.get(token)
        if special is not None:
            return special
        named = _ROW_NAME.fullmatch(token)
        if named and int(named[1]) < self.vocabulary_size:
            return int(named[1])
        return len(SPECIAL_TOKENS) + hashed_row(token, self.vocabulary_size - len(SPECIAL_TOKENS))

    def _convert_id_to_token(self, index: int) -> str:
        return SPECIAL_TOKENS[index] if index < len(SPECIAL_TOKENS) else f"[row {index}]"

    # transformers names twenty options here; `__call__` hands all of them over by name.
    def _encode_plus(  # type: ignore[override]
        self,
        text: Any,  # noqa: ANN401
        text_pair: Any = None,  # noqa: ANN401
        **options: Any,  # noqa: ANN401
    ) -> BatchEncoding:
        """Return what transformers' `__call__` promises."""
        split = bool(options.get("is_split_into_words"))
        batched = _is_batch(text, split)
        firsts = text if batched else [text]
        seconds = [None] * len(firsts) if text_pair is None else text_pair if batched else [text_pair]
        if len(seconds) != len(firsts):
            raise ModelError(f"{len(firsts)} texts but {len(seconds)} second texts: give as many of both")
        limit = Limit(
            options.get("max_length"),
            options.get("truncation_strategy", TruncationStrategy.DO_NOT_TRUNCATE),
            self.truncation_side,
            int(options.get("stride") or 0),
            bool(options.get("return_overflowing_tokens")),
        )
        separated = options.get("add_special_tokens", True)
        as_text = options.get("split_special_tokens", self.split_special_tokens)
        rows: list[HashedEncoding] = []
        samples: list[int] = []
        for sample, (one, other) in enumerate(zip(firsts, seconds, strict=True)):
            first = self._encode(one, 0, split, as_text)
            second = None if other is None else self._encode(other, 1, split, as_text)
            specials = int(bool(separated) and second is not None)
            for parts in limit.apply(first, second, specials):
                rows.append(join(*parts, separated=bool(separated)))
                samples.append(sample)
        rows = self._padded(rows, options)
        data = _columns(rows, samples, options)
        if not batched and not limit.windows:
            data = {name: values[0] for name, values in data.items()}
        return BatchEncoding(
            data,
            encoding=rows,  # type: ignore[arg-type]
            tensor_type=options.get("return_tensors"),
            prepend_batch_axis=not batched and not limit.windows,
        )

    def _encode(self, text: object, sequence: int, split: bool, as_text: bool) -> HashedEncoding:
        """Return one text, or one list of words, without special tokens around it."""
        tokens: list[str] = []
        ids: list[int] = []
        offsets: list[tuple[int, int]] = []
        words: list[int | None] = []
        for word, start, number in _numbered_words(text, split, as_text):
            found, rows = ((word,), (_SPECIAL_ROWS[word],)) if number is None else self._word(word)
            end = start + len(word)
            tokens += found
            ids += rows
            offsets.append((start, end))
            offsets += [(end, end)] * (len(rows) - 1)
            words += [number] * len(rows)
        if not ids:
            ids, tokens, offsets, words = [UNKNOWN], [SPECIAL_TOKENS[UNKNOWN]], [(0, 0)], [None]
        return HashedEncoding(
            tuple(ids), tuple(tokens), tuple(offsets), tuple(words), (sequence,) * len(ids), n_sequences=sequence + 1
        )

    def _padded(self, rows: list[HashedEncoding], options: dict[str, Any]) -> list[HashedEncoding]:
        strategy = options.get("padding_strategy", PaddingStrategy.DO_NOT_PAD)
        if strategy is PaddingStrategy.DO_NOT_PAD:
            return rows
        length = max((len(row) for row in rows), default=0)
        if strategy is PaddingStrategy.MAX_LENGTH and options.get("max_length") is not None:
            length = options["max_length"]
        multiple = options.get("pad_to_multiple_of") or 1
        return pad(rows, -(-length // multiple) * multiple, options.get("padding_side") or self.padding_side)


def _is_batch(text: object, split: bool) -> bool:
    """Return whether the argument holds several texts."""
    if not isinstance(text, list | tuple):
        return False
    return not split or not text or isinstance(text[0], list | tuple)


def _numbered_words(text: object, split: bool, as_text: bool) -> Iterator[tuple[str, int, int | None]]:
    """Yield each word with its first character and its number; a special token read from the text has no number."""
    if not split:
        if not isinstance(text, str):
            raise ModelError(f"a text is a string, not {type(text).__name__}; for words pass is_split_into_words=True")
        if as_text:
            for number, match in enumerate(split_words(text)):
                yield match.group(), match.start(), number
        else:
            yield from _with_special(text)
        return
    if not isinstance(text, list | tuple) or not all(isinstance(word, str) for word in text):
        raise ModelError("with is_split_into_words=True a text is a list of strings")
    for number, given in enumerate(text):
        for match in split_words(given):
            yield match.group(), match.start(), number


def _with_special(text: str) -> Iterator[tuple[str, int, int | None]]:
    """Yield the words of a text in which names of special tokens stand for these."""
    number = start = 0
    for end, special in [*((match.start(), match.group()) for match in _SPECIAL_TEXT.finditer(text)), (len(text), "")]:
        for match in split_words(text[start:end]):
            yield match.group(), start + match.start(), number
            number += 1
        if special:
            yield special, end, None
        start = end + len(special)


def _columns(rows: list[HashedEncoding], samples: list[int], options: dict[str, Any]) -> dict[str, list[Any]]:
    """Return the columns asked for, each a list over rows."""
    data: dict[str, list[Any]] = {"input_ids": [list(row.ids) for row in rows]}
    if options.get("return_token_type_ids"):
        data["token_type_ids"] = [list(row.type_ids) for row in rows]
    if options.get("return_attention_mask") is not False:
        data["attention_mask"] = [list(row.attention_mask) for row in rows]
    if options.get("return_special_tokens_mask"):
        data["special_tokens_mask"] = [list(row.special_tokens_mask) for row in rows]
    if options.get("return_offsets_mapping"):
        data["offset_mapping"] = [list(row.offsets) for row in rows]
    if options.get("return_length"):
        data["length"] = [len(row) for row in rows]
    if options.get("return_overflowing_tokens"):
        data["overflow_to_sample_mapping"] = samples
    return data


AutoTokenizer.register(TrothBertConfig, slow_tokenizer_class=HashedTokenizer, exist_ok=True)  # type: ignore[no-untyped-call]
