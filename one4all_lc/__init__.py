"""Many domain experts for LangChain applications at the price of one small model.

The public names are loaded when they are first used: importing the package imports no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from one4all_lc.agents import ExpertRouterMiddleware
    from one4all_lc.answering import answer_from_documents
    from one4all_lc.base.loading import SharedBase
    from one4all_lc.card import ExpertCard
    from one4all_lc.engine.encoders import EncoderEngine
    from one4all_lc.engine.engine import Engine
    from one4all_lc.errors import (
        Abstained,
        DeadlineExceeded,
        EngineBusy,
        EngineClosed,
        InvalidInput,
        ModelNotFound,
        One4AllError,
        UnfitExpert,
        UnknownExpert,
    )
    from one4all_lc.experts.chat import ChatExpert
    from one4all_lc.experts.text import text_expert
    from one4all_lc.experts.text.classify import ClassifyExpert, PairExpert
    from one4all_lc.experts.text.extract import ExtractExpert
    from one4all_lc.experts.text.tag import TagExpert
    from one4all_lc.experts.tools import expert_tools
    from one4all_lc.library import Library
    from one4all_lc.one4all import One4All
    from one4all_lc.retrieval import DomainRetriever
    from one4all_lc.routing.route import Route
    from one4all_lc.routing.router import SemanticRouter

_HOME = {
    "Abstained": "errors",
    "ChatExpert": "experts.chat",
    "ClassifyExpert": "experts.text.classify",
    "DeadlineExceeded": "errors",
    "DomainRetriever": "retrieval",
    "EncoderEngine": "engine.encoders",
    "Engine": "engine.engine",
    "EngineBusy": "errors",
    "EngineClosed": "errors",
    "ExpertCard": "card",
    "ExpertRouterMiddleware": "agents",
    "ExtractExpert": "experts.text.extract",
    "InvalidInput": "errors",
    "Library": "library",
    "ModelNotFound": "errors",
    "One4All": "one4all",
    "One4AllError": "errors",
    "PairExpert": "experts.text.classify",
    "Route": "routing.route",
    "SemanticRouter": "routing.router",
    "SharedBase": "base.loading",
    "TagExpert": "experts.text.tag",
    "UnfitExpert": "errors",
    "UnknownExpert": "errors",
    "answer_from_documents": "answering",
    "expert_tools": "experts.tools",
    "text_expert": "experts.text",
}

__all__ = [
    "Abstained",
    "ChatExpert",
    "ClassifyExpert",
    "DeadlineExceeded",
    "DomainRetriever",
    "EncoderEngine",
    "Engine",
    "EngineBusy",
    "EngineClosed",
    "ExpertCard",
    "ExpertRouterMiddleware",
    "ExtractExpert",
    "InvalidInput",
    "Library",
    "ModelNotFound",
    "One4All",
    "One4AllError",
    "PairExpert",
    "Route",
    "SemanticRouter",
    "SharedBase",
    "TagExpert",
    "UnfitExpert",
    "UnknownExpert",
    "answer_from_documents",
    "expert_tools",
    "text_expert",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
