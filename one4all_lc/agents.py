"""Experts in LangChain agents and LangGraph graphs: who answers is decided by the router.

    agent = create_agent("openai:gpt-5.5", middleware=[ExpertRouterMiddleware(one)])

An agent's turn is routed once; a graph has a node that answers and edges that choose.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Annotated, Any, NotRequired

from langchain.agents.middleware.types import (
    AgentMiddleware,
    AgentState,
    ContextT,
    ModelRequest,
    ModelResponse,
    OmitFromSchema,
    ResponseT,
)
from langchain_core.messages import AIMessage, AnyMessage, BaseMessage, HumanMessage
from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda
from langgraph.runtime import Runtime
from langgraph.types import Send

from one4all_lc.card import BASE
from one4all_lc.errors import InvalidInput
from one4all_lc.experts.answerable import answerable
from one4all_lc.experts.chat import ChatExpert
from one4all_lc.one4all import AUTO, One4All
from one4all_lc.routing.question import question_of
from one4all_lc.routing.route import Route

Router = Runnable[Any, Route]
State = Mapping[str, Any]


class ExpertRouterState(AgentState[ResponseT]):
    """An agent's state, with the route of the turn.

    Attributes:
        expert_route: `Route.as_dict()`; None where the turn has no text to route.
    """

    # A caller may read it from the agent's answer, but cannot set it.
    expert_route: NotRequired[
        Annotated[dict[str, Any] | None, OmitFromSchema(input=True, output=False)]
    ]


class ExpertRouterMiddleware(
    AgentMiddleware[ExpertRouterState[ResponseT], ContextT, ResponseT],
):
    """Lets the expert of the question's domain answer in the place of an agent's own model.

    The last human message is routed once, when a turn begins; that expert makes all the model
    calls of the turn, with the agent's tools, and the next turn is routed anew. Where the router
    abstains, the agent's own model answers, whatever chat model it is; so it does in
    conversations with images, which experts cannot read. The agent's state has the decision
    under `expert_route`.

    Args:
        model: Makes the experts' calls; its settings hold for them.
        router: Chooses among the experts; the `One4All`'s own by default.

    Raises:
        InvalidInput: There is no router.

    Example:
        agent = create_agent("openai:gpt-5.5", tools, middleware=[ExpertRouterMiddleware(one)])
        state = agent.invoke({"messages": [("human", "What are the symptoms of pneumonia?")]})
        state["expert_route"]["best"]  # 'medical'
    """

    state_schema = ExpertRouterState  # type: ignore[assignment]

    def __init__(self, model: ChatExpert, *, router: Router | None = None) -> None:
        super().__init__()
        router = router or getattr(model, "router", None)
        if router is None:
            msg = f"A {type(model).__name__} has no router: give one with `router`, or a One4All."
            raise InvalidInput(msg)
        self.model = model
        self.router: Router = router

    def before_agent(
        self, state: ExpertRouterState[ResponseT], runtime: Runtime[ContextT]
    ) -> dict[str, Any]:
        """Route the turn."""
        question = _question(state["messages"])
        return self._told(self.router.invoke(question) if question is not None else None)

    async def abefore_agent(
        self, state: ExpertRouterState[ResponseT], runtime: Runtime[ContextT]
    ) -> dict[str, Any]:
        """Route the turn with the embedder's own async method."""
        question = _question(state["messages"])
        return self._told(await self.router.ainvoke(question) if question is not None else None)

    def _told(self, route: Route | None) -> dict[str, Any]:
        found = answerable(route, self.model.library) if route else None
        return {"expert_route": found.as_dict() if found else None}

    def wrap_model_call(
        self,
        request: ModelRequest[ContextT],
        handler: Callable[[ModelRequest[ContextT]], ModelResponse[ResponseT]],
    ) -> ModelResponse[ResponseT]:
        """Let the routed expert answer."""
        return handler(self._routed(request))

    async def awrap_model_call(
        self,
        request: ModelRequest[ContextT],
        handler: Callable[[ModelRequest[ContextT]], Awaitable[ModelResponse[ResponseT]]],
    ) -> ModelResponse[ResponseT]:
        """Let the routed expert answer."""
        return await handler(self._routed(request))

    def _routed(self, request: ModelRequest[ContextT]) -> ModelRequest[ContextT]:
        expert = _best(request.state)
        own = request.model
        readable = all(_is_text(m) for m in request.messages if not isinstance(m, AIMessage))
        # It may have been taken out of use since it was routed, or a tool has shown an image.
        if readable and expert in self.model.library:
            # A setting of another provider's means nothing to an expert, which would refuse it.
            settings = request.model_settings if isinstance(own, ChatExpert) else {}
            return request.override(
                # A copy, not a setting `model`: a fallback to another model would get that too.
                model=_asking(self.model, str(expert)),
                messages=[_readable(message) for message in request.messages],
                model_settings=settings,
            )
        if readable and isinstance(own, One4All) and self._abstains_alike(own):
            return request.override(model=_asking(own, BASE))  # it would only abstain again
        return request

    def _abstains_alike(self, own: One4All) -> bool:
        """Whether an agent's own model would only route again, abstain, and let the base answer."""
        return own.model == AUTO and own.router is self.router and own.fallback == "base"


def expert_node(model: ChatExpert, name: str | None = None) -> Runnable[State, dict[str, Any]]:
    """Return a node over `MessagesState` that answers with an expert.

    Args:
        model: A `ChatExpert` or a `One4All`.
        name: The expert, or `base`. None takes the state's `expert`, which `fan_out` sends, else
            the best of its `expert_route`, else what the model decides: a `One4All` routes.

    Raises:
        UnknownExpert: No expert of that name is in the library.

    Example:
        graph.add_node("sql", expert_node(one, "sql"))
    """
    if name is not None and name != BASE:
        model.library[name]

    def answer(state: State, config: RunnableConfig) -> dict[str, Any]:
        return {"messages": [model.invoke(state["messages"], config, **_settings(state, name))]}

    async def aanswer(state: State, config: RunnableConfig) -> dict[str, Any]:
        message = await model.ainvoke(state["messages"], config, **_settings(state, name))
        return {"messages": [message]}

    return RunnableLambda(answer, aanswer, name=name or "expert")


def route_to_expert(
    router: Router,
    *,
    abstained: str = BASE,
    nodes: Mapping[str, str] | None = None,
) -> Runnable[State, str]:
    """Return a conditional edge that leads to the node of the routed expert.

    Args:
        router: Chooses among the experts by the last human message. `RunnableLambda(one.route,
            one.aroute)` chooses none that cannot answer it, such as a reader without a passage.
        abstained: The node to go to where the router abstains, or chooses an expert that has
            no node; `END` is one too.
        nodes: The node of each expert; None takes an expert's name for its node's.

    Example:
        route = route_to_expert(one.router, abstained=END)
        graph.add_conditional_edges(START, route, [*one.library.names, END])
    """

    def node_of(route: Route) -> str:
        if route.best is None:
            return abstained
        return route.best if nodes is None else nodes.get(route.best, abstained)

    def choose(state: State, config: RunnableConfig) -> str:
        return node_of(router.invoke(state["messages"], config))

    async def achoose(state: State, config: RunnableConfig) -> str:
        return node_of(await router.ainvoke(state["messages"], config))

    return RunnableLambda(choose, achoose, name="route_to_expert")


def fan_out(
    router: Router, node: str, *, most: int = 3, at_least: float = 0.2
) -> Runnable[State, list[Send]]:
    """Return a conditional edge that sends the state to a node once for every chosen expert.

    The routed expert is chosen, and the others that the router finds likely. Each gets a copy of
    the state with its name under `expert`, which `expert_node` reads; where the router abstains,
    one goes out for `base`.

    Args:
        router: Chooses among the experts by the last human message. `RunnableLambda(one.route,
            one.aroute)` chooses none that cannot answer it, such as a reader without a passage.
        node: The node that answers, `expert_node(model)` for example.
        most: The number of experts at most.
        at_least: The probability that an expert beside the routed one must have.

    Raises:
        InvalidInput: No expert could be chosen.

    Example:
        graph.add_node("ask", expert_node(one))
        graph.add_conditional_edges(START, fan_out(one.router, "ask"), ["ask"])
    """
    if most < 1:
        msg = f"fan_out got most={most}: give 1 or more experts."
        raise InvalidInput(msg)

    def sends(state: State, route: Route) -> list[Send]:
        likely = [item.name for item in route.experts[1:most] if item.probability >= at_least]
        chosen = [route.best, *likely] if route.best is not None else [BASE]
        return [Send(node, {**state, "expert": expert}) for expert in chosen]

    def send(state: State, config: RunnableConfig) -> list[Send]:
        return sends(state, router.invoke(state["messages"], config))

    async def asend(state: State, config: RunnableConfig) -> list[Send]:
        return sends(state, await router.ainvoke(state["messages"], config))

    return RunnableLambda(send, asend, name="fan_out")


def _question(messages: Sequence[AnyMessage]) -> str | None:
    """Return what the router should read; None if no expert could read the conversation."""
    for message in messages:
        if isinstance(message, HumanMessage) and not _is_text(message):
            return None
    try:
        return question_of(messages)
    except InvalidInput:
        return None  # an agent may be asked without a question, to go on for example


def _is_text(message: BaseMessage) -> bool:
    return isinstance(message.content, str) or all(
        isinstance(block, str) or block.get("type") == "text" for block in message.content
    )


def _readable(message: AnyMessage) -> AnyMessage:
    """Leave out what another model's answer holds beside text: its thinking, its own blocks.

    Tool calls stay, since LangChain keeps them beside the content as well.
    """
    if isinstance(message, AIMessage) and not _is_text(message):
        return message.model_copy(update={"content": str(message.text)})
    return message


def _best(state: Mapping[str, Any]) -> str | None:
    route = state.get("expert_route")
    return route["best"] if route else None


def _asking(model: ChatExpert, expert: str) -> ChatExpert:
    copy = model.model_copy(update={"model": expert})
    copy.__dict__.pop("_serialized", None)  # LangChain keeps it for traces: it names the model
    return copy


def _settings(state: State, name: str | None) -> dict[str, Any]:
    """Return the setting of a call that names the expert; none leaves the choice to the model."""
    expert = name or state.get("expert")
    if expert is None and state.get("expert_route"):
        expert = _best(state) or BASE
    return {"model": expert} if expert is not None else {}
