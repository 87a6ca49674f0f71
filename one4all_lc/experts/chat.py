"""One expert, or the bare base, as a LangChain chat model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

from langchain_core.language_models import LangSmithParams, LanguageModelInput, ModelProfile
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.runnables import Runnable
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import ConfigDict, Field, SkipValidation, model_validator

from one4all_lc.card import BASE
from one4all_lc.engine.encoders import EncoderEngine
from one4all_lc.engine.request import Request
from one4all_lc.errors import InvalidInput
from one4all_lc.experts.asking import EngineChatModel
from one4all_lc.experts.choice import Choice
from one4all_lc.experts.messages import prompt_of
from one4all_lc.experts.options import OPTIONS, Options, must_have_form
from one4all_lc.experts.replies import Reply
from one4all_lc.experts.structured import Method, structured
from one4all_lc.experts.templates import may_think, reasons, thought_over
from one4all_lc.experts.tool_calls import chosen
from one4all_lc.folder import Expert
from one4all_lc.head import CHAT
from one4all_lc.library import Library
from one4all_lc.sampling import Sampling

if TYPE_CHECKING:
    from pydantic import BaseModel

    from one4all_lc.experts.text import Result, TextExpert

_SAMPLING = tuple(item.name for item in fields(Sampling))

_TRACED = ("stream", "strict", "ls_structured_output_format")
"""Keywords of a call that say how it was asked for; they do not change the answer."""


class ChatExpert(EngineChatModel):
    """An expert as a chat model: `invoke`, `stream`, `batch` and their async twins.

    Settings left None are taken from the expert's card, and from `Sampling` where that is silent.

    Args:
        engine: The engine of the base.
        library: The experts that `model` may name; empty leaves the base.
        encoder: The engine of the encoder base, for experts of the library that decide instead of
            writing: their answer is the result in words, `response_metadata["result"]` the result.
        model: The expert that answers, or `base`. Every call may name another: `model="sql"`.
        timeout: Seconds within which an answer must be whole, waiting included.
        thinking: Whether the base thinks before it answers, if its chat template lets one choose,
            as Qwen3's does; what it thinks is no part of the answer's text. None leaves it to the
            template; an answer of a form is never thought over.
        streaming: Whether `invoke` streams inside, so that callbacks see tokens as they come.
        max_retries: Taken because LangChain's models take it; there is no network to fail.

    Example:
        sql = ChatExpert(engine=engine, library=library, model="sql")
        sql.invoke("How many teams are there? Columns: team, city")
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    library: SkipValidation[Library] = Field(default_factory=Library, exclude=True, repr=False)
    encoder: SkipValidation[EncoderEngine] | None = Field(default=None, exclude=True, repr=False)
    _keywords: ClassVar[tuple[str, ...]] = ("model", "timeout", "thinking")

    model: str = BASE
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: list[str] | None = None
    min_tokens: int | None = None
    timeout: float | None = None
    thinking: bool | None = None
    streaming: bool = False
    max_retries: int | None = None

    @model_validator(mode="after")
    def _settings_are_sound(self) -> Self:
        """Refuse at once what would fail in every call."""
        self._check_model(self.model)
        self._sampling({}, None, {})
        Request((), timeout=self.timeout)
        self._thinks({})
        return self

    @property
    def _llm_type(self) -> str:
        return "one4all-expert"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        """What LangChain's caches key answers by: all that decides what a call answers.

        A call may name any expert of the library, so all of them count, by weights and prompt.
        """
        return {
            "base": self.engine.base.facts.id,
            "quantization": self.engine.base.quantization,
            "encoder": self.encoder
            and (self.encoder.base.facts.id, self.encoder.base.quantization),
            "model": self.model,
            "thinking": self.thinking,
            "experts": [
                (expert.name, expert.identity, expert.card.system_prompt, expert.card.generation)
                for expert in self.library
            ],
            **{name: getattr(self, name) for name in _SAMPLING},
        }

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = super()._get_ls_params(stop=stop, **kwargs)
        params["ls_provider"] = "one4all"
        params["ls_model_name"] = kwargs.get("model", self.model)
        return params

    def _resolve_model_profile(self) -> ModelProfile:
        return ModelProfile(
            max_input_tokens=self.engine.base.context_length - 1,
            max_output_tokens=self.engine.base.context_length - 1,
            text_inputs=True,
            text_outputs=True,
            image_inputs=False,
            audio_inputs=False,
            video_inputs=False,
            tool_calling=True,
            tool_choice=True,
            structured_output=True,
            reasoning_output=reasons(self.engine.base.tokenizer),
        )

    def get_token_ids(self, text: str) -> list[int]:
        """Return the base tokenizer's ids of `text`."""
        return list(self.engine.base.tokenizer.encode(text, add_special_tokens=False))

    def get_num_tokens_from_messages(
        self, messages: list[BaseMessage], tools: Sequence[Any] | None = None
    ) -> int:
        """Return how many tokens the base reads of a conversation, the expert's prompt included."""
        known, _ = chosen(tools or (), None)
        named = self.model in self.library
        prompt = self.library[self.model].card.system_prompt if named else ""
        tokenizer, thinking = self.engine.base.tokenizer, self._thinks({})
        return len(prompt_of(tokenizer, messages, prompt, tools=known, thinking=thinking))

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: Any = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Return this model with tools that it may call.

        Args:
            tools: Whatever LangChain takes as a tool.
            tool_choice: `auto`; `any` or a tool's name, which are enforced; or `none`.
            **kwargs: Other keywords of every call.

        Raises:
            InvalidInput: The choice names no tool.
        """
        known = [convert_to_openai_tool(tool) for tool in tools]
        chosen(known, tool_choice)
        if tool_choice is not None:
            kwargs["tool_choice"] = tool_choice
        return super().bind(tools=known, **kwargs)

    def with_structured_output(
        self,
        schema: "dict[str, Any] | type",
        *,
        method: Method = "json_schema",
        include_raw: bool = False,
        **kwargs: Any,
    ) -> "Runnable[LanguageModelInput, dict[str, Any] | BaseModel]":
        """Return this model with answers that are objects, always valid for their schema.

        Args:
            schema: A pydantic class, TypedDict, JSON schema or OpenAI function.
            method: `json_schema` and `json_mode` enforce the schema on the answer,
                `function_calling` on a call of one tool.
            include_raw: Return the message, the object and the parsing error together.
            **kwargs: Keywords of every call; `strict` changes nothing, schemas are enforced.

        Raises:
            InvalidInput: There is no such method.
        """
        return structured(self, schema, method, include_raw=include_raw, **kwargs)

    def as_tool(
        self,
        args_schema: "type[BaseModel] | None" = None,
        *,
        name: str | None = None,
        description: str | None = None,
        arg_types: dict[str, type] | None = None,
    ) -> BaseTool:
        """Return this model as one tool of an agent; `expert_tools` makes one of each expert."""
        from one4all_lc.experts.tools import as_tool

        return as_tool(self, args_schema, name=name, description=description, arg_types=arg_types)

    def text_expert(self, name: str, timeout: float | None = None) -> "TextExpert[Result]":
        """Return an encoder expert of the library as the Runnable of its kind.

        Args:
            name: Its name.
            timeout: Seconds within which an input must be read.

        Raises:
            UnknownExpert: There is none of that name.
            InvalidInput: It is a chat expert, or there is no engine for it.
        """
        from one4all_lc.experts.text import text_expert

        if self.encoder is None:
            card = self.library[name].card
            msg = (
                f"{name!r} is a {card.kind} expert of {card.base!r}: give encoder=EncoderEngine.of("
                "SharedBase.load(...)), or load the experts with One4All.load."
            )
            raise InvalidInput(msg)
        return text_expert(engine=self.encoder, library=self.library, model=name, timeout=timeout)

    def _check_model(self, model: str) -> None:
        """Refuse a name that no call could answer."""
        if model != BASE and self.library[model].card.kind != CHAT:
            self.text_expert(model)

    def _by(
        self, expert: Expert, metadata: Mapping[str, Any], settings: Mapping[str, Any]
    ) -> Choice:
        """Return the choice of one expert, whatever its kind."""
        if expert.card.kind == CHAT:
            return Choice(((expert, 1.0),), metadata=metadata)
        if must_have_form(settings):
            msg = (
                f"{expert.name!r} decides, and its answer has no form that one may demand: ask an "
                "expert that writes, or leave response_format and tool_choice out."
            )
            raise InvalidInput(msg)
        from one4all_lc.experts.text.asking import as_message

        asked = self.text_expert(expert.name, settings.get("timeout", self.timeout))
        facts = Choice(((expert, 1.0),), metadata=metadata).facts
        return Choice(other=as_message(asked), metadata=facts)

    def _choose(self, messages: list[BaseMessage], settings: Mapping[str, Any]) -> Choice:
        model = settings.get("model", self.model)
        return Choice() if model == BASE else self._by(self.library[model], {}, settings)

    async def _achoose(self, messages: list[BaseMessage], settings: Mapping[str, Any]) -> Choice:
        return self._choose(messages, settings)

    def _submit(
        self,
        experts: Sequence[tuple[Expert, float]],
        messages: list[BaseMessage],
        stop: list[str] | None,
        settings: Mapping[str, Any],
    ) -> Reply:
        """Render, and hand the request to the engine."""
        card = experts[0][0].card if experts else None
        tokenizer = self.engine.base.tokenizer
        options = Options.of(settings, tokenizer)
        prompt = prompt_of(
            tokenizer,
            messages,
            card.system_prompt if card else "",
            tools=options.tools,
            instruction=options.instruction,
            thinking=self._thinks(settings, forced=options.forced),
        )
        if options.forced:
            prompt += thought_over(tokenizer, prompt)
        sampling = self._sampling(card.generation if card else {}, stop, settings)
        timeout = settings.get("timeout", self.timeout)
        request = Request(
            tuple(prompt),
            tuple(experts),
            sampling,
            timeout,
            options.grammar,
            special_tokens=options.special_tokens,
        )
        reader = options.reader(lambda: str(tokenizer.decode(prompt)))
        return Reply(self.engine.submit(request), reader, self.engine.base.end_tokens)

    def _thinks(self, settings: Mapping[str, Any], *, forced: bool = False) -> bool | None:
        """Return what the chat template is told of thinking."""
        tokenizer = self.engine.base.tokenizer
        wanted: bool | None = settings.get("thinking", self.thinking)
        if wanted and not may_think(tokenizer):
            msg = (
                f"thinking is {wanted}, but the chat template of {self.engine.base.facts.id} does "
                "not let one choose: leave it out, or take a base such as Qwen3."
            )
            raise InvalidInput(msg)
        return False if forced and may_think(tokenizer) else wanted

    def _sampling(
        self, defaults: Mapping[str, Any], stop: list[str] | None, settings: Mapping[str, Any]
    ) -> Sampling:
        """Join the card's defaults, the model's fields and the call's own; the later wins."""
        taken = (*self._keywords, *OPTIONS, *_SAMPLING)
        unknown = sorted(settings.keys() - {*taken, *_TRACED})
        if unknown:
            known = ", ".join(taken)
            msg = f"A call does not take {', '.join(unknown)}: it takes {known}."
            raise InvalidInput(msg)
        fields_set = {name: getattr(self, name) for name in _SAMPLING}
        chosen_values = dict(defaults)
        for layer in (fields_set, settings, {"stop": stop}):
            chosen_values |= {
                name: layer[name] for name in _SAMPLING if layer.get(name) is not None
            }
        texts = chosen_values.get("stop", ())
        chosen_values["stop"] = (texts,) if isinstance(texts, str) else tuple(texts)
        return replace(Sampling(), **chosen_values)
