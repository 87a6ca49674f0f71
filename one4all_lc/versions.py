"""The versions of an expert that are kept, and the way back to them."""

from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from one4all_lc.card import ExpertCard
from one4all_lc.errors import InvalidInput, UnfitExpert
from one4all_lc.folder import Expert, read_expert
from one4all_lc.publishing import (
    KEPT,
    changing,
    copied,
    kept_numbers,
    present_version,
    put_in_place,
    store_of,
)


@dataclass(frozen=True)
class Version:
    """One version of an expert.

    Attributes:
        number: Its version.
        folder: Where it lies: an expert folder like any other.
        card: Its card.
        in_place: Whether it is the one that is served.
    """

    number: int
    folder: Path
    card: ExpertCard
    in_place: bool


def versions_of(folder: str | Path) -> tuple[Version, ...]:
    """Return an expert's versions, the newest first: what is in place and what is kept.

    Raises:
        UnfitExpert: A card cannot be read.
    """
    folder = Path(folder).resolve()
    store = store_of(folder)
    found = [
        Version(number, place, ExpertCard.read(place), in_place=False)
        for number in kept_numbers(store)
        for place in [store / str(number) / folder.name]
    ]
    if present := present_version(folder):
        found = [item for item in found if item.number != present]
        found.append(Version(present, folder, ExpertCard.read(folder), in_place=True))
    return tuple(sorted(found, key=lambda item: -item.number))


def rollback(folder: str | Path, version: int | None = None, *, keep: int = KEPT) -> Expert:
    """Serve a kept version again; the one in place is kept in its turn.

    Args:
        folder: The expert's folder.
        version: Which one; None takes the newest that is older than the one in place.
        keep: Old versions that are kept.

    Returns:
        The expert that is in place now.

    Raises:
        InvalidInput: That version is not kept.
        UnfitExpert: The kept folder must not be used any more.
    """
    folder = Path(folder).resolve()
    if not store_of(folder).is_dir():
        _refuse(folder, "no version", [])
    with changing(folder, keep) as store:
        present, numbers = present_version(folder), kept_numbers(store)
        older = [number for number in numbers if not present or number < present]
        chosen = version if version is not None else max(older, default=None)
        if chosen is None or chosen not in numbers or chosen == present:
            asked = "no older version" if version is None else f"no version {version}"
            _refuse(folder, asked, [number for number in numbers if number != present])
        next_ = copied(store / str(chosen) / folder.name, store / ".next")
        put_in_place(next_, folder, store, keep)
    return read_expert(folder)


def weights_kept(expert: Expert) -> Path | None:
    """Return where the weights of an expert lie that was replaced on disk; None if nowhere."""
    store = store_of(expert.folder.resolve())
    for number in reversed(kept_numbers(store)):
        kept = store / str(number) / expert.name
        try:
            if ExpertCard.read(kept).weights_sha256 == expert.card.weights_sha256:
                return kept / expert.weights_file.name
        except UnfitExpert:
            continue
    return None


def _refuse(folder: Path, what: str, numbers: list[int]) -> NoReturn:
    kept = f"kept are {', '.join(map(str, numbers))}" if numbers else "none is kept"
    msg = f"Expert {folder.name!r} has {what} to go back to: beside {folder} {kept}."
    raise InvalidInput(msg)
