"""The lock: a newcomer must get the very packages that the project was tested with."""

import re
import tomllib
from collections.abc import Iterable
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
CUDA = ("nvidia-", "cuda-", "triton")
LOCK = ROOT / "requirements.lock"
LINES = [
    line
    for line in LOCK.read_text(encoding="utf-8").splitlines()
    if line.strip() and not line.startswith("#")
]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
WANTED = [
    Requirement(text)
    for text in (
        *PROJECT["dependencies"],
        *PROJECT["optional-dependencies"]["train"],
        *PROJECT["optional-dependencies"]["test"],
    )
]
AGAIN = "run `python .ci/lock.py`"


def pins() -> dict[str, Requirement]:
    """The lock's lines, by canonical name."""
    return {canonicalize_name(pin.name): pin for pin in map(Requirement, LINES)}


def version(pin: Requirement) -> str:
    (specifier,) = pin.specifier
    return specifier.version


def here(requirement: Requirement, extra: str = "") -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def installed(name: str) -> Distribution:
    try:
        return distribution(name)
    except PackageNotFoundError:
        pytest.fail(f"{name} is not installed: pip install -r requirements.lock -e .")


def reachable(wanted: Iterable[Requirement]) -> set[str]:
    """Follow requirements and extras through what is installed, CUDA libraries apart."""
    todo = [(requirement, "") for requirement in wanted]
    seen: set[tuple[str, str]] = set()
    while todo:
        requirement, extra = todo.pop()
        name = canonicalize_name(requirement.name)
        if not here(requirement, extra) or name.startswith(CUDA):
            continue
        for inner in ("", *requirement.extras):
            if (name, inner) not in seen:
                seen.add((name, inner))
                requires = installed(name).requires or ()
                todo += [(Requirement(text), inner) for text in requires]
    return {name for name, _ in seen}


@pytest.mark.parametrize("line", LINES)
def test_every_pin_is_exact(line: str):
    """Lost: the same installation tomorrow; or any at all where a host or a path is not known."""
    assert re.fullmatch(
        r"[a-z0-9-]+==[0-9][0-9a-z.]*( ; [a-z_]+ (==|!=|<|>=) \"[^\"/]+\".*)?", line
    )
    assert "+" not in line


@pytest.mark.parametrize("wanted", WANTED, ids=str)
def test_what_the_project_asks_for_is_pinned(wanted: Requirement):
    """Lost: an installation; pip stops where lock and project disagree."""
    pin = pins().get(canonicalize_name(wanted.name))
    assert pin is not None, f"{wanted} is not in requirements.lock: {AGAIN}"
    assert wanted.specifier.contains(version(pin)), f"{pin} is not {wanted}: {AGAIN}"


def test_the_lock_is_closed_and_minimal():
    """Lost: versions that nobody chose, or packages that nobody needs."""
    needed = reachable(WANTED)
    locked = {name for name, pin in pins().items() if here(pin)}
    assert not needed - locked, f"not in requirements.lock: {AGAIN}"
    assert not locked - needed, f"needed by nothing: {AGAIN}"


def test_each_package_stands_once_and_in_order():
    """Lost: readable differences between two locks."""
    names = [Requirement(line).name for line in LINES]
    assert names == sorted(set(names))


def test_torch_may_be_a_cpu_or_a_cuda_build():
    """Lost: one of the two kinds of machine."""
    assert "torch==2.13.0" in LINES
    assert not [name for name in pins() if name.startswith(CUDA)]


def test_what_is_installed_is_what_is_pinned():
    """Lost: the sense of a green test run, if it ran with other packages than users get."""
    found = {name: installed(name) for name, pin in pins().items() if here(pin)}
    # pip marks what was asked for by name; from the lock, that is everything.
    if any(package.read_text("REQUESTED") is None for package in found.values()):
        pytest.skip("the environment was not installed from requirements.lock")
    other = {
        name: package.version
        for name, package in found.items()
        if package.version.partition("+")[0] != version(pins()[name])
    }
    assert not other, "install again: pip install -r requirements.lock -e ."
