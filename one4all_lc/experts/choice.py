"""Who answers one call."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.messages.ai import UsageMetadata

from one4all_lc.card import BASE
from one4all_lc.folder import Expert

if TYPE_CHECKING:
    from langchain_core.runnables import Runnable


@dataclass(frozen=True)
class Choice:
    """Who answers one call.

    Attributes:
        experts: The experts with their weights; empty for the base alone.
        consulted: Experts that answer first, each by itself; their answers become the question.
        other: Answers in the place of this engine: a larger model, for example.
        spent: What those that were consulted have read and written.
        metadata: What `response_metadata` says of the choice, beside the experts themselves.
    """

    experts: tuple[tuple[Expert, float], ...] = ()
    consulted: tuple[Expert, ...] = ()
    other: "Runnable[Any, Any] | None" = None
    spent: UsageMetadata | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The expert's name; several are joined by `+`; `base` for none."""
        members = [expert for expert, _ in self.experts] or self.consulted
        return "+".join(expert.name for expert in members) or BASE

    @property
    def facts(self) -> dict[str, Any]:
        """Which weights answer, as `response_metadata` says it."""
        members = [expert for expert, _ in self.experts] or list(self.consulted)
        first = members[0] if len(members) == 1 else None
        facts: dict[str, Any] = {
            "expert": self.name,
            "version": first.card.version if first else None,
            "identity": first.identity if first else None,
        }
        if len(members) > 1:
            facts["experts"] = [
                {"name": item.name, "version": item.card.version, "identity": item.identity}
                for item in members
            ]
        if len(self.experts) > 1:
            facts["weights"] = {expert.name: weight for expert, weight in self.experts}
        return {**facts, **self.metadata}


def joined(question: str, answers: Mapping[str, str]) -> str:
    """Return what is asked of whoever writes one answer out of the experts'."""
    parts = "\n\n".join(f"[{name}]\n{text.strip()}" for name, text in answers.items())
    return (
        f"{question}\n\nExperts have answered:\n\n{parts}\n\n"
        "Write one answer from theirs, and name the expert in brackets after what you take from it."
    )


def as_message(output: object, metadata: Mapping[str, Any]) -> AIMessage:
    """Return what another Runnable has answered, as a message that says who answered."""
    message = output if isinstance(output, AIMessage) else AIMessage(content=str(output))
    known = {**metadata, **message.response_metadata}
    return message.model_copy(update={"response_metadata": known})


def as_chunk(output: object) -> AIMessageChunk:
    """Return a piece of what another Runnable answers, as a message chunk."""
    if isinstance(output, AIMessageChunk):
        return output
    if isinstance(output, BaseMessage):
        kept = {"tool_calls", "usage_metadata", "response_metadata"}
        fields = output.model_dump(include=kept, exclude_none=True)
        return AIMessageChunk(content=output.content, **fields)
    return AIMessageChunk(content=str(output))
