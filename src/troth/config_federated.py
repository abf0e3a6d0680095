"""The [federated] section of a run file: who the clients are, who takes part, what clients and server do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, FiniteFloat, model_validator

from troth.config_section import Count, Fraction, NonNegative, Positive, Section, Share, refuse_unused

__all__ = [
    "AggregationConfig",
    "AlgorithmName",
    "BufferConfig",
    "FederatedConfig",
    "LocalConfig",
    "ParticipationConfig",
    "PartitionConfig",
    "ReplayConfig",
    "SelectionConfig",
    "ServerConfig",
    "StreamConfig",
]

AlgorithmName = Literal[
    "fedavg",
    "fedprox",
    "fedavgm",
    "fedadagrad",
    "fedadam",
    "fedyogi",
    "scaffold",
    "fednova",
    "fedbuff",
    "ditto",
    "local_head",
]
Momentum = Annotated[FiniteFloat, Field(ge=0, lt=1)]
Duration = Annotated[str, Field(pattern=r"^[1-9][0-9]*(s|min|h|d|w)$")]


class PartitionConfig(Section):
    """Clients made by a partition of the rows instead of a user column."""

    partition: Literal["iid", "label_dirichlet", "quantity", "features", "shards", "natural", "time"]
    clients: Annotated[int, Field(ge=2)] | None = Field(None, description="how many; natural counts them itself")
    concentration: Positive = Field(1.0, description="of label_dirichlet, features, and quantity by dirichlet")
    convention: Literal["per_client", "per_label"] = Field(
        "per_client", description="each client draws its labels, or each label its clients"
    )
    distribution: Literal["dirichlet", "zipf", "log_normal"] = Field("dirichlet", description="of quantity: sizes")
    exponent: Positive = Field(1.2, description="of zipf: the size of rank r is r^-exponent")
    sigma: Positive = Field(1.0, description="of log_normal: standard deviation of the logarithm of a size")
    clusters: Annotated[int, Field(ge=2)] = Field(10, description="of features: clusters of embeddings, as labels")
    labels_per_client: Count = Field(2, description="of shards")
    by: Literal["user", "group", "label", "context", "source"] | None = Field(
        None, description="of natural: the column (its role) whose values are the clients"
    )
    minimum: Annotated[int, Field(ge=0)] = Field(1, description="rows each client holds at least, by moving rows")

    @model_validator(mode="after")
    def _used(self) -> Self:
        dirichlet = ("label_dirichlet", "features")
        uses = {
            "concentration": (*dirichlet, "quantity"),
            "convention": dirichlet,
            "distribution": ("quantity",),
            "exponent": ("quantity",),
            "sigma": ("quantity",),
            "clusters": ("features",),
            "labels_per_client": ("shards",),
            "by": ("natural",),
        }
        refuse_unused(self, "partition", uses)
        if self.partition == "quantity":
            laws = {"concentration": ("dirichlet",), "exponent": ("zipf",), "sigma": ("log_normal",)}
            refuse_unused(self, "distribution", laws)
        if (self.partition == "natural") != (self.by is not None):
            raise ValueError("partition = 'natural' and by = 'user' (or another column) go together")
        if (self.partition == "natural") != (self.clients is None):
            raise ValueError("give clients = NUMBER; only partition = 'natural' counts them itself")
        return self


class SelectionConfig(Section):
    """Which clients a round takes, and the weight that goes with that choice."""

    by: Literal["uniform", "activity", "mixture", "top_active", "recency", "power_of_choice"] = "uniform"
    power: Annotated[FiniteFloat, Field(ge=0, le=4)] = Field(1.0, description="of activity and mixture: p ~ rows^power")
    uniform_share: Share = Field(0.5, description="of mixture: the share of uniform draws")
    top: Count | None = Field(None, description="of top_active: how many of the most active clients are drawn from")
    top_fraction: Fraction | None = Field(None, description="of top_active: or which share of the population")
    half_life: Positive = Field(1.0, description="of recency: days (periods of a stream) after which a chance halves")
    candidates: Count | None = Field(
        None, description="of power_of_choice: clients drawn by rows, of which those with the highest loss are kept"
    )
    weight: Literal["equal", "samples", "inverse_probability"] | None = Field(
        None, description="default: samples with uniform, recency and top_active, else equal"
    )
    allow_double_count: bool = False

    @model_validator(mode="after")
    def _used(self) -> Self:
        uses = {
            "power": ("activity", "mixture"),
            "uniform_share": ("mixture",),
            "top": ("top_active",),
            "top_fraction": ("top_active",),
            "half_life": ("recency",),
            "candidates": ("power_of_choice",),
        }
        refuse_unused(self, "by", uses)
        if self.by == "top_active" and (self.top is None) == (self.top_fraction is None):
            raise ValueError("by = 'top_active' wants exactly one of top and top_fraction")
        if self.by in ("power_of_choice", "top_active") and self.weight == "inverse_probability":
            raise ValueError(f"by = '{self.by}' never takes some clients: no weight makes up for that; use 'equal'")
        if self.by == "power_of_choice" and self.candidates is None:
            raise ValueError("by = 'power_of_choice' wants candidates = NUMBER, at least federated.cohort_size")
        return self

    @model_validator(mode="after")
    def _counted_once(self) -> Self:
        skewed = self.by == "activity" or (self.by == "mixture" and self.uniform_share < 1)
        by_rows = self.by == "power_of_choice" or (skewed and self.power > 0)
        if by_rows and self.weight == "samples" and not self.allow_double_count:
            raise ValueError(
                f"by = '{self.by}' with weight = 'samples' counts each client's rows twice; use weight = 'equal' or "
                "'inverse_probability', or write allow_double_count = true if that is meant"
            )
        return self


class ParticipationConfig(Section):
    """Who can take part at all, and who reports back."""

    available: Annotated[FiniteFloat, Field(gt=0, le=1)] = Field(
        1.0, description="chance that a client can be reached in a round, drawn anew in each"
    )
    minimum_separation: Annotated[int, Field(ge=0, le=65_000)] = Field(
        0, description="rounds that a client rests after it took part"
    )
    over_selection: Annotated[FiniteFloat, Field(ge=1, le=10)] = Field(
        1.0, description="times cohort_size clients are asked; the first cohort_size that report count"
    )
    drop_out: Annotated[FiniteFloat, Field(ge=0, lt=1)] = Field(
        0.0, description="chance that a client that was asked does not report"
    )


class LocalConfig(Section):
    """What a client does in a round; its optimizer starts afresh in each."""

    epochs: Count = 1
    batch_size: Count = 8
    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: Positive = 0.1
    momentum: Momentum = Field(0.0, description="of sgd")
    maximum_examples: Count | None = Field(
        None, description="rows a client trains on in a round at most, drawn anew in each; its weight stays that of all"
    )
    proximal: NonNegative | None = Field(
        None, description="mu of fedprox (default 0.01), or lambda of ditto (default 0.1)"
    )

    @model_validator(mode="after")
    def _used(self) -> Self:
        refuse_unused(self, "optimizer", {"momentum": ("sgd",)})
        return self


class ServerConfig(Section):
    """What the server does with the weighted mean of client updates."""

    optimizer: Literal["sgd", "adagrad", "adam", "yogi"] | None = Field(
        None, description="default: the algorithm's; sgd for all but fedadagrad, fedadam and fedyogi"
    )
    learning_rate: Positive = Field(1.0, description="adaptive servers want far less, such as 0.01")
    momentum: Momentum | None = Field(None, description="of sgd; default 0, 0.9 with fedavgm")
    beta1: Momentum | None = Field(None, description="of adagrad (default 0), adam and yogi (default 0.9)")
    beta2: Momentum = Field(0.99, description="of adam and yogi")
    adaptivity: Positive = Field(1e-3, description="tau of adagrad, adam and yogi, added to the root")


class BufferConfig(Section):
    """Asynchronous rounds of fedbuff: a round ends as soon as cohort_size clients have reported."""

    concurrency: Count | None = Field(None, description="clients at work at a time; default: 2 x cohort_size")
    mean_delay: NonNegative = Field(1.0, description="mean of a client's exponential delay, in units of a round's gap")
    staleness_power: NonNegative = Field(0.5, description="an update s rounds old counts (1 + s)^-power")


class AggregationConfig(Section):
    """How updates become one, and which are refused."""

    rule: Literal["mean", "trimmed_mean", "median"] = "mean"
    trim: Annotated[FiniteFloat, Field(ge=0, lt=0.5)] = Field(
        0.1, description="of trimmed_mean: share left out at each end, coordinate by coordinate"
    )
    norm_bound: Positive | None = Field(None, description="updates with a larger L2 norm are scaled down to it")
    reject_above: Positive | None = Field(None, description="updates with a larger L2 norm are left out and counted")

    @model_validator(mode="after")
    def _used(self) -> Self:
        refuse_unused(self, "rule", {"trim": ("trimmed_mean",)})
        return self


class ReplayConfig(Section):
    """Expired rows that a device keeps and trains on again."""

    by: Literal["reservoir", "gradient_diverse"] = "reservoir"
    size: Count = Field(32, description="rows a device keeps")


class StreamConfig(Section):
    """Data that arrives over time, expires, and is deleted on request."""

    period: Duration | None = Field(None, description="length of a period, such as '1d' or '12h'")
    periods: Annotated[int, Field(ge=2)] | None = Field(None, description="or so many periods of equal length")
    retention: Count = Field(3, description="periods a row is kept, the one it arrives in included")
    cap: Count | None = Field(None, description="rows a device keeps at most; the oldest go first")
    replay: ReplayConfig | None = None
    rounds_per_period: Count = 10
    protocol: Literal["stream", "all", "last", "cumulative"] = Field(
        "stream", description="what a device trains on: its window; all periods at once; the last alone; all so far"
    )
    deletions: str | None = Field(
        None, min_length=1, description="file of requests with columns time and user or id: rows to forget from then on"
    )

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.period is None) == (self.periods is None):
            raise ValueError("give exactly one of federated.stream.period and federated.stream.periods")
        return self


class FederatedConfig(Section):
    """A federation simulated on this machine."""

    clients: Literal["user"] | PartitionConfig = "user"
    held_out_clients: Annotated[FiniteFloat, Field(ge=0, lt=1)] = Field(
        0.0, description="share of clients that never train; quality on them is measured at the end"
    )
    algorithm: AlgorithmName = "fedavg"
    selection: SelectionConfig = SelectionConfig()
    participation: ParticipationConfig = ParticipationConfig()
    rounds: Count = 50
    cohort_size: Count = 20
    local: LocalConfig = LocalConfig()
    server: ServerConfig = ServerConfig()
    buffer: BufferConfig | None = Field(None, description="of fedbuff")
    aggregation: AggregationConfig = AggregationConfig()
    stream: StreamConfig | None = None
    engine: Literal["local"] = "local"
    execution: Literal["auto", "stacked", "loop"] = Field(
        "auto", description="clients stacked in one program, or one after the other; auto measures at the start"
    )
    workers: Count = Field(1, description="processes, each with one thread; 1: this one")
    chunk_size: Count | None = Field(None, description="clients stacked at a time; default: measured at the start")
    evaluate_every: Count = Field(5, description="rounds")
    evaluation_minimum: Count = Field(10, description="devices below which no per-device figure is given")
    checkpoint_every: Count | None = Field(None, description="rounds; default: evaluate_every")

    @model_validator(mode="before")
    @classmethod
    def _short_selection(cls, data: object) -> object:
        if isinstance(data, Mapping) and isinstance(data.get("selection"), str):
            return {**data, "selection": {"by": data["selection"]}}
        return data

    @model_validator(mode="after")
    def _coherent(self) -> Self:
        if self.buffer is not None and self.algorithm != "fedbuff":
            raise ValueError("federated.buffer goes with algorithm = 'fedbuff'")
        candidates = self.selection.candidates
        if candidates is not None and candidates < self.cohort_size:
            raise ValueError(
                f"federated.selection.candidates = {candidates}: at least cohort_size = {self.cohort_size}"
            )
        rest = self.participation
        if self.selection.weight == "inverse_probability" and (rest.minimum_separation or rest.over_selection > 1):
            raise ValueError(
                "selection.weight = 'inverse_probability' is unbiased without participation.minimum_separation and "
                "over_selection only; leave them out or take another weight"
            )
        if self.algorithm == "fedbuff":
            if self.stream is not None:
                raise ValueError(
                    "algorithm = 'fedbuff' with federated.stream: clients at work would outlive their rows"
                )
            if self.aggregation.rule != "mean":
                raise ValueError(
                    f"algorithm = 'fedbuff' goes with aggregation.rule = 'mean', not '{self.aggregation.rule}'"
                )
        if self.stream is not None and self.rounds != type(self).model_fields["rounds"].default:
            raise ValueError("federated.rounds: a stream has rounds_per_period rounds in each period; leave rounds out")
        own = {"fedadagrad": "adagrad", "fedadam": "adam", "fedyogi": "yogi"}.get(self.algorithm)
        chosen = self.server.optimizer
        if chosen is not None and own is not None and chosen != own:
            raise ValueError(f"algorithm = '{self.algorithm}' is server.optimizer = '{own}', not '{chosen}'")
        if self.algorithm == "fedavgm" and chosen not in (None, "sgd"):
            raise ValueError(f"algorithm = 'fedavgm' is server.optimizer = 'sgd' with momentum, not '{chosen}'")
        if self.algorithm in ("scaffold", "fednova") and self.local.optimizer != "sgd":
            raise ValueError(f"algorithm = '{self.algorithm}' is defined for federated.local.optimizer = 'sgd'")
        if self.algorithm == "scaffold" and self.local.momentum:
            raise ValueError("algorithm = 'scaffold' is defined for federated.local.momentum = 0")
        if self.local.proximal is not None and self.algorithm not in ("fedprox", "ditto"):
            raise ValueError("federated.local.proximal goes with algorithm = 'fedprox' or 'ditto'")
        return self
