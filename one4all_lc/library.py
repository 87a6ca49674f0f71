"""The set of expert folders in use."""

import contextlib
import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from one4all_lc.card import BASE, BaseFacts, ExpertCard
from one4all_lc.errors import InvalidInput, One4AllError, UnfitExpert, UnknownExpert
from one4all_lc.exemplar_file import Stamp, change_exemplars, reread, stamp_of
from one4all_lc.folder import Exemplar, Expert
from one4all_lc.head import CHAT
from one4all_lc.publishing import STORE, VersionStamp, read_settled, recover, version_stamp

_log = logging.getLogger(__name__)

Bases = BaseFacts | Sequence[BaseFacts] | None


class Library:
    """The experts in use, by name.

    Every change swaps one immutable mapping for another, so that a reader on another thread sees
    the library before the change or after it, never between.

    Exemplars and versions may change on disk while the experts are in use, by another process or
    an editor: `notice` takes them over, and a router calls it before every question.

    Args:
        folder: A folder of expert folders, `adapters/` for example; None starts empty. Chat experts
            in it are for a decoder, the others for an encoder: where only one is given, those of
            the other kind are left out.
        base: The base that will carry them, or several: each expert is checked against the one that
            it is for. None checks the folders by themselves.
        notice_after: Seconds after which `notice` looks at the files again.

    Raises:
        InvalidInput: There is no such folder.
        UnfitExpert: One of the expert folders must not be used.

    Example:
        library = Library("adapters/")
        library["sql"].card.description
    """

    def __init__(
        self,
        folder: str | Path | None = None,
        base: Bases = None,
        *,
        notice_after: float = 1.0,
    ) -> None:
        self.notice_after = notice_after
        self._base = base
        self._changing = threading.Lock()
        self._noticing = threading.Lock()
        self._looked = -float("inf")
        self._stamps: dict[str, Stamp] = {}
        self._experts: dict[str, Expert] = {}
        self._folder = Path(folder) if folder is not None else None
        self._versions: dict[str, VersionStamp] = {}
        for path in expert_folders(folder) if folder is not None else []:
            if self._carries(path):
                self.add(path)

    @classmethod
    def of(cls, experts: Iterable[Expert], base: Bases = None) -> Self:
        """Return a library of experts that were read before."""
        library = cls(base=base)
        library._swap(experts)
        library._stamps = {expert.name: stamp_of(expert.folder) for expert in library}
        library._versions = {expert.name: version_stamp(expert.folder) for expert in library}
        return library

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        """Return itself: copies of a chat model share the experts in use."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as its experts, which are not read anew."""
        state = {name: getattr(self, name) for name in ("_stamps", "_versions", "notice_after")}
        return type(self).of, (tuple(self), self._base), state

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
        # Stamped before it is read: a change meanwhile is noticed later.
        stamp, version = stamp_of(folder), version_stamp(folder)
        expert = read_settled(folder, self._base)
        with self._changing:
            if expert.name in self._experts:
                msg = (
                    f"{folder} cannot be added: an expert {expert.name!r} is in use already; "
                    "replace that one, or give this one another name."
                )
                raise UnfitExpert(msg)
            self._swap([*self._experts.values(), expert])
            self._stamps[expert.name], self._versions[expert.name] = stamp, version
        return expert

    def replace(self, folder: str | Path) -> Expert:
        """Take a folder into use in the place of the expert of that name, checked first.

        Raises:
            UnfitExpert: The folder must not be used; the old expert stays.
            UnknownExpert: No expert of that name is in use.
        """
        stamp, version = stamp_of(folder), version_stamp(folder)
        expert = read_settled(folder, self._base)
        with self._changing:
            self._put(self[expert.name], expert)
            self._stamps[expert.name], self._versions[expert.name] = stamp, version
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

    def refresh(self) -> tuple[str, ...]:
        """Take into use what was published, rolled back, added or removed on disk.

        Costs one look at each folder where nothing changed. A folder that must not be used is
        passed over with a warning, and the expert that was in use stays. Versions alone, not
        experts that come and go, are noticed by `notice` too.

        Returns:
            The names of the experts that changed.

        Raises:
            InvalidInput: The library was not made from a folder, or that is gone.
        """
        if self._folder is None:
            msg = "This library was not made from a folder: add and replace its experts by hand."
            raise InvalidInput(msg)
        there = {path.name: path for path in expert_folders(self._folder)}
        gone = [item for item in self if item.folder.parent == self._folder]
        changed = [self.remove(item.name).name for item in gone if item.name not in there]
        for name in list(changed):
            self._versions.pop(name, None)
        changed += self._notice_versions()
        for name, path in there.items():
            if name not in self and self._versions.get(name) != version_stamp(path):
                self._versions[name] = version_stamp(path)  # an unfit one is not tried again
                changed += self._taken(self.add, path)
        return tuple(changed)

    def _notice_versions(self) -> list[str]:
        """Take the versions into use that lie where other ones were read."""
        changed = []
        for expert in self:
            stamp = version_stamp(expert.folder)
            if stamp and stamp != self._versions.get(expert.name):
                self._versions[expert.name] = stamp
                changed += self._taken(self.replace, expert.folder)
        return changed

    @staticmethod
    def _taken(take: Callable[[Path], Expert], folder: Path) -> list[str]:
        try:
            return [take(folder).name]
        except (UnfitExpert, UnknownExpert) as error:
            _log.warning("%s was changed on disk and is not taken into use: %s", folder, error)
            return []

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

    def add_exemplars(self, name: str, exemplars: Iterable[Exemplar]) -> tuple[Exemplar, ...]:
        """Add exemplars to an expert, in use and in its folder's `exemplars.jsonl`.

        A text that the expert has already is replaced, so that its language or label can be
        mended. An expert that has no folder keeps them in memory.

        Returns:
            Those that are new or differ from what the expert had.

        Raises:
            UnknownExpert: No expert of that name is in use.
            InvalidInput: A text is blank, or the folder cannot be written.
        """
        given = {item.text: item for item in exemplars}

        def added(old: tuple[Exemplar, ...]) -> tuple[Exemplar, ...]:
            known = {item.text: given.get(item.text, item) for item in old}
            return tuple((known | given).values())

        before, after = self._change_exemplars(name, added)
        return tuple(item for item in after if item not in before)

    def remove_exemplars(self, name: str, texts: Iterable[str]) -> tuple[Exemplar, ...]:
        """Take exemplars from an expert, in use and in its folder's `exemplars.jsonl`.

        Returns:
            The exemplars that are gone.

        Raises:
            UnknownExpert: No expert of that name is in use.
            InvalidInput: The expert has no such exemplar, or the folder cannot be written.
        """
        gone = set(texts)

        def kept(old: tuple[Exemplar, ...]) -> tuple[Exemplar, ...]:
            missing = sorted(gone - {item.text for item in old})
            if missing:
                msg = f"{name!r} has no exemplar {missing[0]!r}: give its text as it stands there."
                raise InvalidInput(msg)
            return tuple(item for item in old if item.text not in gone)

        before, after = self._change_exemplars(name, kept)
        return tuple(item for item in before if item not in after)

    def notice(self, *, at_once: bool = False) -> None:
        """Take over exemplars, and versions, that were changed on disk since they were read.

        Three `stat` for each expert, and no more often than every `notice_after` seconds. A file
        that is gone or cannot be read changes nothing.

        Args:
            at_once: Look now, whenever it was looked before.
        """
        now = time.monotonic()
        if not at_once and now - self._looked < self.notice_after:
            return
        if not self._noticing.acquire(blocking=at_once):
            return  # another thread is looking
        try:
            self._looked = now
            self._notice_versions()
            for expert in self:
                stamp = stamp_of(expert.folder)
                if stamp is not None and stamp != self._stamps.get(expert.name):
                    self._reread(expert.name, stamp)
        finally:
            self._noticing.release()

    def _reread(self, name: str, stamp: Stamp) -> None:
        with self._changing:
            old = self._experts.get(name)
            if old is None:
                return
            self._stamps[name] = stamp  # what cannot be read is not tried again until it changes
            exemplars = reread(old.folder)
            if exemplars is not None and exemplars != old.exemplars:
                self._put(old, dataclasses.replace(old, exemplars=exemplars))

    def _change_exemplars(
        self, name: str, change: Callable[[tuple[Exemplar, ...]], tuple[Exemplar, ...]]
    ) -> tuple[tuple[Exemplar, ...], tuple[Exemplar, ...]]:
        """Return an expert's exemplars before and after a change, which is in use from now on."""
        with self._changing:
            old = self[name]
            before, after = change_exemplars(old.folder, change, old.exemplars)
            self._put(old, dataclasses.replace(old, exemplars=after))
        return before, after

    def _put(self, old: Expert, new: Expert) -> None:
        self._swap(new if item is old else item for item in self._experts.values())

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
    for store in (folder / STORE).iterdir() if (folder / STORE).is_dir() else ():
        recover(folder / store.name)
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
