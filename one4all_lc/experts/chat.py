"""One expert, or the bare base, as a LangChain chat model."""

from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LangSmithParams, LanguageModelInput
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import run_in_executor
from pydantic import ConfigDict, Field, SkipValidation, model_validator

from one4all_lc.card import BASE
from one4all_lc.engine.engine import Engine
from one4all_lc.engine.handle import Handle
from one4all_lc.engine.request import Completion, Request
from one4all_lc.errors import InvalidInput
from one4all_lc.experts.messages import render, to_turns
from one4all_lc.folder import Expert
from one4all_lc.library import Library
from one4all_lc.sampling import Sampling

_SAMPLING = tuple(item.name for item in fields(Sampling))


@dataclass(frozen=True)
class Choice:
    """Who answers one call.

    Attributes:
        experts: The experts with their weights; empty for the base alone.
        metadata: What `response_metadata` says of the choice, beside the experts themselves.
    """

    experts: tuple[tuple[Expert, float], ...]
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The expert's name, or `base`."""
        return "+".join(expert.name for expert, _ in self.experts) or BASE


class ChatExpert(BaseChatModel):
    """An expert as a chat model: `invoke`, `stream`, `batch` and their async twins.

    Settings left None are taken from the expert's card, and from `Sampling` where that is silent.

    Args:
        engine: The engine of the base.
        library: The experts that `model` may name; empty leaves the base.
        model: The expert that answers, or `base`. Every call may name another: `model="sql"`.
        timeout: Seconds within which an answer must be whole, waiting included.

    Example:
        sql = ChatExpert(engine=engine, library=library, model="sql")
        sql.invoke("How many teams are there? Columns: team, city")
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    engine: SkipValidation[Engine] = Field(exclude=True, repr=False)
    library: SkipValidation[Library] = Field(default_factory=Library, exclude=True, repr=False)
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

    @model_validator(mode="after")
    def _settings_are_sound(self) -> Self:
        """Refuse at once what would fail in every call."""
        self._check_model(self.model)
        self._sampling({}, None, {})
        Request((), timeout=self.timeout)
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
            "model": self.model,
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

    def get_token_ids(self, text: str) -> list[int]:
        """Return the base tokenizer's ids of `text`."""
        return list(self.engine.base.tokenizer.encode(text, add_special_tokens=False))

    def _check_model(self, model: str) -> None:
        """Refuse a name that no call could answer."""
        if model != BASE:
            self.library[model]

    def _choose(self, messages: list[BaseMessage], model: str) -> Choice:
        """Decide who answers."""
        return Choice(() if model == BASE else ((self.library[model], 1.0),))

    async def _achoose(self, messages: list[BaseMessage], model: str) -> Choice:
        return self._choose(messages, model)

    def _submit(
        self,
        choice: Choice,
        messages: list[BaseMessage],
        stop: list[str] | None,
        settings: Mapping[str, Any],
    ) -> Handle:
        """Render, and hand the request to the engine."""
        card = choice.experts[0][0].card if choice.experts else None
        turns = to_turns(messages, card.system_prompt if card else "")
        prompt = tuple(render(self.engine.base.tokenizer, turns))
        sampling = self._sampling(card.generation if card else {}, stop, settings)
        timeout = settings.get("timeout", self.timeout)
        return self.engine.submit(Request(prompt, choice.experts, sampling, timeout))

    def _sampling(
        self, defaults: Mapping[str, Any], stop: list[str] | None, settings: Mapping[str, Any]
    ) -> Sampling:
        """Join the card's defaults, the model's fields and the call's own; the later wins."""
        # LangChain passes `stream` on to say how it was asked for; both ways answer alike.
        unknown = sorted(settings.keys() - {*_SAMPLING, "model", "timeout", "stream"})
        if unknown:
            known = ", ".join(("model", "timeout", *_SAMPLING))
            msg = f"A call does not take {', '.join(unknown)}: it takes {known}."
            raise InvalidInput(msg)
        fields_set = {name: getattr(self, name) for name in _SAMPLING}
        chosen = dict(defaults)
        for layer in (fields_set, settings, {"stop": stop}):
            chosen |= {name: layer[name] for name in _SAMPLING if layer.get(name) is not None}
        texts = chosen.get("stop", ())
        chosen["stop"] = (texts,) if isinstance(texts, str) else tuple(texts)
        return replace(Sampling(), **chosen)

    def batch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        **kwargs: Any,
    ) -> list[AIMessage]:
        """Answer many at once: as many in parallel as the engine has rows, unless told otherwise.

        LangChain's own default follows the number of cores, which would leave most rows empty.
        """
        configs = config if isinstance(config, list) else [config or {}] * len(inputs)
        wide = [{"max_concurrency": self.engine.max_rows, **item} for item in configs]
        return super().batch(inputs, wide, **kwargs)  # type: ignore[arg-type]

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        choice = self._choose(messages, kwargs.get("model", self.model))
        handle = self._submit(choice, messages, stop, kwargs)
        try:
            return self._result(choice, handle.result())
        finally:
            handle.cancel()

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        choice = await self._achoose(messages, kwargs.get("model", self.model))
        handle = await run_in_executor(None, self._submit, choice, messages, stop, kwargs)
        try:
            return self._result(choice, await handle.aresult())
        finally:
            handle.cancel()

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        choice = self._choose(messages, kwargs.get("model", self.model))
        handle = self._submit(choice, messages, stop, kwargs)
        try:
            for piece in handle:
                if piece.text:
                    yield _chunk(piece.text)
            yield self._last_chunk(choice, handle.result())
        finally:  # a consumer that stops reading frees the row
            handle.cancel()

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        choice = await self._achoose(messages, kwargs.get("model", self.model))
        handle = await run_in_executor(None, self._submit, choice, messages, stop, kwargs)
        try:
            async for piece in handle:
                if piece.text:
                    yield _chunk(piece.text)
            yield self._last_chunk(choice, await handle.aresult())
        finally:
            handle.cancel()

    def _result(self, choice: Choice, completion: Completion) -> ChatResult:
        message = AIMessage(
            completion.text,
            response_metadata=self._metadata(choice, completion),
            usage_metadata=_usage(completion),
        )
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _last_chunk(self, choice: Choice, completion: Completion) -> ChatGenerationChunk:
        """Only the last chunk carries usage: merged chunks add theirs up."""
        message = AIMessageChunk(
            content="",
            response_metadata=self._metadata(choice, completion),
            usage_metadata=_usage(completion),
            chunk_position="last",
        )
        return ChatGenerationChunk(message=message)

    def _metadata(self, choice: Choice, completion: Completion) -> dict[str, Any]:
        first = choice.experts[0][0] if choice.experts else None
        return {
            "model_name": choice.name,
            "model_provider": "one4all",
            "base": self.engine.base.facts.id,
            "expert": choice.name,
            "version": first.card.version if first else None,
            "identity": first.identity if first else None,
            "finish_reason": completion.finish_reason,
            "first_token_seconds": round(completion.first_token_seconds, 4),
            "seconds": round(completion.seconds, 4),
            **choice.metadata,
        }


def _chunk(text: str) -> ChatGenerationChunk:
    return ChatGenerationChunk(message=AIMessageChunk(content=text))


def _usage(completion: Completion) -> UsageMetadata:
    return UsageMetadata(
        input_tokens=completion.prompt_tokens,
        output_tokens=len(completion.tokens),
        total_tokens=completion.prompt_tokens + len(completion.tokens),
    )
