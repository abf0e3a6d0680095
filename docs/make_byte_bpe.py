"""Make the byte-level BPE that the presets tiny-gpt2 and tiny-t5 ship: `python docs/make_byte_bpe.py TEXT OUT.json`.

The shipped asset was made from Tiny Shakespeare (public domain; `karpathy/char-rnn`, data/tinyshakespeare/input.txt,
1,115,394 bytes, SHA-256 86c4e6aa9db7...). Only the tokenizer is committed, never the text. Byte-level means that every
text can be written and read back exactly, whatever its script; the public text only decides which pairs of bytes are
merged.
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

ENTRIES = 4096
SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>")


def make(text: str) -> Tokenizer:
    """Return a byte-level BPE of `ENTRIES` entries, the special ones first, trained on the lines of a public text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=ENTRIES,
        min_frequency=2,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text.splitlines(keepends=True), trainer)
    return tokenizer


def main() -> None:
    """Read the text, write the tokenizer, print what was made."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", type=Path, help="a public text, UTF-8")
    parser.add_argument("out", type=Path, help="where the tokenizer goes, .json")
    arguments = parser.parse_args()
    content = arguments.text.read_bytes()
    tokenizer = make(content.decode("utf-8"))
    tokenizer.save(str(arguments.out), pretty=False)
    digest = hashlib.sha256(content).hexdigest()
    print(f"{tokenizer.get_vocab_size()} entries from {arguments.text.name}, SHA-256 {digest}")


if __name__ == "__main__":
    main()
