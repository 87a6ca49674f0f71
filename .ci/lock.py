"""Make `requirements.lock` anew from `pyproject.toml`: `python .ci/lock.py`.

pip resolves everything for this machine, and again with whatever only other systems or Python
versions need. What is not needed everywhere gets a marker; the libraries that a CUDA build of torch
brings along are left to pip.
"""

import json
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
EXTRAS = ("train", "metrics", "documents", "reports", "test")
TORCH = "torch==2.13.0"
CUDA = ("nvidia-", "cuda-", "triton")
"""Beginnings of the names of what a CUDA build of torch needs and a CPU build does not."""

PYTHONS = ("3.11", "3.12", "3.13", "3.14")
SYSTEMS: Mapping[str, tuple[str, str, str]] = {
    "linux": ("Linux", "posix", "x86_64"),
    "darwin": ("Darwin", "posix", "arm64"),
    "win32": ("Windows", "nt", "AMD64"),
}
"""sys_platform to platform_system, os_name and platform_machine."""

Place = tuple[str, str]
"""Where a package is needed: sys_platform and Python version."""

HEADER = """\
# Every package that one4all_lc needs to run, to train and to be tested.
# Made from pyproject.toml by: python .ci/lock.py
# torch may be a CPU or a CUDA build: pip adds the CUDA libraries where the build needs them.
"""


@dataclass(frozen=True)
class Package:
    """One package as pip resolved it.

    Attributes:
        version: Without the local part: `2.13.0`, not `2.13.0+cpu`.
        requires: Its own requirements, those of its extras among them.
        requires_python: The Python versions that it admits.
    """

    version: str
    requires: tuple[Requirement, ...]
    requires_python: str


def main() -> None:
    """Write the lock."""
    wanted = wanted_by_project()
    packages, places = everywhere(wanted)
    refused = [
        f"{name} {package.version} is not for Python {python}"
        for name, package in packages.items()
        for python in sorted({python for _, python in places[name]})
        if not SpecifierSet(package.requires_python).contains(f"{python}.0")
    ]
    if refused:
        sys.exit("\n".join(refused))
    lines = [f"{name}=={packages[name].version}{marker(places[name])}" for name in sorted(places)]
    (ROOT / "requirements.lock").write_text(HEADER + "\n".join(lines) + "\n", encoding="utf-8")
    sys.stdout.write(f"requirements.lock pins {len(lines)} packages\n")


def wanted_by_project() -> list[Requirement]:
    """Read what `pyproject.toml` asks for, extras included."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    texts = [*project["dependencies"], *(text for extra in EXTRAS for text in extras[extra])]
    return [Requirement(text) for text in texts]


def everywhere(
    wanted: Iterable[Requirement],
) -> tuple[dict[str, Package], dict[str, set[Place]]]:
    """Resolve for this machine and, step by step, for what only other places need."""
    asked = [str(requirement) for requirement in wanted]
    while True:
        packages = resolve(asked)
        places: dict[str, set[Place]] = {}
        missing: set[str] = set()
        for place in product(SYSTEMS, PYTHONS):
            for name in reachable(wanted, packages, place, missing):
                places.setdefault(name, set()).add(place)
        if not missing:
            return packages, places
        asked += sorted(missing)


def resolve(asked: Iterable[str]) -> dict[str, Package]:
    """Ask pip for one version of everything, without installing it."""
    with tempfile.TemporaryDirectory() as folder:
        constraint, report = Path(folder, "constraint.txt"), Path(folder, "report.json")
        constraint.write_text(f"{TORCH}\n", encoding="utf-8")
        command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed"]
        command += ["--quiet", "--constraint", str(constraint), "--report", str(report)]
        subprocess.run([*command, *asked], check=True, stdout=sys.stderr)
        items = json.loads(report.read_text(encoding="utf-8"))["install"]
    return {
        canonicalize_name(found["name"]): Package(
            found["version"].partition("+")[0],
            tuple(Requirement(text) for text in found.get("requires_dist", ())),
            found.get("requires_python", ""),
        )
        for found in (item["metadata"] for item in items)
    }


def reachable(
    wanted: Iterable[Requirement],
    packages: Mapping[str, Package],
    place: Place,
    missing: set[str],
) -> set[str]:
    """Follow requirements and extras from `wanted`, as they read in `place`.

    Requirements on a package that was not resolved are added to `missing`.
    """
    system, python = place
    platform_system, os_name, machine = SYSTEMS[system]
    environment = {
        "sys_platform": system,
        "platform_system": platform_system,
        "os_name": os_name,
        "platform_machine": machine,
        "python_version": python,
        "python_full_version": f"{python}.0",
        "platform_python_implementation": "CPython",
        "implementation_name": "cpython",
    }
    names: set[str] = set()
    seen: set[tuple[str, str]] = set()
    todo = [(requirement, "") for requirement in wanted]
    while todo:
        requirement, extra = todo.pop()
        name = canonicalize_name(requirement.name)
        marker = requirement.marker
        applies = marker is None or marker.evaluate(environment | {"extra": extra})
        if not applies or name.startswith(CUDA):
            continue
        if name not in packages:
            missing.add(f"{name}{requirement.specifier}")
            continue
        names.add(name)
        for inner in {"", *requirement.extras}:
            if (name, inner) not in seen:
                seen.add((name, inner))
                todo += [(further, inner) for further in packages[name].requires]
    return names


def marker(places: set[Place]) -> str:
    """Write where a package is needed as an environment marker; nothing if everywhere."""
    systems = [system for system in SYSTEMS if any(place[0] == system for place in places)]
    pythons = [python for python in PYTHONS if any(place[1] == python for place in places)]
    first, last = PYTHONS.index(pythons[0]), PYTHONS.index(pythons[-1])
    if places != set(product(systems, PYTHONS[first : last + 1])):
        sys.exit(f"no marker is simple enough for {sorted(places)}: extend .ci/lock.py")
    parts = []
    if len(systems) == 1:
        parts.append(f'sys_platform == "{systems[0]}"')
    elif len(systems) < len(SYSTEMS):
        (absent,) = set(SYSTEMS) - set(systems)
        parts.append(f'sys_platform != "{absent}"')
    if first:
        parts.append(f'python_version >= "{pythons[0]}"')
    if last + 1 < len(PYTHONS):
        parts.append(f'python_version < "{PYTHONS[last + 1]}"')
    return f" ; {' and '.join(parts)}" if parts else ""


if __name__ == "__main__":
    main()
