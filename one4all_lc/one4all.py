"""Router and experts as one chat model."""

import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, get_args

from langchain_core.embeddings import Embeddings
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda
from langchain_core.runnables.graph import Graph
from pydantic import Field, PrivateAttr, SkipValidation, model_validator

from one4all_lc.base.loading import DEFAULT_BASE, Quantization, SharedBase
from one4all_lc.card import BASE
from one4all_lc.engine.encoders import EncoderEngine
from one4all_lc.engine.engine import Engine
from one4all_lc.errors import Abstained, InvalidInput
from one4all_lc.experts.answerable import answerable
from one4all_lc.experts.chat import ChatExpert
from one4all_lc.experts.choice import Choice
from one4all_lc.head import CHAT
from one4all_lc.library import Library, default_adapters, encoder_of
from one4all_lc.routing.question import RouterInput
from one4all_lc.routing.route import Candidate, Route
from one4all_lc.routing.router import SemanticRouter

if TYPE_CHECKING:
    import torch

AUTO = "auto"
"""The model that lets the router choose."""


Mode = Literal["best", "blend", "all"]

Fallback = Literal["base", "ask", "error"]


class One4All(ChatExpert):
    """Many experts as one chat model: each question goes to the expert of its domain.

    `response_metadata["route"]` says what was decided and why; `model="sql"` in a call asks one
    expert, whatever the router thinks, and `model="base"` none.

    Args:
        engine: The engine of the base.
        router: Chooses among the experts of its library.
        library: The experts that `model` may name; the router's by default.
        mode: `best`: the likeliest expert answers. `blend`: the adapters of the likeliest few are
            mixed by their probabilities. `all`: each of these answers, in one batch, and the
            synthesizer writes one answer of theirs. A call may name another: `mode="all"`. An
            encoder expert that is the likeliest answers alone in every mode.
        most: How many experts a blend has, or are asked, at most.
        at_least: The least probability of those beside the likeliest.
        fallback: Who answers where the router abstains: `base`, the base without an adapter;
            `ask`, a question back that names the nearest domains; `error`, nobody: Abstained is
            raised; or any Runnable, a larger model for example.
        synthesizer: Writes one answer in mode `all`; None lets the base.

    Example:
        one = One4All.load()
        one.invoke("Which phone has the best battery?").response_metadata["expert"]
    """

    _keywords: ClassVar[tuple[str, ...]] = ("model", "timeout", "thinking", "mode")

    router: SkipValidation[SemanticRouter] = Field(exclude=True, repr=False)
    model: str = AUTO
    mode: Mode = "best"
    most: int = Field(default=3, ge=1)
    at_least: float = Field(default=0.1, ge=0, le=1)
    fallback: SkipValidation[Fallback | Runnable[Any, Any]] = Field(default="base", exclude=True)
    synthesizer: SkipValidation[Runnable[Any, Any]] | None = Field(default=None, exclude=True)

    _mark: str = PrivateAttr(default_factory=lambda: uuid.uuid4().hex)

    @model_validator(mode="after")
    def _fallback_is_known(self) -> Self:
        if not isinstance(self.fallback, Runnable) and self.fallback not in get_args(Fallback):
            msg = f"fallback is {self.fallback!r}: use 'base', 'ask', 'error' or a Runnable."
            raise InvalidInput(msg)
        return self

    @model_validator(mode="before")
    @classmethod
    def _router_brings_its_library(cls, values: dict[str, Any]) -> dict[str, Any]:
        """The experts are those that the router chooses among, unless others are given."""
        router = values.get("router")
        return {"library": router.library, **values} if router is not None else values

    @classmethod
    def load(
        cls,
        adapters: str | Path | None = None,
        *,
        base: str = DEFAULT_BASE,
        encoder: str | None = None,
        quantization: Quantization = "auto",
        device: str = "auto",
        dtype: "torch.dtype | None" = None,
        embeddings: Embeddings | None = None,
        **settings: Any,
    ) -> Self:
        """Load the base, the experts of a folder and the router.

        Args:
            adapters: The folder of expert folders; None takes `adapters/` here, or else the one
                beside this package.
            base: Id or path of the base of chat experts.
            encoder: Id or path of the base of encoder experts; None takes the one that their cards
                name. It is loaded only if the folder has such experts.
            quantization: As in `SharedBase.load`.
            device: As in `SharedBase.load`.
            dtype: As in `SharedBase.load`.
            embeddings: The router's embedder; None takes multilingual-e5-small.
            **settings: Fields of the model: `max_tokens`, `temperature` and the like.

        Raises:
            InvalidInput: There is no folder of experts.
            ValidationError: A setting cannot be used.
            UnfitExpert: One of the experts must not be used.
            ModelNotFound: No place holds the base or the embedder.
        """
        folder = adapters or default_adapters()
        shared = SharedBase.load(base, quantization=quantization, device=device, dtype=dtype)
        other = encoder or encoder_of(folder)
        encoding = SharedBase.load(other, device=device, dtype=dtype) if other else None
        library = Library(folder, [shared.facts, *([encoding.facts] if encoding else [])])
        router = SemanticRouter(library=library, embeddings=embeddings)
        return cls(
            engine=Engine.of(shared),
            encoder=EncoderEngine.of(encoding) if encoding else None,
            router=router,
            **settings,
        )

    def get_graph(self, config: RunnableConfig | None = None) -> Graph:
        """Return the way of a question: the router, every expert by its name, who else answers."""
        graph = Graph()
        start = graph.add_node(self.get_input_schema(config), id="question")
        router = graph.add_node(self.router, id="router")
        end = graph.add_node(self.get_output_schema(config), id="answer")
        graph.add_edge(start, router)
        others = BASE if self.fallback == "base" else "fallback"
        for name in (*self.library.names, others):
            node = graph.add_node(self, id=name)
            graph.add_edge(router, node, conditional=True)
            graph.add_edge(node, end)
        return graph

    @property
    def _llm_type(self) -> str:
        return "one4all"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in ("mode", "most", "at_least")}
        others: dict[str, Any] = {"fallback": self.fallback, "synthesizer": self.synthesizer}
        return {
            **super()._identifying_params,
            **own,
            # Two Runnables may look alike: those of another model are others.
            **{
                name: (repr(item), id(item), self._mark) if isinstance(item, Runnable) else item
                for name, item in others.items()
            },
            "router": self.router.fingerprint,
        }

    def _check_model(self, model: str) -> None:
        if model != AUTO:
            super()._check_model(model)

    def _choose(self, messages: list[BaseMessage], settings: Mapping[str, Any]) -> Choice:
        if settings.get("model", self.model) != AUTO:
            return super()._choose(messages, settings)
        return self._chosen(self.router.invoke(messages), settings)

    async def _achoose(self, messages: list[BaseMessage], settings: Mapping[str, Any]) -> Choice:
        if settings.get("model", self.model) != AUTO:
            return await super()._achoose(messages, settings)
        route = await self.router.ainvoke(messages)
        return self._chosen(route, settings)

    def _chosen(self, route: Route, settings: Mapping[str, Any]) -> Choice:
        mode = settings.get("mode", self.mode)
        if mode not in get_args(Mode):
            msg = f"mode is {mode!r}: use 'best', 'blend' or 'all'."
            raise InvalidInput(msg)
        route = answerable(route, self.library, settings)
        told = {"route": route.as_dict(), "mode": mode}
        if not route.best:
            return self._abstained(route, told)
        best = self.library[route.best]
        if mode == "best" or best.card.kind != CHAT:
            return self._by(best, told, settings)
        likely = self._likely(route)
        if mode == "all" and len(likely) > 1:
            experts = tuple(self.library[item.name] for item in likely)
            return Choice(consulted=experts, other=self.synthesizer, metadata=told)
        total = sum(item.probability for item in likely)
        mixed = tuple((self.library[item.name], item.probability / total) for item in likely)
        return Choice(mixed, metadata=told)

    def route(self, asked: RouterInput) -> Route:
        """Say who would answer, and why: the router's route, unless that expert cannot."""
        return answerable(self.router.invoke(asked), self.library)

    async def aroute(self, asked: RouterInput) -> Route:
        """As `route`."""
        return answerable(await self.router.ainvoke(asked), self.library)

    def _likely(self, route: Route) -> list[Candidate]:
        """Return the likeliest few experts that write, the best first."""
        return [
            item
            for item in route.experts
            if item.name in self.library
            and self.library[item.name].card.kind == CHAT
            and (item.name == route.best or item.probability >= self.at_least)
        ][: self.most]

    def _abstained(self, route: Route, told: dict[str, Any]) -> Choice:
        """Return who answers what is nobody's."""
        if self.fallback == "base":
            return Choice(metadata=told)
        if isinstance(self.fallback, Runnable):
            return Choice(other=self.fallback, metadata={**told, "expert": "fallback"})
        nearest = [self.library[item.name] for item in route.experts if item.name in self.library]
        domains = "; ".join(expert.card.description.rstrip(".") for expert in nearest[:3])
        if self.fallback == "error":
            near = f"; the nearest: {domains}" if domains else ""
            msg = f"No expert is for this question ({route.reason}){near}."
            raise Abstained(msg)
        help_with = f" I can help with: {domains}. Which is it?" if domains else ""
        ask = f"I am not sure what you ask about.{help_with}"
        answer: Runnable[Any, Any] = RunnableLambda(lambda _: AIMessage(ask), name="ask back")
        return Choice(other=answer, metadata={**told, "expert": "ask"})
