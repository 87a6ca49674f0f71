"""A finished expert folder takes the place of the old one, or the old one stays."""

import shutil
from pathlib import Path

from one4all_lc.errors import UnfitExpert
from one4all_lc.folder import read_expert


def publish(made: Path, folder: Path) -> None:
    """Put a finished expert folder in the place of `folder`, if there is one.

    The old folder is renamed aside, the new one into its place. What is refused or fails leaves
    `folder` as it was; after a power cut between the two, `restore` brings the old one back.

    Args:
        made: The new folder, on the same file system and of the same name.
        folder: Where it should lie.

    Raises:
        UnfitExpert: The new folder must not be used.
    """
    name = read_expert(made).name
    if name != folder.name:
        msg = f"{made} holds expert {name!r}: publish it as {name!r}, not as {folder.name!r}."
        raise UnfitExpert(msg)
    restore(made, folder)
    old = _aside(made)
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)  # of a publication that was cut off
        folder.rename(old)
    try:
        made.rename(folder)
    except BaseException:
        restore(made, folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def restore(made: Path, folder: Path) -> None:
    """Bring back the folder that a publication of `made`, cut off, had renamed aside."""
    if not folder.exists() and _aside(made).exists():
        _aside(made).rename(folder)


def _aside(made: Path) -> Path:
    return made.with_name(f".{made.name}.old")
