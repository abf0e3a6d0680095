"""What the house promises of itself: public names, light imports, sizes, catalogue."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import troth

SOURCE = Path(troth.__file__).parent
PACKAGES = sorted(m.name for m in pkgutil.iter_modules(troth.__path__, "troth.") if m.ispkg and m.name != "troth.cli")
LIGHT = ("troth", "troth.config", "troth.results", "troth.accounting", "troth.runs", "troth.cli.main")


@pytest.mark.parametrize("name", PACKAGES)
def test_public_names_are_what_the_package_lists(name: str) -> None:
    package = importlib.import_module(name)
    assert sorted(package.__all__) == sorted(set(package.__all__))
    for public in package.__all__:
        thing = getattr(package, public)
        assert not (inspect.isclass(thing) or inspect.isfunction(thing)) or thing.__doc__, (
            f"{name}.{public} has no docstring"
        )


@pytest.mark.parametrize("name", LIGHT)
def test_what_must_start_fast_loads_nothing_heavy(name: str) -> None:
    heavy = "{'torch', 'transformers', 'datasets', 'sklearn', 'scipy', 'pandas', 'matplotlib', 'dp_accounting'}"
    code = f"import sys, {name}; loaded = {heavy} & sys.modules.keys(); sys.exit(f'{{loaded}}' if loaded else 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_files_are_of_readable_size_and_functions_fit_a_screen() -> None:
    for path in SOURCE.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert text.count("\n") <= 600, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                start = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
                assert (node.end_lineno or 0) - start.lineno < 60, f"{path}:{node.lineno} {node.name}"


def test_no_test_without_an_assertion() -> None:
    """A test that only runs cannot fail."""
    signs = ("assert", "raises", "warns", ".check(", "expect(", "fail(")
    for path in Path(__file__).parent.rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                body = ast.unparse(node)
                assert any(sign in body for sign in signs), f"{path.name}:{node.lineno} {node.name}"


def test_nothing_unpickles() -> None:
    """joblib's own processes exchange what this process made; files are never unpickled."""
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module == "joblib":
                assert {a.name for a in node.names} <= {"Parallel", "delayed"}, path
            elif isinstance(node, ast.Import | ast.ImportFrom):
                names = [a.name for a in node.names] + [getattr(node, "module", None) or ""]
                assert not {"pickle", "dill", "cloudpickle", "joblib"} & set(names), path
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "np.load", "numpy.load"):
                plain = any(k.arg == "allow_pickle" and ast.unparse(k.value) == "False" for k in node.keywords)
                assert plain and "np" in ast.unparse(node.func), f"{path}:{node.lineno} may unpickle"
