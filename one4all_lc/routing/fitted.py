"""What a router has learnt: set anew, written to a file, taken up again."""

import shutil
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any, Self

from langchain_core.embeddings import Embeddings
from langchain_core.runnables.config import run_in_executor

from one4all_lc.errors import InvalidInput
from one4all_lc.folder import OOS, Exemplar, Expert
from one4all_lc.routing.candidates import Candidates
from one4all_lc.routing.exemplars import ExemplarStore, named
from one4all_lc.routing.keeping import Facts, read_fit, write_fit
from one4all_lc.routing.scoring import Scorer
from one4all_lc.routing.state import State, digest, texts_of
from one4all_lc.routing.tuned import TunedEmbeddings, TunedScorer, tune
from one4all_lc.routing.tuning import TuningRecipe

EMBEDDER = "embedder"
"""Folder of a saved fit that has the embedder's adapter."""


class Fitted(ABC):
    """The part of a router that fits, saves and loads."""

    embeddings: Embeddings
    target_retention: float
    negatives: tuple[Exemplar, ...]
    _client: Any
    _embedder: Embeddings
    _store: ExemplarStore
    _refreshing: threading.Lock
    _state: State | None

    def fit(
        self,
        *,
        target_retention: float | None = None,
        negatives: Iterable[str | Exemplar] | None = None,
        finetune: bool | None = None,
        recipe: TuningRecipe | None = None,
    ) -> Self:
        """Choose scores and set thresholds anew, on the exemplars as they are now.

        It happens by itself at the first question, and when exemplars have changed much; few
        changes among many exemplars only set thresholds and solve for the probes.

        Args:
            target_retention: In place of the one that the router was made with.
            negatives: In place of those that the router was made with.
            finetune: Whether to train an adapter for the embedder on the exemplars, which takes
                minutes and shows its progress on standard error; a question is embedded twice from
                then on, unless the adapter was seen not to help. False goes back to the embedder
                as it came; None leaves it as it is.
            recipe: How it is trained; None takes the defaults.

        Returns:
            The router itself.

        Raises:
            InvalidInput: `target_retention` is not between 0 and 1, exemplars cannot be kept, or
                the embedder cannot be tuned.
        """
        if target_retention is not None:
            check_share("target_retention", target_retention)
        with self._refreshing:
            if target_retention is not None:
                self.target_retention = target_retention
            if negatives is not None:
                self.negatives = distinct(negatives)
            if finetune is not None:
                self._use(self._tuned(recipe or TuningRecipe()) if finetune else self.embeddings)
            self._state = self._prepare(self._experts(), None)
        return self

    async def afit(
        self,
        *,
        target_retention: float | None = None,
        negatives: Iterable[str | Exemplar] | None = None,
        finetune: bool | None = None,
        recipe: TuningRecipe | None = None,
    ) -> Self:
        """As `fit`, on a thread of its own."""
        fit = partial(
            self.fit,
            target_retention=target_retention,
            negatives=negatives,
            finetune=finetune,
            recipe=recipe,
        )
        return await run_in_executor(None, fit)

    def _use(self, embeddings: Embeddings) -> None:
        """Route by another embedder: its exemplars have a collection of their own."""
        self._embedder = embeddings
        self._store = ExemplarStore(embeddings, self._client)

    def _tuned(self, recipe: TuningRecipe) -> Embeddings:
        from one4all_lc.training.progress import ProgressBar

        plain = ExemplarStore(self.embeddings, self._client).sync(self._experts(), self.negatives)
        with ProgressBar() as bar:
            return tune(self.embeddings, plain, bar, recipe)

    def save(self, folder: str | Path) -> Path:
        """Write what was fitted into a folder, with what it depends on; return the file.

        Raises:
            InvalidInput: There are no experts, or the folder cannot be written.
        """
        state = self._current()
        if state.scorer is None:
            msg = "There is nothing to save: no expert is in use."
            raise InvalidInput(msg)
        facts, beside = self._facts(state.experts), Path(folder) / EMBEDDER
        shutil.rmtree(beside, ignore_errors=True)  # of an earlier fit
        if not isinstance(state.scorer, TunedScorer):
            return write_fit(folder, state.scorer, facts)
        file = write_fit(folder, state.scorer.plain, facts)
        write_fit(beside, state.scorer.tuned, facts)
        assert isinstance(self._embedder, TunedEmbeddings)
        self._embedder.write(beside)
        return file

    async def asave(self, folder: str | Path) -> Path:
        """As `save`, without blocking the event loop."""
        return await run_in_executor(None, self.save, folder)

    def load(self, folder: str | Path, *, refit: bool = True) -> str | None:
        """Take up what was fitted before instead of fitting.

        Args:
            folder: Where `save` wrote.
            refit: If embedder, exemplars or target retention are others now: fit anew, or refuse.

        Returns:
            Why it was fitted anew; None if it was not.

        Raises:
            InvalidInput: There is no saved fit, or it does not suit and `refit` is off.
        """
        scorer, facts = self._read(Path(folder))
        experts = self._experts()
        reason = facts.difference(self._facts(experts))
        if reason and not refit:
            msg = f"The router saved in {folder} cannot be used: {reason}. Fit anew."
            raise InvalidInput(msg)
        if reason or not experts:
            self.fit()
            return reason
        with self._refreshing:
            exemplars = self._store.sync(experts, self.negatives)
            mark, count = self._fingerprint_of(experts), len(exemplars.exemplars)
            near = None
            if isinstance(scorer, Scorer):
                near = Candidates.of(self._store, exemplars, scorer)
            embedder = self._embedder
            self._state = State(experts, exemplars, scorer, mark, embedder, count, near)
        return None

    def _read(self, folder: Path) -> tuple[Scorer | TunedScorer, Facts]:
        """Read a fit, and take its embedder into use if it has an adapter for this one."""
        scorer, facts = read_fit(folder)
        tuned = TunedEmbeddings.read(folder / EMBEDDER)
        if tuned is None or named(self.embeddings)[1] != tuned.base:
            self._use(self.embeddings)
            return scorer, facts
        self._use(tuned)
        return TunedScorer(scorer, read_fit(folder / EMBEDDER)[0]), facts

    def _facts(self, experts: tuple[Expert, ...]) -> Facts:
        texts = digest(texts_of(experts, self.negatives))
        return Facts(self._store.fingerprint, texts, self.target_retention)

    @abstractmethod
    def _experts(self) -> tuple[Expert, ...]: ...

    @abstractmethod
    def _current(self) -> State: ...

    @abstractmethod
    def _prepare(self, experts: tuple[Expert, ...], before: State | None) -> State: ...

    @abstractmethod
    def _fingerprint_of(self, experts: tuple[Expert, ...]) -> str: ...


def check_share(name: str, value: float) -> None:
    """Check that a setting is a share.

    Raises:
        InvalidInput: It is not between 0 and 1.
    """
    if not 0 < value < 1:
        msg = f"{name} is {value}: give a share between 0 and 1."
        raise InvalidInput(msg)


def distinct(given: Iterable[str | Exemplar]) -> tuple[Exemplar, ...]:
    """Return negatives, each text once."""
    items = (Exemplar(item, label=OOS) if isinstance(item, str) else item for item in given)
    return tuple({item.text: item for item in items}.values())
