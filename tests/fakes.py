"""A router that finds what it is told to, an engine that remembers, and every way of asking."""

import threading
from functools import reduce
from operator import add as plus

import chromadb

from one4all_lc import One4All, SemanticRouter
from one4all_lc.routing.route import Candidate, Route
from one4all_lc.testing import FakeEmbeddings, FakeEngine, fake_library

LIKELY = {"sql": 0.6, "law": 0.3, "art": 0.08, "tax": 0.02}
ASK = "What is a lien?"


class Spied(FakeEngine):
    """Remembers what it is asked."""

    def __init__(self, answers=None, **settings):
        self.requests, self.prompts, self.rows, self.threads = [], [], [], []
        super().__init__(answers or self.say, **settings)
        real = self._decoder.forward
        self._decoder.forward = lambda rows, a: self.rows.append(len(rows)) or real(rows, a)

    def say(self, asked):
        self.prompts.append(asked.prompt)
        return f"{asked.expert} says something that is quite long about it."

    def submit(self, request, *, patience=None):
        self.requests.append(request)
        self.threads.append(threading.current_thread())
        return super().submit(request, patience=patience)


class Decided(SemanticRouter):
    """Finds what it is told to; nothing makes it abstain."""

    def __init__(self, library, likely):
        client = chromadb.EphemeralClient()
        super().__init__(library=library, embeddings=FakeEmbeddings(), client=client)
        self.likely = likely

    def invoke(self, input, config=None, **settings):  # noqa: A002
        experts = tuple(Candidate(name, p, p) for name, p in self.likely.items())
        abstained = not experts or experts[0].probability == 0
        reason = "below_threshold" if abstained else "matched"
        return Route(ASK, experts, abstained, reason, 0.5, 0.4, 0.3, (), self.fingerprint)

    async def ainvoke(self, input, config=None, **settings):  # noqa: A002
        return self.invoke(input, config)


NOBODYS = dict.fromkeys(LIKELY, 0.0)


async def every_way(model, question=ASK, **settings):
    """Return the answers of all ways of asking."""
    return [
        model.invoke(question, **settings),
        await model.ainvoke(question, **settings),
        reduce(plus, list(model.stream(question, **settings))),
        reduce(plus, [chunk async for chunk in model.astream(question, **settings)]),
    ]


def deciding(engine, likely=LIKELY, **settings):
    """A One4All on an engine, whose router finds what it is told to."""
    return One4All(engine=engine, router=Decided(fake_library(*LIKELY), likely), **settings)
