"""What encoder experts have in common: a Runnable that hands texts to the engine and decides."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import run_in_executor
from langchain_core.tools import BaseTool
from numpy.typing import NDArray
from pydantic import BaseModel

from one4all_lc.engine.encoders import EncoderEngine
from one4all_lc.engine.encoding import TextRow
from one4all_lc.engine.texts import LogitsHandle, TextRequest
from one4all_lc.errors import InvalidInput, One4AllError
from one4all_lc.experts.text.reading import Tokenizing, Window
from one4all_lc.experts.text.results import Result
from one4all_lc.folder import Expert
from one4all_lc.head import HeadFacts
from one4all_lc.library import Library

Array = NDArray[np.float32]

R = TypeVar("R", bound=Result)


@dataclass(frozen=True)
class Reading(Generic[R]):
    """What is asked of one input, tokenized.

    Attributes:
        expert: Who reads it.
        windows: What the encoder reads, each by itself.
        decide: Makes the result of each window's logits.
    """

    expert: Expert
    windows: Sequence[Window]
    decide: Callable[[list[Array]], R]

    @property
    def tokens(self) -> int:
        """How many tokens are read."""
        return sum(len(window.tokens) for window in self.windows)

    def requests(self, timeout: float | None) -> list[TextRequest]:
        """Return what the engine is asked."""
        return [
            TextRequest(TextRow(window.tokens, self.expert, window.types), timeout)
            for window in self.windows
        ]


class TextExpert(Runnable[Any, R], Generic[R]):
    """An encoder expert as a Runnable; its heirs read one kind of input each.

    Texts of `batch`, and of all threads and event loops, share the engine's batches with those of
    every other expert. The expert is looked up by each call: a new version in the library answers
    from the next one on.

    Args:
        engine: The engine of the encoder base.
        library: Where the expert is.
        model: Its name.
        timeout: Seconds within which an input must be read, waiting included.

    Raises:
        UnknownExpert: The library has no expert of that name.
        InvalidInput: It is of another kind.
    """

    kind: ClassVar[str] = ""

    def __init__(
        self, *, engine: EncoderEngine, library: Library, model: str, timeout: float | None = None
    ) -> None:
        self.engine, self.library, self.model, self.timeout = engine, library, model, timeout
        self.name = model
        self._expert()

    @abstractmethod
    def _reading(self, asked: Any, expert: Expert, facts: HeadFacts) -> Reading[R]:
        """Tokenize an input."""

    @property
    @abstractmethod
    def arguments(self) -> type[BaseModel]:
        """The arguments of the expert as a tool."""

    def invoke(
        self,
        input: Any,  # noqa: A002
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> R:
        """Read one input.

        Raises:
            InvalidInput: There is nothing in it that could be read.
            EngineClosed: The engine was closed.
        """
        return self._call_with_config(self._one, input, config, **kwargs)

    async def ainvoke(
        self,
        input: Any,  # noqa: A002
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> R:
        """Read one input without blocking the event loop."""
        return await self._acall_with_config(self._aone, input, config, **kwargs)

    def batch(
        self,
        inputs: list[Any],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[R]:
        """Read many inputs together."""
        return self._batch_with_config(
            self._many, inputs, config, return_exceptions=return_exceptions, **kwargs
        )

    async def abatch(
        self,
        inputs: list[Any],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[R]:
        """Read many inputs together without blocking the event loop."""
        return await self._abatch_with_config(
            self._amany, inputs, config, return_exceptions=return_exceptions, **kwargs
        )

    def as_tool(
        self,
        args_schema: type[BaseModel] | None = None,
        *,
        name: str | None = None,
        description: str | None = None,
        arg_types: dict[str, type] | None = None,
    ) -> BaseTool:
        """Return this expert as a tool: its content is the result in words, the artifact itself.

        Args:
            args_schema: Its arguments; by default those of the kind.
            name: Its name; `ask_<expert>` by default.
            description: What it is for; the card's by default.
            arg_types: Not taken: the kind decides.

        Raises:
            InvalidInput: `arg_types` are given.
        """
        from one4all_lc.experts.text.tools import tool_of

        if arg_types is not None:
            msg = (
                f"A {self.kind} expert takes {list(self.arguments.model_fields)}: leave arg_types."
            )
            raise InvalidInput(msg)
        return tool_of(self, args_schema or self.arguments, name, description)

    def read(self, asked: Any) -> Reading[R]:
        """Tokenize an input; the engine is not asked.

        Raises:
            InvalidInput: There is nothing in it that could be read.
        """
        expert = self._expert()
        facts = expert.card.head_facts
        assert facts is not None  # every kind but chat has one
        return self._reading(asked, expert, facts)

    def answer(self, reading: Reading[R]) -> R:
        """Ask the engine and wait."""
        return self._waited([reading])[0]

    async def aanswer(self, reading: Reading[R]) -> R:
        """Ask the engine and wait."""
        return (await self._awaited([reading]))[0]

    def _one(self, asked: Any) -> R:
        return self.answer(self.read(asked))

    async def _aone(self, asked: Any) -> R:
        return await self.aanswer(await run_in_executor(None, self.read, asked))

    def _many(self, inputs: list[Any]) -> list[R | Exception]:
        readings = self._read_each(inputs)
        found = iter(self._waited([item for item in readings if isinstance(item, Reading)]))
        return [next(found) if isinstance(item, Reading) else item for item in readings]

    async def _amany(self, inputs: list[Any]) -> list[R | Exception]:
        readings = await run_in_executor(None, self._read_each, inputs)
        whole = [item for item in readings if isinstance(item, Reading)]
        found = iter(await self._awaited(whole))
        return [next(found) if isinstance(item, Reading) else item for item in readings]

    def _read_each(self, inputs: list[Any]) -> list[Reading[R] | Exception]:
        readings: list[Reading[R] | Exception] = []
        for asked in inputs:
            try:
                readings.append(self.read(asked))
            except One4AllError as error:
                readings.append(error)
        return readings

    def _waited(self, readings: Sequence[Reading[R]]) -> list[R]:
        handles = self._submit(readings)
        try:
            logits = [handle.result().numpy() for handle in handles]
        finally:
            _cancel(handles)
        return _decided(readings, logits)

    async def _awaited(self, readings: Sequence[Reading[R]]) -> list[R]:
        handles = await run_in_executor(None, self._submit, readings)
        try:
            logits = [(await handle.aresult()).numpy() for handle in handles]
        finally:
            _cancel(handles)
        return _decided(readings, logits)

    def _submit(self, readings: Sequence[Reading[R]]) -> list[LogitsHandle]:
        requests = [item for reading in readings for item in reading.requests(self.timeout)]
        return self.engine.submit(requests)

    @property
    def _tokenizing(self) -> Tokenizing:
        return Tokenizing.of(self.engine.base)

    def _expert(self) -> Expert:
        expert = self.library[self.model]
        if expert.card.kind != self.kind:
            msg = (
                f"{self.model!r} is a {expert.card.kind} expert: a {type(self).__name__} asks "
                f"those of kind {self.kind}."
            )
            raise InvalidInput(msg)
        return expert


def _decided(readings: Sequence[Reading[R]], logits: list[Array]) -> list[R]:
    rest = iter(logits)
    return [reading.decide([next(rest) for _ in reading.windows]) for reading in readings]


def _cancel(handles: Sequence[LogitsHandle]) -> None:
    for handle in handles:
        handle.cancel()
