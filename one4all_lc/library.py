"""The set of expert folders in use."""

import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from one4all_lc.card import BASE, BaseFacts, ExpertCard
from one4all_lc.errors import InvalidInput, UnfitExpert, UnknownExpert
from one4all_lc.folder import Expert, read_expert
from one4all_lc.head import CHAT

Bases = BaseFacts | Sequence[BaseFacts] | None


class Library:
    """The experts in use, by name.

    Every change swaps one immutable mapping for another, so that a reader on another thread sees
    the library before the change or after it, never between.

    Args:
        folder: A folder of expert folders, `adapters/` for example; None starts empty. Chat experts
            in it are for a decoder, the others for an encoder: where only one is given, those of
            the other kind are left out.
        base: The base that will carry them, or several: each expert is checked against the one that
            it is for. None checks the folders by themselves.

    Raises:
        InvalidInput: There is no such folder.
        UnfitExpert: One of the expert folders must not be used.

    Example:
        library = Library("adapters/")
        library["sql"].card.description
    """

    def __init__(self, folder: str | Path | None = None, base: Bases = None) -> None:
        self._base = base
        self._changing = threading.Lock()
        self._experts: dict[str, Expert] = {}
        for path in expert_folders(folder) if folder is not None else []:
            if self._carries(path):
                self.add(path)

    @classmethod
    def of(cls, experts: Iterable[Expert], base: Bases = None) -> Self:
        """Return a library of experts that were read before."""
        library = cls(base=base)
        library._swap(experts)
        return library

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        """Return itself: copies of a chat model share the experts in use."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as its experts, which are not read anew."""
        return type(self).of, (tuple(self), self._base)

    def __getitem__(self, name: str) -> Expert:
        """Return the expert of that name.

        Raises:
            UnknownExpert: There is none; the message lists those that there are.
        """
        try:
            return self._experts[name]
        except KeyError:
            known = ", ".join([*self._experts, BASE])
            msg = f"There is no expert {name!r}: the experts are {known}."
            raise UnknownExpert(msg) from None

    def __contains__(self, name: object) -> bool:
        return name in self._experts

    def __iter__(self) -> Iterator[Expert]:
        return iter(self._experts.values())

    def __len__(self) -> int:
        return len(self._experts)

    @property
    def names(self) -> tuple[str, ...]:
        """The experts' names, in the order in which they were added."""
        return tuple(self._experts)

    def add(self, folder: str | Path) -> Expert:
        """Take an expert folder into use.

        Raises:
            UnfitExpert: The folder must not be used, or its name is taken.
        """
        expert = read_expert(folder, self._base)
        with self._changing:
            if expert.name in self._experts:
                msg = (
                    f"{folder} cannot be added: an expert {expert.name!r} is in use already; "
                    "replace that one, or give this one another name."
                )
                raise UnfitExpert(msg)
            self._swap([*self._experts.values(), expert])
        return expert

    def replace(self, folder: str | Path) -> Expert:
        """Take a folder into use in the place of the expert of that name, checked first.

        Raises:
            UnfitExpert: The folder must not be used; the old expert stays.
            UnknownExpert: No expert of that name is in use.
        """
        expert = read_expert(folder, self._base)
        with self._changing:
            old = self[expert.name]
            self._swap(expert if item is old else item for item in self._experts.values())
        return expert

    def remove(self, name: str) -> Expert:
        """Take an expert out of use; its folder stays on disk.

        Raises:
            UnknownExpert: No expert of that name is in use.
        """
        with self._changing:
            old = self[name]
            self._swap(item for item in self._experts.values() if item is not old)
        return old

    def _carries(self, path: Path) -> bool:
        """Whether an expert is of a kind that one of the bases is for; what is broken is told."""
        if self._base is None:
            return True
        bases = [self._base] if isinstance(self._base, BaseFacts) else self._base
        decides = ExpertCard.read(path).kind != CHAT
        return any(base.encodes == decides for base in bases)

    def _swap(self, experts: Iterable[Expert]) -> None:
        self._experts = {expert.name: expert for expert in experts}


def expert_folders(folder: str | Path) -> list[Path]:
    """List the expert folders inside `folder`: its visible sub-folders, by name.

    Raises:
        InvalidInput: There is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        msg = f"{folder} is not a folder of experts: there is no such directory."
        raise InvalidInput(msg)
    return sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] not in "._")


def encoder_of(folder: str | Path) -> str | None:
    """Return the base that the encoder experts of a folder name in their cards; None without any.

    Raises:
        InvalidInput: There is no such folder, or they name several.
        UnfitExpert: A card cannot be read.
    """
    cards = [ExpertCard.read(path) for path in expert_folders(folder)]
    bases = sorted({card.base for card in cards if card.kind != CHAT})
    if len(bases) > 1:
        msg = (
            f"The encoder experts of {folder} have several bases ({', '.join(bases)}): keep those "
            "of each in a folder of its own."
        )
        raise InvalidInput(msg)
    return bases[0] if bases else None


def default_adapters() -> Path:
    """Return `adapters/` in the working directory, or else the one beside this package.

    Raises:
        InvalidInput: There is neither.
    """
    places = (Path("adapters"), Path(__file__).parents[1] / "adapters")
    for place in places:
        if place.is_dir() and not (place / "__init__.py").exists():  # PyPI has a package `adapters`
            return place
    msg = f"There are no experts at {' or '.join(map(str, places))}: name their folder."
    raise InvalidInput(msg)
