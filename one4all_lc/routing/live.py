"""Exemplars added and removed while a router is in use."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import TYPE_CHECKING

from langchain_core.runnables.config import run_in_executor

from one4all_lc.folder import Exemplar
from one4all_lc.library import Library

if TYPE_CHECKING:
    from one4all_lc.routing.exemplars import ExemplarStore


class LiveExemplars(ABC):
    """The part of a router that changes its experts' exemplars.

    A change is written to the expert's folder, so that it outlives the process, and other processes
    that use the folder notice it before their next question, within the library's `notice_after`
    seconds. Nothing is restarted, and only what is new is embedded.
    """

    library: Library
    _store: "ExemplarStore"

    def add_exemplars(
        self, expert: str, texts: Iterable[str | Exemplar], language: str | None = None
    ) -> tuple[Exemplar, ...]:
        """Add exemplars to an expert, and route by them from now on.

        Args:
            expert: The expert's name.
            texts: Questions of its domain, or `Exemplar`s, which may be labelled `oos`.
            language: The texts' language, ISO 639-1; None takes the first of the expert's card.

        Returns:
            The exemplars that are new.

        Raises:
            UnknownExpert: No expert of that name is in use.
            InvalidInput: A text is blank, or the expert's folder cannot be written.
        """
        spoken = language or next(iter(self.library[expert].card.languages), "en")
        given = [Exemplar(item, spoken) if isinstance(item, str) else item for item in texts]
        added = self.library.add_exemplars(expert, given)
        self.refresh()
        return added

    async def aadd_exemplars(
        self, expert: str, texts: Iterable[str | Exemplar], language: str | None = None
    ) -> tuple[Exemplar, ...]:
        """As `add_exemplars`, without blocking the event loop."""
        return await run_in_executor(None, self.add_exemplars, expert, texts, language)

    def remove_exemplars(self, expert: str, texts: Iterable[str]) -> tuple[Exemplar, ...]:
        """Take exemplars from an expert, from its folder, and from the store of embeddings.

        An expert without exemplars is known by its card's description.

        Args:
            expert: The expert's name.
            texts: The exemplars' texts as they stand in its file.

        Returns:
            The exemplars that are gone.

        Raises:
            UnknownExpert: No expert of that name is in use.
            InvalidInput: The expert has no such exemplar, or its folder cannot be written.
        """
        removed = self.library.remove_exemplars(expert, texts)
        self.refresh()
        used = {item.text for other in self.library for item in other.exemplars}
        self._store.forget(item.text for item in removed if item.text not in used)
        return removed

    async def aremove_exemplars(self, expert: str, texts: Iterable[str]) -> tuple[Exemplar, ...]:
        """As `remove_exemplars`, without blocking the event loop."""
        return await run_in_executor(None, self.remove_exemplars, expert, texts)

    @abstractmethod
    def refresh(self) -> None:
        """Bring the router up to the library now, not at the next question."""
