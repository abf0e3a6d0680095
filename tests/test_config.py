"""Run files: strict, with near misses named, overrides and an exact round trip."""

import copy
from pathlib import Path

import pytest

from troth.config import RunConfig, digest, json_schema, load, override, parse, sections, to_toml
from troth.config_errors import LATER_KEYS, LATER_VALUES
from troth.errors import ConfigError

BASE = {
    "run": {"name": "x", "seed": 1},
    "model": {"preset": "tiny-bert"},
    "data": {"train": "t.jsonl", "text": "text", "label": "intent"},
    "task": {"kind": "classification"},
}


def merged(**sections: dict) -> dict:
    data = copy.deepcopy(BASE)
    for name, values in sections.items():
        data[name] = {**data.get(name, {}), **values} if isinstance(values, dict) else values
    return data


WRONG = {
    "misspelt key": ({"train": {"learnig_rate": 1}}, "did you mean learning_rate?"),
    "misspelt section": ({"trian": {"epochs": 1}}, "did you mean train?"),
    "nested misspelt key": ({"federated": {"local": {"bath_size": 2}}}, "did you mean batch_size?"),
    "zero epochs": ({"train": {"epochs": 0}}, "train.epochs = 0"),
    "nan rate": ({"train": {"learning_rate": float("nan")}}, "train.learning_rate = nan"),
    "negative rate": ({"train": {"learning_rate": -1}}, "train.learning_rate = -1"),
    "text for a number": ({"train": {"epochs": "many"}}, "train.epochs = 'many'"),
    "unknown preset": ({"model": {"preset": "huge-bert"}}, "'tiny-bert'"),
    "two models": ({"model": {"checkpoint": "folder"}}, "exactly one of model.preset and model.checkpoint"),
    "two data sources": ({"data": {"builtin": {"name": "home"}}}, "exactly one of data.train and data.builtin"),
    "unknown task": ({"task": {"kind": "clasification"}}, "'classification'"),
    "objective without language modelling": ({"task": {"objective": "masked"}}, "language_modeling"),
    "negative epsilon": ({"privacy": {"target_epsilon": -1, "target_delta": 1e-5}}, "privacy.target_epsilon = -1"),
    "delta too large": ({"privacy": {"target_epsilon": 1, "target_delta": 0.9}}, "far below 1/n"),
    "delta zero": ({"privacy": {"target_epsilon": 1, "target_delta": 0}}, "privacy.target_delta = 0"),
    "no epsilon": ({"privacy": {"target_delta": 1e-5}}, "exactly one of privacy.target_epsilon"),
    "two targets": (
        {"privacy": {"target_delta": 1e-5, "target_epsilon": 1, "noise_multiplier": 1}},
        "exactly one of privacy.target_epsilon",
    ),
    "unknown sampler": (
        {"privacy": {"target_delta": 1e-5, "target_epsilon": 1, "sampler": "shuffle"}},
        "privacy.sampler",
    ),
    "cap without truncation": (
        {"privacy": {"target_delta": 1e-5, "target_epsilon": 1, "max_batch_size": 100}},
        "privacy.max_batch_size goes with privacy.sampler",
    ),
    "micro-batch size without micro-batches": (
        {"privacy": {"target_delta": 1e-5, "target_epsilon": 1, "microbatch_size": 4}},
        "privacy.microbatch_size goes with privacy.clip_unit",
    ),
    "users in micro-batches": (
        {"privacy": {"target_delta": 1e-5, "target_epsilon": 1, "unit": "user", "clip_unit": "microbatch"}},
        "goes with unit 'example'",
    ),
    "seed without stamp": ({"run": {"insecure_seed": 1}}, "guarantee = 'none'"),
    "name is a path": ({"run": {"name": "../x"}}, "run.name"),
    "empty name": ({"run": {"name": ""}}, "run.name"),
    "private federation": (
        {"federated": {"rounds": 1}, "privacy": {"target_epsilon": 1, "target_delta": 1e-5}},
        "private federation",
    ),
    "bias above one": ({"data": {"train": None, "builtin": {"bias": 2}}}, "data.builtin.bias = 2"),
    "empty gate": ({"gate": {"rules": []}}, "gate.rules"),
    "physical batch of nothing": (
        {"train": {"physical_batch_size": 0}},
        "train.physical_batch_size = 0: input should be greater than or equal to 1 or 'auto'",
    ),
    "misspelt partition": (
        {"federated": {"clients": {"partition": "label_dirichlt", "clients": 10}}},
        "federated.clients.partition = 'label_dirichlt': input should be 'iid', 'label_dirichlet', 'quantity',",
    ),
    "concentration of nothing": (
        {"federated": {"clients": {"partition": "label_dirichlet", "clients": 10, "concentration": 0}}},
        "federated.clients.concentration = 0: input should be greater than 0",
    ),
    "partition of how many": (
        {"federated": {"clients": {"partition": "iid"}}},
        "give clients = NUMBER",
    ),
    "clients by another role": ({"federated": {"clients": "usr"}}, "federated.clients = 'usr': input should be 'user'"),
    "layers to freeze misspelt": ({"model": {"trainable": {"freez": ["a"]}}}, "input should be 'freeze'"),
    "distillation": ({"distill": {"teacher": "folder"}}, "[distill] is not part of this version yet"),
    "an odd shadow": ({"attack": {"shadows": 7}}, "attack.shadows = 7: shadows come in pairs"),
    "an attack twice": ({"attack": {"membership": ["loss", "loss"]}}, "names an attack twice"),
    "no attack": ({"attack": {"membership": []}}, "nothing to do"),
    "scores and a twin": ({"attack": {"scores": "s.csv", "audit": {}}}, "leave members, canaries and audit out"),
    "members and a holdout": (
        {"attack": {"members": "m.csv", "nonmembers": {"holdout": 0.5}}},
        "goes with a file of nonmembers",
    ),
    "all held out": ({"attack": {"nonmembers": {"holdout": 1.0}}}, "attack.nonmembers.holdout = 1.0"),
    "a metric of later": ({"fairness": {"metrics": ["prediction_sensitivity"]}}, "not part of this version yet"),
    "an engine of later": ({"federated": {"engine": "flower"}}, "'flower' is not part of this version yet"),
    "an audit of nobody": ({"attack": {"audit": {"canaries": 0}}}, "attack.audit.canaries = 0"),
    "a value for a section": ({"train": 3}, "train = 3: input should be a table"),
}


@pytest.mark.parametrize("sections,expected", WRONG.values(), ids=WRONG.keys())
def test_wrong_values_are_refused_in_one_line(sections: dict, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(merged(**sections), "run.toml")
    text = str(caught.value)
    assert expected in text and "\n" not in text and text.startswith("run.toml: ")
    assert len(text) < 300


def test_missing_sections_are_named() -> None:
    with pytest.raises(ConfigError, match=r"model.preset \(or model.checkpoint\) is required"):
        parse({"run": {"name": "x"}, "data": BASE["data"], "task": BASE["task"]})
    with pytest.raises(ConfigError, match=r"run.name, model.preset .*, data.train .*, task.kind \(and 1 more\)$"):
        parse({"trian": {}})


def test_faults_of_one_key_count_once() -> None:
    with pytest.raises(ConfigError) as caught:
        parse(merged(train={"physical_batch_size": "many", "epochs": 0}))
    assert str(caught.value).endswith("(and 1 more)")


def _keys(model: type) -> set[str]:
    found = set()
    for name, field in model.model_fields.items():
        found.add(name)
        for kind in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if hasattr(kind, "model_fields"):
                found |= {f"{name}.{inner}" for inner in _keys(kind)}
    return found


def test_what_is_said_to_come_later_is_not_here_already() -> None:
    assert not LATER_KEYS & _keys(RunConfig)
    assert set(LATER_VALUES) <= _keys(RunConfig)
    for key, values in LATER_VALUES.items():
        section, _, name = key.partition(".")
        for value in values:
            with pytest.raises(ConfigError, match="not part of this version yet"):
                parse(merged(**{section: {name: [value] if section != "federated" else value}}))


def test_toml_round_trip_and_digest(tmp_path: Path) -> None:
    config = parse(
        merged(
            privacy={"target_epsilon": 8.0, "target_delta": 1e-5},
            data={"columns": ["a b", 'q"uote', "ü"]},
            grid={"privacy.target_epsilon": [8, 4], "seeds": [1, 2]},
            gate={"rules": ["privacy.epsilon <= 8"]},
        )
    )
    path = tmp_path / "run.toml"
    path.write_text(to_toml(config), encoding="utf-8")
    assert load(path) == config
    assert digest(load(path)) == digest(config)


def test_digest_ignores_where_and_how_fast_but_not_what() -> None:
    base = parse(merged())
    assert digest(base) == digest(parse(merged(run={"out": "elsewhere"}, train={"physical_batch_size": 7})))
    assert digest(base) != digest(parse(merged(run={"seed": 2})))
    assert digest(base) != digest(parse(merged(train={"expected_batch_size": 7})))


def test_overrides_apply_in_order_and_keep_types() -> None:
    data = override(
        merged(), ["train.epochs=2", "train.epochs=3", "data.dataset_id=my set", "privacy.target_delta=1e-5"]
    )
    assert data["train"]["epochs"] == 3 and data["data"]["dataset_id"] == "my set"
    assert data["privacy"]["target_delta"] == 1e-5


@pytest.mark.parametrize("assignment", ["epochs", "train.epochs", "=3", "train..epochs=3", "run.name.first=x"])
def test_broken_overrides_are_refused(assignment: str) -> None:
    with pytest.raises(ConfigError, match="--set"):
        override(merged(), [assignment])


def test_without_leaves_a_section_out(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(to_toml(parse(merged(privacy={"target_epsilon": 8.0, "target_delta": 1e-5}))), encoding="utf-8")
    assert load(path, without=["privacy"]).privacy is None
    with pytest.raises(ConfigError, match="no such section"):
        load(path, without=["privcy"])
    assert sections(path) == {*BASE, "train", "privacy"}
    assert sections(path, ["gate.rules=[]"]) == {*BASE, "train", "privacy", "gate"}


@pytest.mark.parametrize(
    "content,expected",
    [(b"not toml [", "not TOML"), (b"\xff\xfe\x00", "not UTF-8"), (b"", r"required: run\.name, model\.preset")],
    ids=["not-toml", "binary", "empty"],
)
def test_unreadable_files(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "run.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=expected) as caught:
        load(path)
    assert "\n" not in str(caught.value)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such run file"):
        load(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="folder"):
        load(tmp_path)


def test_configuration_is_frozen() -> None:
    with pytest.raises(Exception, match="frozen"):
        parse(merged()).run.seed = 3  # type: ignore[misc]


def test_schema_names_every_section() -> None:
    schema = json_schema()
    assert set(BASE) <= set(schema["properties"]) and schema["additionalProperties"] is False


def test_short_selection_is_a_selection() -> None:
    config = parse(merged(federated={"selection": "activity"}))
    assert config.federated is not None and config.federated.selection.by == "activity"
