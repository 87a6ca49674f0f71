"""How the tests ask an engine."""

import contextlib

from langchain_core.messages import HumanMessage, SystemMessage

from one4all_lc.engine.engine import Engine
from one4all_lc.engine.request import Request
from one4all_lc.experts.messages import render, to_turns
from one4all_lc.sampling import Sampling

TOKENS = 16


def prompt_of(base, question, system=None):
    messages = [SystemMessage(system)] if system else []
    return tuple(render(base.tokenizer, to_turns([*messages, HumanMessage(question)])))


def request(base, question, *experts, system=None, timeout=None, **sampling):
    """A request; `experts` count in full unless they are (expert, weight) pairs."""
    settings = Sampling(**{"max_tokens": TOKENS, **sampling})
    mixture = tuple(item if isinstance(item, tuple) else (item, 1.0) for item in experts)
    return Request(prompt_of(base, question, system), mixture, settings, timeout)


@contextlib.contextmanager
def engine_with(base, **settings):
    """An engine with settings of its own: a base has one at a time."""
    Engine.of(base).close()
    engine = Engine(base, **settings)
    try:
        yield engine
    finally:
        engine.close()


def adapter_bytes(expert, itemsize=2):
    """Bytes that an adapter takes in memory."""
    sizes = (f.rank * (f.in_features + f.out_features) for f in expert.factors.values())
    return sum(sizes) * itemsize
