"""A finished expert folder takes the place of the old one in one step, and the old one is kept.

    adapters/sql                       what is served
    adapters/.versions/sql/1/sql       what was served before; `versions` lists and brings it back
    adapters/.versions/sql/.next/sql   a copy of what is about to be served

What is served is copied among the kept versions first; the new one is copied beside it and checked
once more; then the two folders are exchanged by one call of the system. Whatever ends the process
between these, at its place lies the whole old folder or the whole new one, and what else is left
over is swept away by the next publication.
"""

import contextlib
import ctypes
import dataclasses
import errno
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from filelock import FileLock

from one4all_lc.card import CARD_FILE, BaseFacts, ExpertCard
from one4all_lc.errors import InvalidInput, UnfitExpert
from one4all_lc.folder import Expert, read_expert

STORE = ".versions"
KEPT = 4
"""Old versions that are kept of an expert, unless told otherwise."""

VersionStamp = tuple[int, ...]

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of Linux' renameat2
_CANNOT_EXCHANGE = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM)


def publish(made: str | Path, folder: str | Path, *, keep: int = KEPT) -> Expert:
    """Put a copy of a finished expert folder in the place of `folder`, if there is one.

    Its version becomes higher than that of any before it. What is refused or fails leaves `folder`
    as it was.

    Args:
        made: The new folder, of the same name; it stays where it is.
        folder: Where the expert should lie.
        keep: Old versions that are kept.

    Returns:
        The expert at its new place.

    Raises:
        UnfitExpert: The new folder must not be used.
        InvalidInput: `keep` is below 0, or the place cannot be written.
    """
    made, folder = Path(made), Path(folder).resolve()
    expert = read_expert(made)
    if expert.name != folder.name:
        msg = (
            f"{made} holds expert {expert.name!r}: publish it as {expert.name!r}, not as "
            f"{folder.name!r}."
        )
        raise UnfitExpert(msg)
    with changing(folder, keep) as store:
        numbers = [*kept_numbers(store), present_version(folder)]
        next_ = copied(made, store / ".next")
        if expert.card.version <= max(numbers):
            dataclasses.replace(expert.card, version=max(numbers) + 1).write(next_)
        put_in_place(next_, folder, store, keep)
    return read_expert(folder)


@contextlib.contextmanager
def changing(folder: Path, keep: int) -> Iterator[Path]:
    """Be the only process that changes an expert's folder; what others left over is swept away.

    Args:
        folder: The expert's folder, links resolved.
        keep: Old versions that will be kept.

    Yields:
        The folder of its kept versions.
    """
    if keep < 0:
        msg = f"{keep} old versions cannot be kept: give 0 or more."
        raise InvalidInput(msg)
    store = store_of(folder)
    try:
        store.mkdir(parents=True, exist_ok=True)
        with FileLock(store / ".lock"):
            _sweep(folder, store)
            try:
                yield store
            finally:
                _sweep(folder, store)
    except OSError as error:
        msg = f"{folder} cannot be changed ({error}): make its place writable, with room left."
        raise InvalidInput(msg) from error


def recover(folder: Path) -> None:
    """Bring back an expert whose exchange was cut off where it takes two steps.

    Cheap where there is nothing to do: a library calls it for every folder before it reads them.
    """
    if (store_of(folder) / ".aside").exists() and not folder.exists():
        with changing(folder, KEPT):
            pass


def version_stamp(folder: str | Path) -> VersionStamp:
    """Return what differs once another version lies in a folder; empty if there is no expert."""
    try:
        place, card = Path(folder).stat(), (Path(folder) / CARD_FILE).stat()
    except OSError:
        return ()
    return place.st_ino, card.st_ino, card.st_mtime_ns, card.st_size


def read_settled(folder: str | Path, base: BaseFacts | Sequence[BaseFacts] | None = None) -> Expert:
    """Read an expert folder, once more if another version took its place meanwhile.

    Raises:
        UnfitExpert: It must not be used.
    """
    while True:
        before = version_stamp(folder)
        try:
            return read_expert(folder, base)
        except UnfitExpert:
            if version_stamp(folder) == before:
                raise


def store_of(folder: Path) -> Path:
    """Return the folder of an expert's kept versions, which need not exist."""
    return folder.parent / STORE / folder.name


def kept_numbers(store: Path) -> list[int]:
    """Return the numbers of the kept versions, ascending."""
    names = [path.name for path in store.iterdir()] if store.is_dir() else []
    return sorted(int(name) for name in names if name.isdecimal())


def present_version(folder: Path) -> int:
    """Return the version that is in place; 0 if there is no expert.

    Raises:
        UnfitExpert: Its card cannot be read.
    """
    return ExpertCard.read(folder).version if (folder / CARD_FILE).exists() else 0


def copied(folder: Path, place: Path) -> Path:
    """Copy a folder into `place`, which is made, and have the disk hold it.

    Returns:
        The copy, whose name is the folder's.
    """
    copy = place / folder.resolve().name
    shutil.copytree(folder, copy)
    for parent, _, names in os.walk(place):
        for name in (*names, "."):
            _sync(Path(parent, name))
    return copy


def put_in_place(next_: Path, folder: Path, store: Path, keep: int) -> None:
    """Exchange what is served for `next_`, which is checked once more, and keep the old one.

    Args:
        next_: The new folder, beside the kept versions.
        folder: What is served; it need not exist.
        store: The folder of kept versions, which nobody else changes meanwhile.
        keep: Old versions that are kept.
    """
    version = read_expert(next_).card.version
    present = present_version(folder)
    if not present:
        _carry_over(folder, next_)
    elif keep:
        copied(folder, store / ".keeping")
        _drop(store / str(present))
        (store / ".keeping").rename(store / str(present))
    if not folder.exists():
        next_.rename(folder)
    elif not _exchange(next_, folder):
        _in_two_steps(next_, folder, store / ".aside")
    _sync(folder.parent)
    numbers = kept_numbers(store)
    old = [number for number in numbers if number != version]
    for number in {*numbers} - {*old[max(0, len(old) - keep) :]}:
        _drop(store / str(number))


def _carry_over(folder: Path, next_: Path) -> None:
    """Keep what lies at the place of a new expert: exemplars that were written before it."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.is_file() and not (next_ / path.name).exists():
            shutil.copy2(path, next_ / path.name)


def _exchange(one: Path, other: Path) -> bool:
    """Give two folders each other's name in one step; False where the system cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    names = os.fsencode(one), os.fsencode(other)
    if rename(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in _CANNOT_EXCHANGE:
        return False
    raise OSError(code, os.strerror(code), str(other))


def _in_two_steps(next_: Path, folder: Path, aside: Path) -> None:
    """Rename the old folder aside and the new one into its place; `_sweep` mends a cut."""
    folder.rename(aside)
    try:
        next_.rename(folder)
    except BaseException:
        aside.rename(folder)
        raise


def _sweep(folder: Path, store: Path) -> None:
    """Remove what was left over, once whatever was in place is there."""
    aside = store / ".aside"
    if aside.exists() and not folder.exists():
        aside.rename(folder)
    for name in (".aside", ".next", ".keeping", ".dropped"):
        shutil.rmtree(store / name, ignore_errors=True)


def _drop(kept: Path) -> None:
    """Remove a kept version; one that is half removed must not look like one."""
    if kept.exists():
        kept.rename(kept.with_name(".dropped"))
        shutil.rmtree(kept.with_name(".dropped"))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
