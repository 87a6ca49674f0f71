"""Whether the expert that a question is routed to can answer it: the router does not ask that."""

from collections.abc import Container, Mapping
from dataclasses import replace
from typing import Any, Protocol

from one4all_lc.experts.options import must_have_form
from one4all_lc.folder import Expert
from one4all_lc.head import CHAT
from one4all_lc.routing.route import Reason, Route


class Experts(Container[object], Protocol):
    """A library, as far as it is asked here."""

    def __getitem__(self, name: str, /) -> Expert: ...


_NOTHING: Mapping[str, Any] = {}


def answerable(route: Route, experts: Experts, settings: Mapping[str, Any] = _NOTHING) -> Route:
    """Return the route, which abstains if that expert cannot answer.

    Args:
        route: The router's.
        experts: Those in use.
        settings: Keywords of the call.
    """
    reason = _hindrance(route.best, route.question, experts, settings) if route.best else None
    return replace(route, abstained=True, reason=reason) if reason else route


def _hindrance(
    name: str, question: str, experts: Experts, settings: Mapping[str, Any]
) -> Reason | None:
    if name not in experts:  # taken out of use since it was routed
        return "removed"
    kind = experts[name].card.kind
    if kind == CHAT:
        return None
    if must_have_form(settings):
        return "decides"
    from one4all_lc.experts.text.asking import is_whole

    return None if is_whole(kind, question) else "incomplete"
