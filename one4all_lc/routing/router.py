"""The router: a Runnable from a question to a `Route`."""

import dataclasses
import threading
from collections.abc import Iterable
from typing import Any, Self

from langchain_core.embeddings import Embeddings
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import run_in_executor

from one4all_lc.folder import Exemplar, Expert
from one4all_lc.library import Library
from one4all_lc.routing.batches import READ, Batch, Rules
from one4all_lc.routing.choosing import Policy, Several
from one4all_lc.routing.embeddings import default_embeddings
from one4all_lc.routing.exemplars import ExemplarSet, checked_vectors, embed, named
from one4all_lc.routing.fitted import Fitted, check_share, distinct
from one4all_lc.routing.history import Reading, check_reading
from one4all_lc.routing.live import LiveExemplars
from one4all_lc.routing.question import RouterInput, question_of
from one4all_lc.routing.route import Candidate, NearExemplar, Part, Route
from one4all_lc.routing.spaces import Array
from one4all_lc.routing.state import State, digest, prepared, texts_of
from one4all_lc.routing.tuned import TunedEmbeddings, plain_half

__all__ = ["Candidate", "NearExemplar", "Part", "Route", "RouterInput", "SemanticRouter"]


class SemanticRouter(LiveExemplars, Fitted, Runnable[RouterInput, Route]):
    """Route a question to the expert whose exemplars it is near, or to none.

    Takes a string, messages (the last human one is routed), a prompt value, or a mapping with
    `question`, `input` or `messages`. The question is embedded once; of a very long one the
    beginning decides. Changes of the library are noticed at the next call; only exemplars that
    are new to the store are embedded. Threads may share a router.

    Args:
        library: The experts in use.
        embeddings: Any LangChain embedder; None takes multilingual-e5-small.
        client: The Chroma client that keeps the exemplars; None keeps them in the cache folder.
        target_retention: The share of its own exemplars that each expert should take when each
            is held out: nearer to 1 abstains less.
        negatives: Questions that are nobody's, beside those that experts' exemplars have labelled
            `oos`: they show where domains end.
        history: What decides where there are messages: `none`, the last human one alone;
            `last_turn`, it and the whole turn before it; `auto`, it alone unless that abstains,
            then the whole turn, then the expert that had answered.
        decay: What an expert's in-scope probability keeps from one turn to the next, for `auto`.
        several, within, at_least, min_margin, split: When several experts are chosen, and when
            none is; see `one4all_lc.routing.choosing.Policy`.

    Raises:
        InvalidInput: A setting is none of those, or not between 0 and 1.

    Example:
        router = SemanticRouter(library=Library("adapters/"))
        router.invoke("Which phone has the best zoom?").best
    """

    def __init__(
        self,
        *,
        library: Library,
        embeddings: Embeddings | None = None,
        client: Any = None,
        target_retention: float = 0.95,
        negatives: Iterable[str | Exemplar] = (),
        history: Reading = "auto",
        decay: float = 0.8,
        several: Several = "best",
        within: float = 0.2,
        at_least: float = 0.5,
        min_margin: float = 0.0,
        split: bool = False,
    ) -> None:
        check_share("target_retention", target_retention)
        self.rules = Rules(
            check_reading(history, decay),
            decay,
            Policy(several, within, at_least, min_margin, split),
        )
        self.negatives = distinct(negatives)
        self.library = library
        self.embeddings = embeddings or default_embeddings()
        self.target_retention = target_retention
        self._client = client
        self._use(self.embeddings)
        self._refreshing = threading.Lock()
        self._state: State | None = None

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        """Return itself: copies of a chat model share the router."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle without the store: whoever loads it keeps exemplars in the cache folder."""
        return _router_of, (self.library, self.embeddings, self._settings(), self._embedder)

    def _settings(self) -> dict[str, Any]:
        return {
            "target_retention": self.target_retention,
            "negatives": self.negatives,
            "history": self.rules.history,
            "decay": self.rules.decay,
            **dataclasses.asdict(self.rules.policy),
        }

    def invoke(
        self,
        input: RouterInput,  # noqa: A002
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> Route:
        """Route one question.

        Raises:
            InvalidInput: There is no question in the input, or the exemplars cannot be kept.
        """
        return self._call_with_config(self._route_one, input, config, **kwargs)

    async def ainvoke(
        self,
        input: RouterInput,  # noqa: A002
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> Route:
        """Route one question with the embedder's own async method."""
        return await self._acall_with_config(self._aroute_one, input, config, **kwargs)

    def batch(
        self,
        inputs: list[RouterInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[Route]:
        """Route many questions with one call to the embedder."""
        return self._batch_with_config(
            self._route_many, inputs, config, return_exceptions=return_exceptions, **kwargs
        )

    async def abatch(
        self,
        inputs: list[RouterInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[Route]:
        """Route many questions with one call to the embedder's own async method."""
        return await self._abatch_with_config(
            self._aroute_many, inputs, config, return_exceptions=return_exceptions, **kwargs
        )

    def embed_and_route(
        self, question: RouterInput, config: RunnableConfig | None = None
    ) -> tuple[list[float], Route]:
        """Route one question, and return the vector that it was routed by as well.

        So that who searches by that vector does not embed the question again; it is embedded even
        if there is no expert.

        Raises:
            InvalidInput: There is no question in the input, or the exemplars cannot be kept.
        """
        state = self._current()
        vectors = embed(state.embedder, [question_of(question)[:READ]])

        def route(asked: RouterInput) -> Route:
            return self._route_embedded(asked, state, vectors)

        return _plain(state, vectors), self._call_with_config(route, question, config)

    async def aembed_and_route(
        self, question: RouterInput, config: RunnableConfig | None = None
    ) -> tuple[list[float], Route]:
        """As `embed_and_route`, with the embedder's own async method."""
        state = await run_in_executor(None, self._current)
        vectors = await _aembed(state, [question_of(question)[:READ]])

        async def route(asked: RouterInput) -> Route:
            return await run_in_executor(None, self._route_embedded, asked, state, vectors)

        return _plain(state, vectors), await self._acall_with_config(route, question, config)

    @property
    def fingerprint(self) -> str:
        """What the routes depend on: embedder's name, experts, exemplars, settings.

        It is a route's own fingerprint, known without embedding anything: a key for caches.
        """
        return self._fingerprint_of(self._experts())

    @property
    def exemplars(self) -> ExemplarSet:
        """The exemplars that questions are compared with, and their embeddings."""
        return self._current().exemplars

    def refresh(self) -> None:
        """Bring the router up to the library and its files now, not at the next question."""
        self.library.notice(at_once=True)
        self._current()

    async def arefresh(self) -> None:
        """Bring the router up to the library now instead of at the next question."""
        await run_in_executor(None, self.refresh)

    def _route_one(self, input_: RouterInput) -> Route:
        return _only(self._route_many([input_]))

    async def _aroute_one(self, input_: RouterInput) -> Route:
        return _only(await self._aroute_many([input_]))

    def _route_embedded(self, input_: RouterInput, state: State, vectors: Array) -> Route:
        batch = Batch([input_], self.rules)
        more = batch.route(state, vectors)
        return _only(batch.finish(embed(state.embedder, more) if more else None))

    def _route_many(self, inputs: list[RouterInput]) -> list[Exception | Route]:
        batch = Batch(inputs, self.rules)
        if not batch.texts:
            batch.route(None, None)
            return batch.finish(None)
        state = self._current()
        more = batch.route(state, embed(state.embedder, batch.texts) if state.scorer else None)
        return batch.finish(embed(state.embedder, more) if more else None)

    async def _aroute_many(self, inputs: list[RouterInput]) -> list[Exception | Route]:
        batch = Batch(inputs, self.rules)
        if not batch.texts:
            batch.route(None, None)
            return batch.finish(None)
        state = await run_in_executor(None, self._current)
        more = batch.route(state, await _aembed(state, batch.texts) if state.scorer else None)
        return batch.finish(await _aembed(state, more) if more else None)

    def _experts(self) -> tuple[Expert, ...]:
        self.library.notice()
        return tuple(self.library)

    def _current(self) -> State:
        """Return the state for the library as it is now."""
        experts = self._experts()
        state = self._state
        if state is not None and state.of(experts):
            return state
        with self._refreshing:
            if self._state is None or not self._state.of(experts):
                self._state = self._prepare(experts, self._state)
            return self._state

    def _prepare(self, experts: tuple[Expert, ...], before: State | None) -> State:
        exemplars = self._store.sync(experts, self.negatives)
        mark = self._fingerprint_of(experts)
        return prepared(experts, self._store, exemplars, mark, self.target_retention, before)

    def _fingerprint_of(self, experts: tuple[Expert, ...]) -> str:
        facts = [*named(self._embedder), repr(self._settings())]
        return digest([*facts, *texts_of(experts, self.negatives)])


def _router_of(
    library: Library, embeddings: Embeddings, settings: dict[str, Any], embedder: Embeddings
) -> SemanticRouter:
    router = SemanticRouter(library=library, embeddings=embeddings, **settings)
    router._use(embedder)
    return router


def _only(results: list[Exception | Route]) -> Route:
    (result,) = results
    if isinstance(result, Exception):
        raise result
    return result


async def _aembed(state: State, texts: list[str]) -> Array:
    rows = await state.embedder.aembed_documents(texts)
    return checked_vectors(state.embedder, rows, len(texts))


def _plain(state: State, vectors: Array) -> list[float]:
    """Return what a store of documents knows of a question's vector (1, d), or (1, 2d) if tuned."""
    tuned = isinstance(state.embedder, TunedEmbeddings)
    plain: list[float] = (plain_half(vectors) if tuned else vectors)[0].tolist()
    return plain
