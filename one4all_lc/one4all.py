"""Router and experts as one chat model."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from langchain_core.embeddings import Embeddings
from langchain_core.messages import BaseMessage
from pydantic import Field, SkipValidation, model_validator

from one4all_lc.base.loading import DEFAULT_BASE, Quantization, SharedBase
from one4all_lc.engine.engine import Engine
from one4all_lc.experts.chat import ChatExpert, Choice
from one4all_lc.library import Library, default_adapters
from one4all_lc.routing.route import Route
from one4all_lc.routing.router import SemanticRouter

if TYPE_CHECKING:
    import torch

AUTO = "auto"
"""The model that lets the router choose."""


class One4All(ChatExpert):
    """Many experts as one chat model: each question goes to the expert of its domain.

    Where the router abstains, the base answers without an adapter. `response_metadata["route"]`
    says what was decided and why; `model="sql"` in a call asks one expert, whatever the router
    thinks, and `model="base"` none.

    Args:
        engine: The engine of the base.
        router: Chooses among the experts of its library.
        library: The experts that `model` may name; the router's by default.

    Example:
        one = One4All.load()
        one.invoke("Which phone has the best battery?").response_metadata["expert"]
    """

    router: SkipValidation[SemanticRouter] = Field(exclude=True, repr=False)
    model: str = AUTO

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
            base: Id or path of the base.
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
        shared = SharedBase.load(base, quantization=quantization, device=device, dtype=dtype)
        library = Library(adapters or default_adapters(), shared.facts)
        router = SemanticRouter(library=library, embeddings=embeddings)
        return cls(engine=Engine.of(shared), router=router, **settings)

    @property
    def _llm_type(self) -> str:
        return "one4all"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {**super()._identifying_params, "router": self.router.fingerprint}

    def _check_model(self, model: str) -> None:
        if model != AUTO:
            super()._check_model(model)

    def _choose(self, messages: list[BaseMessage], model: str) -> Choice:
        if model != AUTO:
            return super()._choose(messages, model)
        return self._chosen(self.router.invoke(messages))

    async def _achoose(self, messages: list[BaseMessage], model: str) -> Choice:
        if model != AUTO:
            return await super()._achoose(messages, model)
        return self._chosen(await self.router.ainvoke(messages))

    def _chosen(self, route: Route) -> Choice:
        if route.best and route.best not in self.library:  # taken out of use since it was routed
            route = replace(route, abstained=True, reason="removed")
        experts = ((self.library[route.best], 1.0),) if route.best else ()
        return Choice(experts, {"route": route.as_dict()})
