"""Encoder experts: they decide about a text where chat experts write one."""

from one4all_lc.engine.encoders import EncoderEngine
from one4all_lc.errors import InvalidInput
from one4all_lc.experts.text.classify import ClassifyExpert, PairExpert
from one4all_lc.experts.text.expert import TextExpert
from one4all_lc.experts.text.extract import ExtractExpert
from one4all_lc.experts.text.results import Classification, Entities, Entity, Extraction, Result
from one4all_lc.experts.text.tag import TagExpert
from one4all_lc.head import CHAT
from one4all_lc.library import Library

__all__ = [
    "Classification",
    "ClassifyExpert",
    "Entities",
    "Entity",
    "ExtractExpert",
    "Extraction",
    "PairExpert",
    "Result",
    "TagExpert",
    "TextExpert",
    "text_expert",
]

_BY_KIND: dict[str, type[TextExpert]] = {  # type: ignore[type-arg]
    item.kind: item for item in (ClassifyExpert, PairExpert, TagExpert, ExtractExpert)
}


def text_expert(
    *, engine: EncoderEngine, library: Library, model: str, timeout: float | None = None
) -> "TextExpert[Result]":
    """Return an encoder expert as the Runnable of its kind.

    Raises:
        UnknownExpert: The library has no expert of that name.
        InvalidInput: It is a chat expert.
    """
    kind = library[model].card.kind
    if kind == CHAT:
        msg = f"{model!r} is a chat expert: ask it through ChatExpert or One4All."
        raise InvalidInput(msg)
    return _BY_KIND[kind](engine=engine, library=library, model=model, timeout=timeout)
