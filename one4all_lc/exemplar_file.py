"""An expert's `exemplars.jsonl` while it is in use: changed by one process, noticed by others."""

import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

from one4all_lc.errors import InvalidInput, UnfitExpert
from one4all_lc.folder import EXEMPLARS_FILE, OOS, Exemplar, read_exemplars, write_exemplars

LOCK_FILE = f".{EXEMPLARS_FILE}.lock"

Exemplars = tuple[Exemplar, ...]
Stamp = tuple[int, int, int] | None
"""A file's time of change in ns, size and inode; None if there is none."""

_log = logging.getLogger(__name__)


def stamp_of(folder: str | Path) -> Stamp:
    """Return what tells whether a folder's exemplars were changed, without reading them."""
    try:
        facts = (Path(folder) / EXEMPLARS_FILE).stat()
    except OSError:
        return None
    return facts.st_mtime_ns, facts.st_size, facts.st_ino


def reread(folder: Path) -> Exemplars | None:
    """Read a folder's exemplars; None, and a warning, if that cannot be done."""
    try:
        return read_exemplars(folder)
    except (UnfitExpert, OSError) as error:
        _log.warning("The exemplars in use stay: %s", error)
        return None


def change_exemplars(
    folder: Path, change: Callable[[Exemplars], Exemplars], in_memory: Exemplars = ()
) -> tuple[Exemplars, Exemplars]:
    """Change a folder's exemplars, starting from what lies there now.

    Processes that change the same file take turns, so that none undoes what another did.

    Args:
        folder: The expert's folder.
        change: Makes the new ones of the old ones.
        in_memory: What an expert has that has no folder; nothing is written then.

    Returns:
        The exemplars before and after.

    Raises:
        InvalidInput: An exemplar is blank, or the folder cannot be written.
        UnfitExpert: The file cannot be understood.
    """
    with _turn(folder) as on_disk:
        before = read_exemplars(folder) if on_disk else in_memory
        after = change(before)
        for item in after:
            _check(item)
        if on_disk and after != before:
            write_exemplars(folder, after)
    return before, after


@contextlib.contextmanager
def _turn(folder: Path) -> Iterator[bool]:
    """Wait for the turn to change a folder; tell whether there is one."""
    from filelock import FileLock

    if not folder.is_dir():
        yield False
        return
    try:
        lock = FileLock(folder / LOCK_FILE)
        lock.acquire()
    except (OSError, NotImplementedError) as error:
        reason = getattr(error, "strerror", None) or error
        msg = (
            f"The exemplars in {folder} cannot be changed ({reason}): make the folder writable, or "
            "use a copy that is."
        )
        raise InvalidInput(msg) from error
    try:
        yield True
    finally:
        lock.release()


def _check(item: Exemplar) -> None:
    values = (item.text, item.language)
    if not all(isinstance(value, str) and value.strip() for value in values):
        msg = f"An exemplar is {item!r}: give a question as text, and its language."
        raise InvalidInput(msg)
    if item.label not in ("", OOS):
        msg = f"An exemplar has label {item.label!r}: give none, or {OOS!r} for nobody's question."
        raise InvalidInput(msg)
