"""The router: a Runnable from a question to a `Route`."""

import hashlib
import threading
from dataclasses import dataclass
from typing import Any, Self, cast

import numpy as np
from langchain_core.embeddings import Embeddings
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import run_in_executor

from one4all_lc.errors import InvalidInput
from one4all_lc.folder import Expert
from one4all_lc.library import Library
from one4all_lc.routing.candidates import Candidates
from one4all_lc.routing.embeddings import default_embeddings
from one4all_lc.routing.exemplars import (
    ExemplarSet,
    ExemplarStore,
    checked_vectors,
    embed,
    exemplars_of,
    named,
)
from one4all_lc.routing.live import LiveExemplars
from one4all_lc.routing.question import RouterInput, question_of
from one4all_lc.routing.route import Candidate, NearExemplar, Route
from one4all_lc.routing.scoring import Array, Scorer, Scores

__all__ = ["Candidate", "NearExemplar", "Route", "RouterInput", "SemanticRouter"]

NEAREST = 3
# Embedders read some 512 tokens; more text would only keep the tokenizer busy.
READ = 8_000


@dataclass(frozen=True)
class _State:
    """The experts that were in use at one moment, ready to be scored."""

    experts: tuple[Expert, ...]
    exemplars: ExemplarSet
    scorer: Scorer | None
    fingerprint: str
    candidates: Candidates | None = None

    def score(self, vectors: Array) -> Scores | None:
        """Score questions (q, d) by what is near them, or by everything where that is little."""
        if self.scorer is None:
            return None
        near = self.candidates.of_questions(vectors) if self.candidates else None
        return self.scorer.score(vectors, near)

    def of(self, experts: tuple[Expert, ...]) -> bool:
        """Tell whether these are the experts: a library puts a new object for every change."""
        return len(experts) == len(self.experts) and all(
            new is old for new, old in zip(experts, self.experts, strict=True)
        )


class SemanticRouter(LiveExemplars, Runnable[RouterInput, Route]):
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

    Raises:
        InvalidInput: `target_retention` is not between 0 and 1.

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
    ) -> None:
        if not 0 < target_retention < 1:
            msg = f"target_retention is {target_retention}: give a share between 0 and 1."
            raise InvalidInput(msg)
        self.library = library
        self.embeddings = embeddings or default_embeddings()
        self.target_retention = target_retention
        self._store = ExemplarStore(self.embeddings, client)
        self._refreshing = threading.Lock()
        self._state: _State | None = None

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        """Return itself: copies of a chat model share the router."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle without the store: whoever loads it keeps exemplars in the cache folder."""
        return _router_of, (self.library, self.embeddings, self.target_retention)

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
        vectors = embed(self.embeddings, [question_of(question)[:READ]])

        def route(asked: RouterInput) -> Route:
            return self._route_embedded(asked, vectors)

        return vectors[0].tolist(), self._call_with_config(route, question, config)

    async def aembed_and_route(
        self, question: RouterInput, config: RunnableConfig | None = None
    ) -> tuple[list[float], Route]:
        """As `embed_and_route`, with the embedder's own async method."""
        rows = await self.embeddings.aembed_documents([question_of(question)[:READ]])
        vectors = checked_vectors(self.embeddings, rows, 1)

        async def route(asked: RouterInput) -> Route:
            return await run_in_executor(None, self._route_embedded, asked, vectors)

        return vectors[0].tolist(), await self._acall_with_config(route, question, config)

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

    def _route_embedded(self, input_: RouterInput, vectors: Array) -> Route:
        return _only(_routes([question_of(input_)], self._current(), vectors))

    async def _aroute_one(self, input_: RouterInput) -> Route:
        return _only(await self._aroute_many([input_]))

    def _route_many(self, inputs: list[RouterInput]) -> list[Exception | Route]:
        questions = [_question_or_error(item) for item in inputs]
        texts = [item[:READ] for item in questions if isinstance(item, str)]
        state = self._current() if texts else None
        vectors = embed(self.embeddings, texts) if state and state.scorer else None
        return _routes(questions, state, vectors)

    async def _aroute_many(self, inputs: list[RouterInput]) -> list[Exception | Route]:
        questions = [_question_or_error(item) for item in inputs]
        texts = [item[:READ] for item in questions if isinstance(item, str)]
        state = await run_in_executor(None, self._current) if texts else None
        vectors = None
        if state and state.scorer:
            rows = await self.embeddings.aembed_documents(texts)
            vectors = checked_vectors(self.embeddings, rows, len(texts))
        return _routes(questions, state, vectors)

    def _experts(self) -> tuple[Expert, ...]:
        self.library.notice()
        return tuple(self.library)

    def _current(self) -> _State:
        """Return the state for the library as it is now."""
        experts = self._experts()
        state = self._state
        if state is not None and state.of(experts):
            return state
        with self._refreshing:
            if self._state is None or not self._state.of(experts):
                self._state = self._prepare(experts)
            return self._state

    def _prepare(self, experts: tuple[Expert, ...]) -> _State:
        exemplars = self._store.sync(experts)
        if not experts:
            return _State(experts, exemplars, None, self._fingerprint_of(experts))
        scorer = Scorer.fit(
            exemplars.vectors,
            exemplars.experts,
            [item.language for item in exemplars.exemplars],
            exemplars.background,
            self.target_retention,
        )
        candidates = Candidates.of(self._store, exemplars)
        return _State(experts, exemplars, scorer, self._fingerprint_of(experts), candidates)

    def _fingerprint_of(self, experts: tuple[Expert, ...]) -> str:
        facts = [*named(self.embeddings), repr(self.target_retention)]
        facts += [
            f"{expert.name}\t{item.language}\t{item.text}"
            for expert in experts
            for item in exemplars_of(expert)
        ]
        return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:32]


def _router_of(library: Library, embeddings: Embeddings, target_retention: float) -> SemanticRouter:
    return SemanticRouter(library=library, embeddings=embeddings, target_retention=target_retention)


def _question_or_error(input_: RouterInput) -> str | InvalidInput:
    try:
        return question_of(input_)
    except InvalidInput as error:
        return error


def _only(results: list[Exception | Route]) -> Route:
    (result,) = results
    if isinstance(result, Exception):
        raise result
    return result


def _routes(
    questions: list[str | InvalidInput], state: _State | None, vectors: Array | None
) -> list[Exception | Route]:
    """Turn the questions' vectors into routes, leaving errors in their places."""
    routes: list[Exception | Route] = list(cast("list[Exception | Route]", questions))
    asked = [index for index, item in enumerate(questions) if isinstance(item, str)]
    scorer = state.scorer if state else None
    scores = state.score(vectors) if state and vectors is not None else None
    for row, index in enumerate(asked):
        question = cast("str", questions[index])
        if state is None or scorer is None or scores is None:
            routes[index] = Route(
                question, (), True, "empty", None, None, 0.0, (), state.fingerprint if state else ""
            )
        else:
            routes[index] = _route(question, state, scorer, scores, row)
    return routes


def _route(question: str, state: _State, scorer: Scorer, scores: Scores, row: int) -> Route:
    order = np.argsort(-scores.class_score[row], kind="stable")
    probability = scores.probability[row]
    best = order[0]
    in_scope, threshold = scores.in_scope[row, best], scorer.thresholds[best]
    matched = bool(in_scope >= threshold)
    nearest = np.argsort(-scores.similarity[row], kind="stable")[:NEAREST]
    return Route(
        question=question,
        experts=tuple(
            Candidate(
                scorer.names[i],
                float(scores.class_score[row, i]),
                float(probability[i]),
                float(scores.in_scope[row, i]),
                float(scores.in_scope_probability[row, i]),
                float(scorer.thresholds[i]),
            )
            for i in order
        ),
        abstained=not matched,
        reason="matched" if matched else "below_threshold",
        in_scope=float(in_scope),
        threshold=float(threshold),
        margin=float(probability[best] - probability[order[1]]) if len(order) > 1 else 1.0,
        nearest=tuple(
            NearExemplar(
                state.exemplars.exemplars[i].text,
                state.exemplars.experts[i],
                float(scores.similarity[row, i]),
            )
            for i in nearest
        ),
        fingerprint=state.fingerprint,
        in_scope_probability=float(scores.in_scope_probability[row, best]),
        chosen=(scorer.names[best],) if matched else (),
        routed=question,
    )
