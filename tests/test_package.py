"""The package as a whole: quick to import, complete and documented."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import one4all_lc

PACKAGE = Path(one4all_lc.__file__).parent
MODULES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))
HEAVY = {"torch", "transformers", "peft", "bitsandbytes", "sentence_transformers", "chromadb"}


def in_a_fresh_process(code: str) -> object:
    """Run code that prints JSON."""
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=PACKAGE.parent, timeout=60
    )
    return json.loads(done.stdout)


def test_import_is_quick():
    """Lost: a second at each start of every program that imports this one."""
    code = (
        "import time; began = time.perf_counter(); import one4all_lc; "
        "print(time.perf_counter() - began)"
    )
    assert min(float(in_a_fresh_process(code)) for _ in range(2)) < 1


@pytest.mark.parametrize(
    "statement",
    [
        "import one4all_lc",
        "from one4all_lc import ExpertCard, InvalidInput, Library, UnfitExpert",
        "import one4all_lc.folder",
        "import one4all_lc.engine.request",
        "import one4all_lc.engine.scheduler",
        "import one4all_lc.routing.scoring",
        "from one4all_lc.library import Library; Library()",
    ],
)
def test_what_needs_no_model_loads_no_torch(statement: str):
    """Lost: seconds and hundreds of megabytes wherever folders are only listed or checked."""
    code = f"import json, sys; {statement}; print(json.dumps(sorted(sys.modules)))"
    assert not HEAVY & set(in_a_fresh_process(code))


def test_public_names_are_what_can_be_imported():
    """Lost: a name that the documentation promises, or that editors and type checkers offer."""
    assert one4all_lc.__all__ == sorted(set(one4all_lc.__all__))
    assert dir(one4all_lc) == one4all_lc.__all__
    for name in one4all_lc.__all__:
        value = getattr(one4all_lc, name)
        assert value.__name__ == name
        assert value.__module__ == f"one4all_lc.{one4all_lc._HOME[name]}"
    assert one4all_lc._HOME.keys() == set(one4all_lc.__all__)


def test_type_checkers_see_the_same_names():
    """Lost: types, for a name that is loaded lazily but not declared."""
    (block,) = (
        node
        for node in ast.parse((PACKAGE / "__init__.py").read_text()).body
        if isinstance(node, ast.If)
    )
    declared = {
        alias.name: node.module.removeprefix("one4all_lc.")
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert declared == one4all_lc._HOME
    assert (PACKAGE / "py.typed").is_file()


def test_a_wrong_name_is_an_attribute_error():
    """Lost: `hasattr`, and the usual message for a typing error."""
    with pytest.raises(AttributeError, match=r"module 'one4all_lc' has no attribute 'One4Al'"):
        _ = one4all_lc.One4Al
    with pytest.raises(ImportError):
        exec("from one4all_lc import Torch")


def public(node: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.AST]]:
    for child in ast.iter_child_nodes(node):
        kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        if isinstance(child, kinds) and not child.name.startswith("_"):
            yield f"{prefix}{child.name}", child
            if isinstance(child, ast.ClassDef):
                yield from public(child, f"{prefix}{child.name}.")


@pytest.mark.parametrize("module", MODULES)
def test_everything_public_is_documented(module: str):
    """Lost: what `help()` shows."""
    tree = ast.parse((PACKAGE / module).read_text(encoding="utf-8"))
    nodes = [(module, tree), *public(tree)]
    assert not [name for name, node in nodes if not ast.get_docstring(node)]
