"""Experts as tools: what an agent with another model calls to ask them.

    agent = create_agent("openai:gpt-5.5", tools=expert_tools(one))

The answer's text is the tool's content; who gave it is the artifact.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from langchain_core.callbacks import AsyncCallbackManagerForToolRun, CallbackManagerForToolRun
from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import patch_config
from langchain_core.tools import BaseTool, ToolException
from pydantic import BaseModel, Field, SkipValidation, create_model

from one4all_lc.errors import InvalidInput, One4AllError
from one4all_lc.experts.chat import ChatExpert
from one4all_lc.experts.naming import checked_tool_name, described, tool_name
from one4all_lc.head import CHAT

# More would fill the prompt of the model that calls the tool.
LISTED = 10

_ANSWERED = ("expert", "version", "identity", "route", "kind", "result")

HandleToolError = bool | str | Callable[[ToolException], Any] | None
"""As LangChain's tools take it: an error is raised, or its message is the tool's answer."""


class Question(BaseModel):
    """What an expert is asked."""

    question: str = Field(
        description="The whole question in plain language: the expert sees nothing else."
    )


class ExpertTool(BaseTool):
    """An expert, or several with their router, as a tool; made by `expert_tools` and `as_tool`.

    Callbacks, tags and metadata of the caller reach the expert's run. An error of this package
    becomes a `ToolException`: set `handle_tool_error` to let the calling model read it.

    Attributes:
        chat: The chat model that is asked.
        expert: The expert that it is asked for; None leaves that to the chat model.
    """

    chat: SkipValidation[ChatExpert] = Field(exclude=True, repr=False)
    expert: str | None = None
    response_format: Literal["content", "content_and_artifact"] = "content_and_artifact"

    def _run(
        self,
        *texts: str,
        config: RunnableConfig,
        run_manager: CallbackManagerForToolRun | None = None,
        **args: Any,
    ) -> tuple[str, dict[str, Any]]:
        child = patch_config(config, callbacks=run_manager.get_child() if run_manager else None)
        try:
            return _answer(self.chat.invoke(_written(texts, args), child, **self._settings))
        except One4AllError as error:
            raise ToolException(str(error)) from error

    async def _arun(
        self,
        *texts: str,
        config: RunnableConfig,
        run_manager: AsyncCallbackManagerForToolRun | None = None,
        **args: Any,
    ) -> tuple[str, dict[str, Any]]:
        child = patch_config(config, callbacks=run_manager.get_child() if run_manager else None)
        try:
            return _answer(await self.chat.ainvoke(_written(texts, args), child, **self._settings))
        except One4AllError as error:
            raise ToolException(str(error)) from error

    @property
    def _settings(self) -> dict[str, Any]:
        return {"model": self.expert} if self.expert is not None else {}


def expert_tools(
    model: ChatExpert,
    names: str | Sequence[str] | None = None,
    *,
    handle_tool_error: HandleToolError = False,
) -> list[BaseTool]:
    """Return each expert as a tool `ask_<name>` that takes a question; encoder experts take theirs.

    A tool asks the expert of its name as the library has it then: a new version answers from the
    next call on. Names and descriptions are those of the experts in use now.

    Args:
        model: A `ChatExpert` or a `One4All`; its settings hold for every expert.
        names: The experts; None takes all of the library.
        handle_tool_error: False raises a `ToolException`; True answers with its message, a text
            with that text, a function with what it returns.

    Raises:
        UnknownExpert: No expert of such a name is in the library.

    Example:
        sql, medical = expert_tools(one, ["sql", "medical"])
        sql.invoke({"question": "How many teams are there? Columns: team, city"})
    """
    asked = model.library.names if names is None else [names] if isinstance(names, str) else names
    return [_tool(model, name, handle_tool_error) for name in dict.fromkeys(asked)]


def _tool(model: ChatExpert, name: str, handle_tool_error: HandleToolError) -> BaseTool:
    card = model.library[name].card
    if card.kind != CHAT:
        from one4all_lc.experts.text.tools import tool_of

        expert = model.text_expert(name)
        return tool_of(expert, expert.arguments, handle_tool_error=handle_tool_error)
    return ExpertTool(
        name=tool_name(name),
        description=described(card),
        args_schema=Question,
        chat=model,
        expert=name,
        handle_tool_error=handle_tool_error,
    )


def as_tool(
    model: ChatExpert,
    args_schema: type[BaseModel] | None = None,
    *,
    name: str | None = None,
    description: str | None = None,
    arg_types: Mapping[str, type] | None = None,
) -> BaseTool:
    """Return a whole chat model, the router of a `One4All` included, as one tool.

    The arguments become the question as the experts were taught to read it: `question`, with
    `columns` of a table or a `context` beside it, or one text under any other name.

    Args:
        model: A `ChatExpert` or a `One4All`.
        args_schema: The tool's arguments; one described `question` by default.
        name: The tool's name; `ask_<model>` by default, `ask_experts` for a `One4All`.
        description: What the tool is for; said from the experts' cards by default.
        arg_types: The arguments by name and type, in the place of `args_schema`.

    Raises:
        InvalidInput: The name is none for a tool, or no question can be made of the arguments.

    Example:
        tool = as_tool(one, arg_types={"question": str, "columns": list[str]})
        tool.invoke({"question": "How many teams are there?", "columns": ["team", "city"]})
    """
    default, says = _of_chat(model)
    if name is not None:
        checked_tool_name(name)
    schema = args_schema or (_schema(arg_types) if arg_types else Question)
    _check_arguments(list(schema.model_fields))
    return ExpertTool(
        name=name or default, description=description or says, args_schema=schema, chat=model
    )


def _answer(message: AIMessage) -> tuple[str, dict[str, Any]]:
    """Return a tool's content and artifact: the answer, and who gave it."""
    facts = message.response_metadata
    artifact = {key: facts[key] for key in _ANSWERED if key in facts}
    return str(message.text), {**artifact, "usage": message.usage_metadata}


def _written(texts: Sequence[str], args: Mapping[str, Any]) -> str:
    """Write a tool's arguments as one question."""
    from one4all_lc.training.data import ask_about

    if texts:  # LangChain passes a bare text on as it is
        return texts[0]
    if "question" not in args:
        (text,) = args.values()
        return str(text)
    return ask_about(args["question"], args.get("columns"), args.get("context"))


def _check_arguments(names: Sequence[str]) -> None:
    """Refuse arguments that `_written` would lose in silence."""
    if len(names) == 1 or ("question" in names and {*names} <= {"question", "columns", "context"}):
        return
    msg = (
        f"No question can be made of the arguments {', '.join(names) or '(none)'}: give `question`,"
        " with `columns` or `context` beside it, or a single argument of any name."
    )
    raise InvalidInput(msg)


def _schema(arg_types: Mapping[str, type]) -> type[BaseModel]:
    fields: dict[str, Any] = {name: (kind, ...) for name, kind in arg_types.items()}
    return create_model("Arguments", **fields)


def _of_chat(model: ChatExpert) -> tuple[str, str]:
    """Return the name and the description of a chat model as a tool."""
    from one4all_lc.one4all import AUTO

    if model.model in model.library:
        return tool_name(model.model), described(model.library[model.model].card)
    if model.model != AUTO:
        return tool_name(model.model), f"Answers a question in text, as {model.model}."
    experts = [f"{expert.name}: {expert.card.description}" for expert in model.library]
    more = [f"and {len(experts) - LISTED} more"] if len(experts) > LISTED else []
    first = "Answers a question by the expert of its domain."
    return "ask_experts", "\n- ".join([first, *experts[:LISTED], *more])
