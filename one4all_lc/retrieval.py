"""Documents of the domain that a question belongs to, found by the embedding that routed it."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

from langchain_core.callbacks import (
    AsyncCallbackManagerForRetrieverRun,
    CallbackManagerForRetrieverRun,
)
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableConfig
from langchain_core.vectorstores import InMemoryVectorStore, VectorStore
from pydantic import ConfigDict, Field, SkipValidation, model_validator

from one4all_lc.errors import InvalidInput, UnknownExpert
from one4all_lc.routing.question import RouterInput, question_of
from one4all_lc.routing.route import Route
from one4all_lc.routing.router import SemanticRouter
from one4all_lc.searching import Place, Search, merged


@dataclass(frozen=True)
class Retrieved:
    """What was found for one question.

    Attributes:
        route: Whose question it is, and why.
        documents: The documents, nearest first.
    """

    route: Route
    documents: list[Document]


class DomainRetriever(BaseRetriever):
    """Find documents in the domain that a question belongs to.

    The router's embedder embeds the question once: that vector decides the route and is what the
    documents are searched by. Stores that cannot be searched by a vector are searched by the text,
    which they embed themselves.

    The documents have to be embedded by what the question's vector can be compared with: the
    router's own embedder, or, for the default one, `PassageEmbeddings` of
    `one4all_lc.routing.embeddings`: E5 wants "passage: " before what a question is to find. Only
    stores of one metric and one embedder can be searched together.

    A document's metadata gains `domain`: the expert's name. An expert without a store has no
    documents, and its questions find none.

    Where the router abstains, `on_abstain` decides. For `all`, one store is searched as a whole.
    The finds of several are merged by score where every store gives scores by vector; whether
    more or less is nearer is seen from the order of each store's finds. Otherwise each store's
    first document comes before any store's second, the likelier domain's first.

    Args:
        router: Decides the domain: an expert of its library.
        stores: A store for each expert by its name, or one store for all domains.
        domain_key: The metadata key with the document's domain, in one store for all.
        domain_filter: Makes what one store for all takes as `filter` from an expert's name; None
            makes `{domain_key: name}`, and what does the same for an `InMemoryVectorStore`.
        k: How many documents to find at most; a call may say otherwise: `invoke(question, k=2)`.
        on_abstain: Where to search if the question is nobody's: `all` domains or `none`.
        search_kwargs: What else each search takes.

    Raises:
        UnknownExpert: A store's name is no expert's.
        ValidationError: Another argument cannot be used.

    Example:
        reviews = InMemoryVectorStore.from_documents(documents, PassageEmbeddings())
        retriever = DomainRetriever(router=one.router, stores={"mobile": reviews}, k=3)
        retriever.retrieve("Which phone has the best battery?").route.explain()
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    router: SkipValidation[SemanticRouter] = Field(exclude=True, repr=False)
    stores: SkipValidation[VectorStore | Mapping[str, VectorStore]] = Field(
        exclude=True, repr=False
    )
    domain_key: str = "domain"
    domain_filter: Callable[[str], Any] | None = None
    k: int = Field(4, ge=1)
    on_abstain: Literal["all", "none"] = "all"
    search_kwargs: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _stores_are_sound(self) -> Self:
        """Refuse at once what would fail in every call, or find nothing in silence."""
        reserved = {"k"}
        if isinstance(self.stores, VectorStore):
            reserved.add("filter")
        elif not isinstance(self.stores, Mapping) or not self.stores:
            msg = (
                f"stores is {self.stores!r}: give a vector store, or a mapping from experts' names "
                "to vector stores that holds one at least."
            )
            raise InvalidInput(msg)
        else:
            for name, store in self.stores.items():
                self._check_store(name, store)
        if taken := sorted(reserved & self.search_kwargs.keys()):
            msg = (
                f"search_kwargs holds {' and '.join(taken)}, which the retriever sets: use the "
                "arguments k and domain_filter."
            )
            raise InvalidInput(msg)
        return self

    def retrieve(
        self, question: RouterInput, config: RunnableConfig | None = None, *, k: int | None = None
    ) -> Retrieved:
        """Find documents, and say whose question it is; `invoke` returns the documents alone.

        Args:
            question: Text, or what else the router takes.
            config: Callbacks, tags and the like for the retriever's run.
            k: How many documents to find at most; None takes the retriever's own `k`.

        Raises:
            InvalidInput: There is no question in the input, or `k` is less than 1.
        """
        # A retriever's run is only started by `invoke`, which has no place for a route.
        found: list[Retrieved] = []
        self.invoke(question_of(question), config, k=k, found=found)
        return found[0]

    async def aretrieve(
        self, question: RouterInput, config: RunnableConfig | None = None, *, k: int | None = None
    ) -> Retrieved:
        """As `retrieve`, with the async methods of embedder and stores."""
        found: list[Retrieved] = []
        await self.ainvoke(question_of(question), config, k=k, found=found)
        return found[0]

    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun,
        k: int | None = None,
        found: list[Retrieved] | None = None,
    ) -> list[Document]:
        k = self._checked(k)
        config = RunnableConfig(callbacks=run_manager.get_child())
        vector, route = self.router.embed_and_route(query, config)
        search = Search(vector, route.question, k)
        places = self._places(route)
        hits = [search.run(place, scored=len(places) > 1) for place in places]
        result = Retrieved(route, merged(hits, k))
        if found is not None:
            found.append(result)
        return result.documents

    async def _aget_relevant_documents(
        self,
        query: str,
        *,
        run_manager: AsyncCallbackManagerForRetrieverRun,
        k: int | None = None,
        found: list[Retrieved] | None = None,
    ) -> list[Document]:
        k = self._checked(k)
        config = RunnableConfig(callbacks=run_manager.get_child())
        vector, route = await self.router.aembed_and_route(query, config)
        search = Search(vector, route.question, k)
        places = self._places(route)
        searches = [search.arun(place, scored=len(places) > 1) for place in places]
        result = Retrieved(route, merged(await asyncio.gather(*searches), k))
        if found is not None:
            found.append(result)
        return result.documents

    def _check_store(self, name: str, store: object) -> None:
        if name not in self.router.library:
            known = ", ".join(self.router.library.names) or "none"
            msg = f"stores names {name!r}, but there is no such expert: the experts are {known}."
            raise UnknownExpert(msg)
        if not isinstance(store, VectorStore):
            msg = f"The store of {name!r} is a {type(store).__name__}: give a vector store."
            raise InvalidInput(msg)

    def _checked(self, k: int | None) -> int:
        k = self.k if k is None else k
        if k < 1:
            msg = f"k is {k}: ask for 1 document at least."
            raise InvalidInput(msg)
        return k

    def _filter(self, name: str) -> Any:
        """Make what one store for all domains takes as `filter`."""
        if self.domain_filter is not None:
            return self.domain_filter(name)
        if isinstance(self.stores, InMemoryVectorStore):  # it takes functions alone
            return lambda document: document.metadata.get(self.domain_key) == name
        return {self.domain_key: name}

    def _places(self, route: Route) -> list[Place]:
        """List where to search, the likelier domain first."""
        if route.best is None and self.on_abstain == "none":
            return []
        if isinstance(self.stores, VectorStore):
            settings = dict(self.search_kwargs)
            if route.best is not None:
                settings["filter"] = self._filter(route.best)
            return [Place(self.stores, settings, route.best, self.domain_key)]
        likely = [candidate.name for candidate in route.experts]
        names = (
            [route.best] if route.best is not None else [*dict.fromkeys([*likely, *self.stores])]
        )
        return [
            Place(self.stores[name], self.search_kwargs, name, self.domain_key)
            for name in names
            if name in self.stores
        ]
