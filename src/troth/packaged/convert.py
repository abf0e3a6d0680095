"""From what a wheel holds to what troth reads; each function is given files whose digests were checked."""

from __future__ import annotations

import contextlib
import copy
import io
import json
from itertools import chain
from pathlib import Path

__all__ = ["chitchat_rows", "gguf_to_safetensors", "glove_words"]


def glove_words(inputs: Path, folder: Path) -> None:
    """Write ``words.txt``: the word of row i of ``vectors.npy`` in line i, UTF-8.

    Args:
        inputs: holds ``index.parquet``, one column of words.
        folder: holds ``vectors.npy`` [words, dimensions].

    Raises:
        ValueError: words and vectors are not of one number, or a word holds white space.
    """
    import numpy as np
    from pyarrow import parquet

    words: list[str] = parquet.read_table(inputs / "index.parquet", use_threads=False).column(0).to_pylist()
    rows = np.load(folder / "vectors.npy", mmap_mode="r", allow_pickle=False).shape[0]
    if len(words) != rows:
        raise ValueError(f"{len(words)} words and {rows} vectors")
    if any(len(word.split()) != 1 for word in words):
        raise ValueError("a word holds white space")
    with (folder / "words.txt").open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(f"{word}\n" for word in words)


def chitchat_rows(inputs: Path, folder: Path) -> None:
    r"""Write ``chitchat.jsonl``: one utterance a row, in the order of time, those without text left out.

    The columns are id (the utterance's number in the package's file, from 0, those without text counted), text, user,
    time (ISO 8601 in UTC, to the second, with no zone written) and conversation. What is not ASCII is escaped
    (``\u...``), so that a line is a row for every reader.

    Args:
        inputs: holds ``dataset.json``: conversation -> its messages, a list (turns) of lists (utterances).
        folder: where to write.
    """
    conversations = json.loads((inputs / "dataset.json").read_bytes())
    utterances = (
        (name, utterance) for name, content in conversations.items() for utterance in chain(*content["messages"])
    )
    rows = [
        {
            "id": number,
            "text": utterance["text"],
            "user": utterance["sender"],
            "time": utterance["timestamp"].removesuffix("Z"),
            "conversation": name,
        }
        for number, (name, utterance) in enumerate(utterances)
        if utterance["text"].strip()
    ]
    rows.sort(key=lambda row: row["time"])  # stable: within a second the package's order stays
    with (folder / "chitchat.jsonl").open("w", encoding="ascii", newline="\n") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def gguf_to_safetensors(inputs: Path, folder: Path) -> None:
    """Write the causal language model and tokenizer of a GGUF file as a transformers folder, weights in bfloat16.

    transformers refuses to save a model that it read from GGUF; so the de-quantised tensors go, all of them and by
    name, into a fresh model of the same configuration.

    Args:
        inputs: holds ``model.gguf``.
        folder: where to write.

    Raises:
        RuntimeError: the tensors do not match the configuration's model.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from troth.tasks.checkpoints import quietly, seeded

    # the fresh model's own weights are all overwritten; the bar of the GGUF reader knows no other way to be silent
    with quietly(), seeded(0), contextlib.redirect_stderr(io.StringIO()):
        source = {"gguf_file": "model.gguf", "local_files_only": True}
        read = AutoModelForCausalLM.from_pretrained(str(inputs), dtype=torch.float32, **source)
        tokenizer = AutoTokenizer.from_pretrained(str(inputs), **source)
        config = copy.deepcopy(read.config)
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)  # type: ignore[no-untyped-call]
        model.load_state_dict(read.state_dict(), strict=True)
        tokenizer.model_max_length = config.max_position_embeddings
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
