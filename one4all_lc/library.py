"""The set of expert folders in use."""

import contextlib
import logging
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Self

from one4all_lc.card import BASE, CARD_FILE, BaseFacts
from one4all_lc.errors import InvalidInput, One4AllError, UnfitExpert, UnknownExpert
from one4all_lc.folder import Expert, read_expert
from one4all_lc.publishing import STORE, recover

_log = logging.getLogger(__name__)


class Library:
    """The experts in use, by name.

    Every change swaps one immutable mapping for another, so that a reader on another thread sees
    the library before the change or after it, never between.

    Args:
        folder: A folder of expert folders, `adapters/` for example; None starts empty.
        base: The base that will carry them: each expert is checked against it. None checks the
            folders by themselves.

    Raises:
        InvalidInput: There is no such folder.
        UnfitExpert: One of the expert folders must not be used.

    Example:
        library = Library("adapters/")
        library["sql"].card.description
    """

    def __init__(self, folder: str | Path | None = None, base: BaseFacts | None = None) -> None:
        self._base = base
        self._changing = threading.Lock()
        self._experts: dict[str, Expert] = {}
        self._folder = Path(folder) if folder is not None else None
        self._seen: dict[Path, _Stamp] = {}
        for path in expert_folders(folder) if folder is not None else []:
            self._seen[path] = _stamp(path)
            self.add(path)

    @classmethod
    def of(cls, experts: Iterable[Expert], base: BaseFacts | None = None) -> Self:
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
        expert = _read(folder, self._base)
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
        expert = _read(folder, self._base)
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

    def refresh(self) -> tuple[str, ...]:
        """Take into use what was published, rolled back or removed on disk since the last look.

        Costs one look at each folder where nothing changed. A folder that must not be used is
        passed over with a warning, and the expert that was in use stays.

        Returns:
            The names of the experts that changed.

        Raises:
            InvalidInput: The library was not made from a folder, or that is gone.
        """
        if self._folder is None:
            msg = "This library was not made from a folder: add and replace its experts by hand."
            raise InvalidInput(msg)
        now = {path: _stamp(path) for path in expert_folders(self._folder)}
        changed = [path.name for path in self._seen.keys() - now.keys() if path.name in self]
        for name in changed:
            self.remove(name)
        for path in [path for path, stamp in now.items() if self._seen.get(path) != stamp]:
            try:
                (self.replace if path.name in self else self.add)(path)
            except UnfitExpert as error:
                _log.warning("%s was changed on disk and is not taken into use: %s", path, error)
            else:
                changed.append(path.name)
        self._seen = now
        return tuple(changed)

    @contextlib.contextmanager
    def watching(self, seconds: float = 1.0) -> Iterator[Self]:
        """Refresh again and again on a thread of its own, for as long as the context lasts.

        Args:
            seconds: From one look to the next.

        Example:
            with one.library.watching():
                serve(one)  # what `one4all publish` puts in place answers the next request
        """
        self.refresh()
        done = threading.Event()

        def watch() -> None:
            while not done.wait(seconds):
                try:
                    self.refresh()
                except One4AllError as error:
                    _log.warning("the experts cannot be looked at: %s", error)

        thread = threading.Thread(target=watch, name="one4all-library", daemon=True)
        thread.start()
        try:
            yield self
        finally:
            done.set()
            thread.join()

    def _swap(self, experts: Iterable[Expert]) -> None:
        self._experts = {expert.name: expert for expert in experts}


_Stamp = tuple[int, ...]


def _stamp(folder: Path) -> _Stamp:
    """Return what differs once another version lies in a folder, or its card was written anew."""
    stamp: list[int] = []
    for path in (folder, folder / CARD_FILE):
        try:
            found = path.stat()
        except OSError:
            continue
        stamp += [found.st_ino, found.st_mtime_ns, found.st_size]
    return tuple(stamp)


def _read(folder: str | Path, base: BaseFacts | None) -> Expert:
    """Read an expert folder; once more if another took its place meanwhile."""
    while True:
        before = _stamp(Path(folder))
        try:
            return read_expert(folder, base)
        except UnfitExpert:
            if _stamp(Path(folder)) == before:
                raise


def expert_folders(folder: str | Path) -> list[Path]:
    """List the expert folders inside `folder`: its visible sub-folders, by name.

    Raises:
        InvalidInput: There is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        msg = f"{folder} is not a folder of experts: there is no such directory."
        raise InvalidInput(msg)
    for store in (folder / STORE).iterdir() if (folder / STORE).is_dir() else ():
        recover(folder / store.name)
    return sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] not in "._")


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
