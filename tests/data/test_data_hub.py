"""Hub ids: read from the local hub cache, with no network and nothing written to a shared cache."""

from __future__ import annotations

import json
import socket
import tempfile
from pathlib import Path

import datasets
import huggingface_hub.constants
import pytest

from troth.config import DataConfig, TaskConfig
from troth.data import load, read
from troth.data.hub import HubName, parse_hub_name
from troth.errors import DataError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CARD = """---
configs:
- config_name: en
  data_files:
  - {split: train, path: data/en-train.jsonl}
  - {split: validation, path: data/en-dev.jsonl}
  - {split: test, path: data/en-test.jsonl}
- config_name: de
  data_files:
  - {split: train, path: data/de-train.jsonl}
dataset_info:
- config_name: en
  features:
  - {name: text, dtype: string}
  - name: label
    dtype:
      class_label:
        names: {'0': music, '1': light}
---
"""


def add(cache: Path, repo: str, files: dict[str, str]) -> Path:
    """Put a data set into a hub cache, in the layout that `huggingface_hub` downloads into."""
    folder = cache / f"datasets--{repo.replace('/', '--')}"
    snapshot = folder / "snapshots" / COMMIT
    for name, text in files.items():
        path = snapshot / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMIT)
    return snapshot


def lines(name: str, count: int = 4) -> str:
    return "".join(json.dumps({"text": f"{name} {i}", "label": i % 2}) + "\n" for i in range(count))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A hub cache of the test's own with three data sets, a watched `datasets` cache, and no network at all."""

    def refuse(*_: object) -> None:
        raise AssertionError("the network was asked")

    hub, prepared, scratch = tmp_path / "hub", tmp_path / "prepared", tmp_path / "scratch"
    for folder in (hub, prepared, scratch):
        folder.mkdir()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(hub))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)  # the cache alone, even when online
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", prepared)
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    names = ("en-train", "en-dev", "en-test", "de-train")
    add(hub, "acme/intents", {"README.md": CARD, **{f"data/{name}.jsonl": lines(name) for name in names}})
    add(hub, "acme/plain", {"train.csv": "text,label\na,x\nb,y\n", "test.csv": "text,label\nc,x\n"})
    add(hub, "plain", {"train.csv": "text,label\nd,x\ne,y\n"})
    add(hub, "acme/broken", {"train.jsonl": '{"text": '})
    return tmp_path


@pytest.mark.parametrize(
    ("name", "split", "texts"),
    [
        ("acme/intents/en", "train", [f"en-train {i}" for i in range(4)]),
        ("acme/intents/en", "test", [f"en-test {i}" for i in range(4)]),
        ("acme/intents/en:validation", "train", [f"en-dev {i}" for i in range(4)]),
        ("acme/intents/de:train", "test", [f"de-train {i}" for i in range(4)]),
        ("acme/plain", "train", ["a", "b"]),
        ("acme/plain:test", "train", ["c"]),
        ("plain", "train", ["d", "e"]),
    ],
)
def test_a_hub_id_is_read_from_the_local_cache(cache, name, split, texts):
    kind = "language_modeling"
    table = read(name, kind=kind, split=split, folder=cache)
    assert table.column("text") == texts
    assert table.source == name
    assert table.dataset.cache_files == []
    assert list((cache / "prepared").iterdir()) == []
    assert list((cache / "scratch").iterdir()) == []


def test_class_labels_of_a_card_become_their_names(cache):
    table = read("acme/intents/en", kind="classification", folder=cache)
    assert table.column("label") == ["music", "light", "music", "light"]


def test_a_run_file_names_splits_of_a_hub_id(cache):
    config = DataConfig(train="acme/intents/en", validation="acme/intents/en", test="acme/intents/en:test")
    splits = load(config, TaskConfig(kind="classification"), cache)
    assert [table.column("text")[0] for table in (splits.train, splits.validation, splits.test)] == [
        "en-train 0",
        "en-dev 0",
        "en-test 0",
    ]


def test_progress_bars_are_left_as_they_were(cache):
    before = datasets.utils.is_progress_bar_enabled()
    read("acme/plain", kind="classification", folder=cache)
    assert datasets.utils.is_progress_bar_enabled() == before


def test_a_folder_goes_before_a_hub_id(cache):
    (cache / "acme" / "plain").mkdir(parents=True)
    (cache / "acme" / "plain" / "a.csv").write_text("text,label\nmine,x\nmine too,y\n")
    assert read("acme/plain", kind="classification", folder=cache).column("text") == ["mine", "mine too"]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("acme/intents", "acme/intents: several configurations ('en', 'de'); name one: owner/name/config:split"),
        ("acme/intents/fr", "acme/intents/fr: no configuration 'fr'; configurations: 'en', 'de'"),
        ("acme/intents/en:dev", "acme/intents/en:dev: no split 'dev'; splits: 'train', 'validation', 'test'"),
        (
            "acme/absent",
            "no data set 'acme/absent' in the local hub cache (nothing is fetched: to have it, hf download",
        ),
        ("acme/broken", "acme/broken: the copy in the local hub cache cannot be read ("),
        ("acme/intents/en:train[:2]", "no such file or folder"),
        ("../acme/plain", "no such file or folder"),
        ("acme/plain.csv", "no such file or folder"),
    ],
)
def test_a_bad_hub_id_is_refused_in_one_line(cache, name, says):
    with pytest.raises(DataError) as caught:
        read(name, kind="classification", folder=cache)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_one_split_may_not_be_read_twice(cache):
    config = DataConfig(train="acme/plain", test="acme/plain:train")
    with pytest.raises(DataError, match=r"^acme/plain:train: read twice, for data\.train and data\.test"):
        load(config, TaskConfig(kind="classification"), cache)


def test_columns_are_not_for_hub_ids(cache):
    with pytest.raises(DataError, match=r"drop columns$"):
        read("acme/plain", kind="classification", columns=["text", "label"], folder=cache)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("squad", HubName("squad", None, "test")),
        ("owner/name", HubName("owner/name", None, "test")),
        ("owner/na-me.v2:dev", HubName("owner/na-me.v2", None, "dev")),
        ("owner/name/en-US", HubName("owner/name", "en-US", "test")),
        ("a/b/c/d", None),
        ("/a/b", None),
        ("./a", None),
        ("a//b", None),
        ("a b", None),
        ("a\nb", None),
        ("a:", None),
    ],
)
def test_hub_names(text, name):
    assert parse_hub_name(text, "test") == name
