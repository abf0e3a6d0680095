"""The typed run file: strict, frozen, with near-miss hints, dotted overrides and a JSON schema.

A run file is TOML. Unknown keys are refused with the nearest known key named; every value is checked when the file is
read, before any data or model is touched. Only what this version does is accepted: a value for a later version is an
error, never ignored.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, FiniteFloat, ValidationError, model_validator

from troth.config_errors import explain
from troth.config_federated import FederatedConfig
from troth.config_section import Count, Fraction, Name, NonNegative, Positive, Section, Share
from troth.errors import ConfigError

__all__ = [
    "WITH_SHADOWS",
    "AttackConfig",
    "AuditConfig",
    "BuiltinConfig",
    "CanariesConfig",
    "DataConfig",
    "FairnessConfig",
    "GateConfig",
    "HoldoutConfig",
    "Membership",
    "ModelConfig",
    "PrivacyConfig",
    "ReportConfig",
    "RunConfig",
    "RunSection",
    "TaskConfig",
    "TrainConfig",
    "digest",
    "json_schema",
    "load",
    "override",
    "parse",
    "sections",
    "to_toml",
    "training_digest",
]


class RunSection(Section):
    """Who the run is: its name, public seed and folder."""

    name: Name
    seed: int = Field(0, ge=0, lt=2**63, description="public randomness: initialisation, public shuffles, plots")
    out: str = Field("runs", min_length=1, description="the folder that holds run folders")
    insecure_seed: int | None = Field(
        None, ge=0, description="makes private randomness reproducible; wants guarantee = 'none'"
    )
    guarantee: Literal["differential_privacy", "none"] | None = Field(
        None, description="'none' allows what voids a guarantee, and stamps it on ledger, run and report"
    )
    device: Literal["auto", "cpu", "cuda"] = "auto"


class ModelConfig(Section):
    """The model: a preset, or a checkpoint folder or hub id."""

    preset: Literal["tiny-bert", "mini-bert", "tiny-gpt2", "tiny-t5", "bilstm-crf"] | None = None
    checkpoint: str | None = Field(None, min_length=1)
    layers: Count | None = None
    width: Count | None = None
    heads: Count | None = None
    vocabulary_size: Annotated[int, Field(ge=64)] | None = None
    max_length: Annotated[int, Field(ge=8, le=4096)] = Field(128, description="tokens; longer texts are cut")
    trainable: Literal["all", "head", "lora"] | dict[Literal["freeze"], list[str]] = "all"

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.preset is None) == (self.checkpoint is None):
            raise ValueError("give exactly one of model.preset and model.checkpoint")
        if self.checkpoint and (self.layers or self.width or self.heads or self.vocabulary_size):
            raise ValueError("layers, width, heads and vocabulary_size shape a preset, not a checkpoint")
        return self


class BuiltinConfig(Section):
    """The built-in corpus: generated, so that the truth about groups, users and canaries is known."""

    name: Literal["home"] = "home"
    rows: Annotated[int, Field(ge=200, le=1_000_000)] = 10_000
    bias: Share = 0.0
    users: Annotated[int, Field(ge=2)] = 200
    canaries: Annotated[int, Field(ge=0, le=10_000)] = 0
    canary_repeats: Count = 1
    seed: int = Field(0, ge=0)


class DataConfig(Section):
    """Where the text lies and which column plays which role."""

    train: str | list[str] | None = None
    validation: str | list[str] | None = None
    test: str | list[str] | None = None
    builtin: BuiltinConfig | None = None
    columns: list[str] | None = Field(None, min_length=1, description="names where a table has no header")
    text: str | None = None
    label: str | None = None
    tokens: str | None = None
    tags: str | None = None
    question: str | None = None
    context: str | None = None
    answers: str | None = None
    source: str | None = None
    target: str | None = None
    id: str | None = None
    user: str | None = None
    group: str | None = None
    time: str | None = None
    original: str | None = None
    dataset_id: str | None = Field(None, min_length=1, description="key of the data set's budget in the ledger")
    unseen_labels: Literal["refuse", "count_as_error"] = "refuse"

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.train is None) == (self.builtin is None):
            raise ValueError("give exactly one of data.train and data.builtin")
        return self


class TaskConfig(Section):
    """What the model learns."""

    kind: Literal["classification", "tagging", "question_answering", "seq2seq", "language_modeling"]
    objective: Literal["causal", "masked"] | None = None

    @model_validator(mode="after")
    def _objective(self) -> Self:
        if self.objective is not None and self.kind != "language_modeling":
            raise ValueError("task.objective goes with kind = 'language_modeling'")
        return self


class TrainConfig(Section):
    """The training loop."""

    epochs: Count = 3
    learning_rate: Positive = 1e-3
    expected_batch_size: Count = 64
    physical_batch_size: Count | Literal["auto"] = "auto"
    optimizer: Literal["adamw", "sgd"] = "adamw"
    schedule: Literal["linear", "constant"] = "linear"
    weight_decay: NonNegative = 0.0
    momentum: Annotated[FiniteFloat, Field(ge=0, lt=1)] = 0.0
    precision: Literal["auto", "float32", "bfloat16"] = "float32"
    checkpoint_every: Count | None = Field(None, description="steps; default: once an epoch")
    keep_checkpoints: Count = 2


class PrivacyConfig(Section):
    """The differential privacy asked for."""

    target_epsilon: Positive | None = None
    noise_multiplier: Positive | None = None
    target_delta: Fraction
    unit: Literal["example", "user"] = Field(
        "example",
        description="what is protected: an example with its augmentations, or all that a user (data.user) has",
    )
    clipping: Literal["flat", "automatic", "adaptive", "per_layer"] = "flat"
    clipping_norm: Positive = 0.1
    clip_unit: Literal["example", "microbatch"] = "example"
    microbatch_size: Annotated[int, Field(ge=2)] | None = Field(
        None, description="examples in one, on average, of clip_unit = 'microbatch'; default 8"
    )
    sampler: Literal["poisson", "truncated_poisson"] = "poisson"
    max_batch_size: Count | None = Field(
        None, description="cap of truncated_poisson; default: as small as costs 0.1 % of epsilon"
    )
    examples_per_user: Count | None = Field(
        None, description="of unit = 'user': what one user adds to a step at most; default 8"
    )
    quantile: Fraction | None = Field(
        None, description="of clipping = 'adaptive': the share of gradients left unclipped; default 0.5"
    )
    secure_noise: bool = Field(
        True, description="noise from a cryptographic keystream with whole tails, or from torch's generators"
    )
    noise_draws: Annotated[int, Field(ge=1, le=64)] = Field(
        1, description="independent draws in each coordinate's noise; 4 against floating-point attacks"
    )
    grid_bits: Annotated[int, Field(ge=0, le=20)] | None = Field(
        None, description="round the noisy sum to a grid so many bits below the noise"
    )

    @model_validator(mode="after")
    def _one_target(self) -> Self:
        if (self.target_epsilon is None) == (self.noise_multiplier is None):
            raise ValueError("give exactly one of privacy.target_epsilon and privacy.noise_multiplier")
        if self.target_delta > 0.1:
            raise ValueError("privacy.target_delta must be far below 1/n, such as 1e-5")
        return self

    @model_validator(mode="after")
    def _used(self) -> Self:
        """Refuse a key that another key's value would leave without effect."""
        for key, needed, value in (
            ("microbatch_size", "clip_unit", "microbatch"),
            ("max_batch_size", "sampler", "truncated_poisson"),
            ("examples_per_user", "unit", "user"),
            ("quantile", "clipping", "adaptive"),
        ):
            if getattr(self, key) is not None and getattr(self, needed) != value:
                raise ValueError(f"privacy.{key} goes with privacy.{needed} = '{value}'")
        if self.clip_unit == "microbatch" and (self.unit != "example" or self.clipping == "adaptive"):
            raise ValueError(
                "privacy.clip_unit = 'microbatch' goes with unit 'example', and not with clipping 'adaptive'"
            )
        return self


Membership = Literal[
    "loss",
    "modified_entropy",
    "margin",
    "quantile",
    "zlib",
    "min_k",
    "min_k_plus_plus",
    "reference",
    "rmia",
    "lira",
    "student_t",
    "shokri",
]
WITH_SHADOWS: tuple[Membership, ...] = ("rmia", "lira", "student_t", "shokri")


class HoldoutConfig(Section):
    """Non-members held out of the training rows: a twin is trained on the rest and attacked."""

    holdout: Fraction = Field(description="share of the training rows, drawn by the public seed")


class CanariesConfig(Section):
    """Codes planted in the training rows of a twin, and looked for in it."""

    pattern: str = Field(
        "my pin code is {d}{d}{d}{d}", min_length=1, description="{d} a digit, {d*6} six of them, {color} a colour"
    )
    count: Count = Field(10, description="canaries, dealt over `repeats`")
    repeats: list[Annotated[int, Field(ge=1, le=1000)]] = Field(
        [1, 10, 100], min_length=1, description="how often a canary stands in the rows"
    )
    label: str | None = Field(None, min_length=1, description="an existing label or tag; default: one of their own")
    extraction: list[Literal["enumerate", "gradient", "beam"]] = Field(["enumerate"], min_length=1)


class AuditConfig(Section):
    """A lower bound on epsilon from canaries that join the training rows of a twin once, each by the toss of a coin."""

    canaries: Annotated[int, Field(ge=10)] = 1000
    confidence: Fraction = 0.95


class AttackConfig(Section):
    """Which attacks to run, and on whom."""

    membership: list[Membership] = Field(["loss"])
    shadows: Annotated[int, Field(ge=2, le=256)] = Field(8, description="shadow models, in complementary pairs")
    shadow_training: Literal["full", "frozen_features"] = Field(
        "full", description="as the target was trained, or a head alone on the target's frozen features (a weaker game)"
    )
    reference: str | None = Field(
        None, min_length=1, description="base model of 'reference'; default: model.checkpoint, before it was fine-tuned"
    )
    members: str | None = Field(
        None, min_length=1, description="file of rows that model.checkpoint was trained on elsewhere; it is the target"
    )
    nonmembers: str | HoldoutConfig = Field(
        "test", description="'test', 'validation', a file of rows never trained on, or { holdout = 0.5 }"
    )
    scores: str | None = Field(
        None, min_length=1, description="file of scores made elsewhere (columns score, member): no model is needed"
    )
    maximum_members: Count = Field(20_000, description="members drawn at random where there are more")
    canaries: CanariesConfig | None = None
    audit: AuditConfig | None = None

    @model_validator(mode="after")
    def _coherent(self) -> Self:
        if self.shadows % 2:
            raise ValueError(f"attack.shadows = {self.shadows}: shadows come in pairs; give an even number")
        if len(set(self.membership)) < len(self.membership):
            raise ValueError("attack.membership: names an attack twice")
        if not (self.membership or self.canaries or self.audit or self.scores):
            raise ValueError("attack: nothing to do; name an attack in attack.membership, canaries or audit")
        if self.scores is not None and (self.canaries or self.audit or self.members):
            raise ValueError("attack.scores is attacked as it is: leave members, canaries and audit out")
        if self.members is not None and isinstance(self.nonmembers, HoldoutConfig):
            raise ValueError("attack.members goes with a file of nonmembers: such a model is not trained again")
        return self

    @property
    def shadowed(self) -> bool:
        """Whether an attack wants shadow models."""
        return any(name in WITH_SHADOWS for name in self.membership)


class FairnessConfig(Section):
    """Which fairness metrics to take."""

    metrics: list[Literal["accuracy_gap"]] = Field(["accuracy_gap"], min_length=1)


class ReportConfig(Section):
    """Where the report goes."""

    path: str = Field("report.html", min_length=1, description="relative to the run folder unless absolute")


class GateConfig(Section):
    """Rules that must hold: ``NAME[.value|.low|.high|.n] OP NUMBER``."""

    rules: list[str] = Field(min_length=1)


class RunConfig(Section):
    """A whole run file, resolved."""

    run: RunSection
    model: ModelConfig
    data: DataConfig
    task: TaskConfig
    train: TrainConfig = TrainConfig()
    privacy: PrivacyConfig | None = None
    federated: FederatedConfig | None = None
    attack: AttackConfig | None = None
    fairness: FairnessConfig | None = None
    report: ReportConfig | None = None
    gate: GateConfig | None = None
    grid: dict[str, list[Any] | bool] | None = Field(
        None, description="dotted keys, or seeds, to lists of values; one_at_a_time = true varies one key at a time"
    )

    @model_validator(mode="after")
    def _coherent(self) -> Self:
        if self.run.insecure_seed is not None and self.run.guarantee != "none":
            raise ValueError("run.insecure_seed makes the noise predictable: write run.guarantee = 'none' with it")
        if self.privacy is not None and self.federated is not None:
            raise ValueError("a private federation is not part of this version: remove [privacy] or [federated]")
        return self

    def to_dict(self) -> dict[str, Any]:
        """Return the resolved file as plain JSON values, absent sections left out."""
        return self.model_dump(mode="json", exclude_none=True)


def parse(data: Mapping[str, Any], source: str = "run file") -> RunConfig:
    """Return the checked configuration of a mapping.

    Raises:
        ConfigError: one line that names the source, the key and the way out.
    """
    try:
        return RunConfig.model_validate(dict(data))
    except ValidationError as error:
        raise ConfigError(f"{source}: {explain(error.errors(include_url=False), RunConfig)}") from None


def read_toml(path: Path) -> dict[str, Any]:
    """Return the mapping of a TOML file.

    Raises:
        ConfigError: the file is missing, unreadable or not TOML.
    """
    try:
        return tomllib.loads(path.read_bytes().decode("utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such run file") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: is a folder, not a run file") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not UTF-8 text; save the run file as UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not TOML: {error}") from None


def _value(text: str) -> object:
    """Return the TOML value of an override's right side; a bare word is a string."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def override(data: Mapping[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """Return `data` with dotted assignments such as ``privacy.target_epsilon=8`` applied in order.

    Raises:
        ConfigError: an assignment is not ``section.key=value`` or runs through something that is no section.
    """
    out: dict[str, Any] = json.loads(json.dumps(dict(data), default=str))
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        parts = [p.strip() for p in key.split(".")]
        if not equals or not all(parts):
            raise ConfigError(f"--set {assignment}: write section.key=value")
        node = out
        for part in parts[:-1]:
            node = node.setdefault(part, {})
            if not isinstance(node, dict):
                raise ConfigError(f"--set {assignment}: {part} is a value, not a section")
        node[parts[-1]] = _value(text.strip())
    return out


def load(path: str | Path, assignments: Sequence[str] = (), without: Sequence[str] = ()) -> RunConfig:
    """Return the checked run file with overrides applied and the named sections left out.

    Raises:
        ConfigError: as in `read_toml`, `override` and `parse`.
    """
    data = override(read_toml(Path(path)), assignments)
    for section in without:
        if section not in RunConfig.model_fields:
            raise ConfigError(f"--without {section}: no such section; sections: {', '.join(RunConfig.model_fields)}")
        data.pop(section, None)
    return parse(data, str(path))


def sections(path: str | Path, assignments: Sequence[str] = ()) -> set[str]:
    """Return the sections that a run file with its overrides has, known or not.

    Raises:
        ConfigError: as in `read_toml` and `override`.
    """
    return set(override(read_toml(Path(path)), assignments))


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of a run file, for editors."""
    schema = RunConfig.model_json_schema()
    return {**schema, "$schema": "https://json-schema.org/draft/2020-12/schema", "title": "troth run file"}


def _toml_value(value: object) -> str:
    """Return a TOML value; JSON's escapes of strings are TOML's."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_toml_key(k)} = {_toml_value(v)}" for k, v in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml_value(v) for v in value) + "]"
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value, ensure_ascii=False)


def _toml_key(key: object) -> str:
    text = str(key)
    return text if text.replace("_", "").replace("-", "").isalnum() and text.isascii() else json.dumps(text)


def to_toml(config: RunConfig) -> str:
    """Return the resolved run file as TOML; `parse` of it gives the same configuration."""
    lines: list[str] = []
    for section, values in config.to_dict().items():
        lines.append(f"[{_toml_key(section)}]")
        lines.extend(f"{_toml_key(key)} = {_toml_value(value)}" for key, value in values.items())
        lines.append("")
    return "\n".join(lines)


def digest(config: RunConfig, ignore: Sequence[str] = ("run.out", "train.physical_batch_size")) -> str:
    """Return a SHA-256 of what decides a run's result; `ignore` names what does not."""
    data: dict[str, Any] = config.to_dict()
    for key in ignore:
        section, _, name = key.partition(".")
        if section in data:
            data[section].pop(name, None)
    for section in ("report", "gate", "grid"):
        data.pop(section, None)
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def training_digest(config: RunConfig) -> str:
    """Return a SHA-256 of what decides the model that a run makes: attacks and fairness only look at it."""
    return digest(config.model_copy(update={"attack": None, "fairness": None}))
