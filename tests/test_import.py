"""What `import foedus` brings in, and that every public name is there."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import foedus

SOURCE = Path(foedus.__file__).parent
HEAVY = {"torch", "typer", "sqlalchemy", "alembic", "pandas", "sklearn", "scipy", "matplotlib", "cryptography"}
HEAVY |= {"rich", "ray"}


def modules_after(code: str) -> set[str]:
    """The top-level modules that a fresh process has loaded after `code`."""
    ending = "; import sys, json; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code + ending], env=env, capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


@pytest.mark.processes
def test_importing_foedus_imports_not_even_numpy() -> None:
    assert not modules_after("import foedus") & {"numpy", *HEAVY}


@pytest.mark.processes
def test_the_core_imports_numpy_and_nothing_heavier() -> None:
    code = "import foedus as fd; fd.Job, fd.fedprox(0.1), fd.mean(), fd.Split, fd.plateau('loss', 2), fd.clip, fd.key"
    loaded = modules_after(code)
    assert "numpy" in loaded and not loaded & HEAVY


@pytest.mark.processes
def test_a_simulation_imports_no_framework_that_its_job_does_not_use(tmp_path: Path) -> None:
    code = "import tiny; tiny.job().run(tiny.SITES)"
    assert not modules_after(f"import os; os.environ['FOEDUS_HOME'] = {str(tmp_path)!r}; {code}") & HEAVY


def exists(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


@pytest.mark.parametrize("name", sorted(foedus.__all__))
def test_a_public_name_is_there(name: str) -> None:
    assert exists(foedus._NAMES[name]) and getattr(foedus, name) is not None
    assert getattr(foedus, name) is getattr(foedus, name)


def test_public_names_can_be_listed() -> None:
    assert {"Job", "fedavg", "Split", "key", "digest", "combine"} <= set(dir(foedus))


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="foedus has no 'fedavgg'"):
        foedus.fedavgg  # noqa: B018


def test_camel_case_is_for_types_alone() -> None:
    for name in foedus.__all__:
        assert isinstance(getattr(foedus, name), type) == name[0].isupper(), name


def test_no_module_of_the_library_prints_asserts_on_input_or_pickles() -> None:
    """print belongs to the command line; pickle and yaml are nowhere, but between a user's own processes."""
    for path in SOURCE.rglob("*.py"):
        names = {node.id for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Name)}
        imported = {
            alias.name.partition(".")[0]
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, (ast.Import, ast.ImportFrom))
            for alias in ([ast.alias(node.module or "")] if isinstance(node, ast.ImportFrom) else node.names)
        }
        own_pool = "processes" in path.parts  # one user's own processes, on one machine
        assert own_pool or not imported & {"pickle", "yaml", "marshal", "shelve", "dill"}, path
        assert "print" not in names or "cli" in path.parts or path.name == "__main__.py", path
