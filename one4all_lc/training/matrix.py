"""Every expert on every domain's rows, and the routed answers against oracle, random and base."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from one4all_lc.base.loading import SharedBase
from one4all_lc.card import BASE, PERPLEXITY
from one4all_lc.errors import InvalidInput
from one4all_lc.folder import Expert
from one4all_lc.training import intervals
from one4all_lc.training.baselines import nearest_answers
from one4all_lc.training.data import Row
from one4all_lc.training.evaluation import Examination
from one4all_lc.training.intervals import Array
from one4all_lc.training.measuring import BARE, Advance, Asked, HeldOut, answers, losses
from one4all_lc.training.scores import Score, check_metric, score_all, scores_of

if TYPE_CHECKING:
    from one4all_lc.library import Library

Router = Callable[[list[str]], Sequence[str | None]]
"""From questions to the experts' names; None where the router abstains."""


@dataclass(frozen=True)
class Domain:
    """A column: what one expert is for.

    Attributes:
        expert: The expert whose domain it is.
        held_out: Its rows, which fit whoever is asked.
        looked_up: What the nearest training questions answer; None without training rows.
    """

    expert: Expert
    held_out: HeldOut
    looked_up: tuple[str, ...] | None

    @property
    def name(self) -> str:
        """The expert's name."""
        return self.expert.name

    @property
    def decides(self) -> str:
        """The metric of answers that decides: a perplexity says nothing of a routed answer."""
        metric = self.expert.card.metric
        return "rouge_l" if metric == PERPLEXITY else metric


@dataclass(frozen=True)
class Matrix:
    """What everybody makes of every domain.

    The base is asked by each domain's own prompt, so that a column compares adapters; experts by
    their own, as they are served.

    Attributes:
        shared: The base.
        names: Who is asked, `base` last.
        domains: The columns.
        nats: By who and domain: (rows,) summed cross entropies.
        tokens: By domain: (rows,) tokens of the answers.
        scores: By metric, who and domain: (answered rows,) scores; `nearest` is among those asked.
        routed: By domain: (answered rows,) scores of whom the router chose.
        chosen: By domain: whom it chose, None where it abstained and the bare base answered.
    """

    shared: SharedBase
    names: tuple[str, ...]
    domains: tuple[Domain, ...]
    nats: Mapping[tuple[str, str], Array]
    tokens: Mapping[str, Array]
    scores: Mapping[str, Mapping[tuple[str, str], Array]]
    routed: Mapping[str, Array]
    chosen: Mapping[str, tuple[str | None, ...]]

    def deciding(self, who: str, domain: Domain) -> Array:
        """Return somebody's (answered rows,) scores by the domain's own metric."""
        return self.scores[domain.decides][who, domain.name]

    def ratio(self, who: str, domain: Domain) -> float:
        """Return somebody's perplexity over the base's."""
        gain = self.nats[who, domain.name] - self.nats[BASE, domain.name]
        return float(np.exp(gain.sum() / self.tokens[domain.name].sum()))

    def examination(self, domain: Domain) -> Examination:
        """Return the domain's own expert against the base, as training measures it."""
        who = {"base": BASE, "expert": domain.name, "nearest": "nearest"}
        return Examination(
            domain.expert,
            self.shared,
            domain.held_out,
            {name: self.nats[key, domain.name] for name, key in list(who.items())[:2]},
            self.tokens[domain.name],
            {
                metric: {
                    name: by_who[key, domain.name]
                    for name, key in who.items()
                    if (key, domain.name) in by_who
                }
                for metric, by_who in self.scores.items()
            },
        )

    def own_is_best(self, domain: Domain) -> bool:
        """Whether no expert surely answers better than the domain's own one."""
        own = self.deciding(domain.name, domain)
        others = [self.deciding(name, domain) for name in self.names]
        return all(intervals.of_difference(other, own)[0] <= 0 for other in others)

    def ways(self) -> dict[str, dict[str, Any]]:
        """Return the mean score by who answers: the router, the oracle, anybody, the base.

        `random` is the mean over all experts, which is what drawing one would give.
        """
        experts = [name for name in self.names if name != BASE]
        by_way = {
            "routed": self.routed,
            "oracle": {d.name: self.deciding(d.name, d) for d in self.domains},
            "random": {
                d.name: np.mean([self.deciding(name, d) for name in experts], axis=0)
                for d in self.domains
            },
            "base": {d.name: self.deciding(BASE, d) for d in self.domains},
        }
        return {way: _mean_of_domains(by_domain) for way, by_domain in by_way.items()}


def domains_of(
    library: "Library",
    data: Mapping[str, Sequence[Row]],
    shared: SharedBase,
    *,
    scored: int,
    answered: int,
) -> tuple[Domain, ...]:
    """Draw the held-out rows of every domain.

    Args:
        library: The experts that will be asked.
        data: Rows by the name of the expert whose they are.
        shared: The base.
        scored: Rows of a domain whose perplexity is measured.
        answered: Of these, rows that are answered.

    Raises:
        InvalidInput: A domain has no held-out row, or none that is no exemplar.
        UnknownExpert: There is no expert of that name.
    """
    asked = [Asked.of(expert) for expert in library]
    exemplars = {_bare(item.text) for expert in library for item in expert.exemplars}
    found = []
    for name, rows in data.items():
        expert = library[name]
        # Routed answers are held against the oracle's with questions that no exemplar was.
        new = [row for row in rows if row.split == "train" or _bare(row.question) not in exemplars]
        try:
            held_out = HeldOut.drawn(new, scored, answered).that_fit(shared, [*asked, BARE])
        except InvalidInput as error:
            msg = f"The rows of {name!r} measure nothing: {error}"
            raise InvalidInput(msg) from error
        questions = [row.question for row in held_out.to_answer]
        looked_up = nearest_answers(rows, questions)
        found.append(Domain(expert, held_out, tuple(looked_up) if looked_up else None))
    return tuple(found)


def fill(
    library: "Library",
    domains: Sequence[Domain],
    shared: SharedBase,
    router: Router,
    *,
    scorer: str | None = None,
    advance: Advance | None = None,
) -> Matrix:
    """Ask everybody everything, as served.

    Args:
        library: The experts.
        domains: The columns.
        shared: The base.
        router: Chooses for each question.
        scorer: `module:function` of a metric of the user's own.
        advance: Called for every row that is read or answered; `cells` says how many there are.

    Raises:
        InvalidInput: A domain's metric is not measured.
    """
    by_name = scores_of(scorer)
    for domain in domains:
        check_metric(domain.expert.card.metric, by_name)
    asked = {expert.name: Asked.of(expert) for expert in library}
    pairs = {
        (who, domain.name): asked[who] if who in asked else asked[domain.name].without_adapter()
        for domain in domains
        for who in (*asked, BASE)
    }
    of = {domain.name: domain for domain in domains}
    rows = {name: domain.held_out for name, domain in of.items()}
    read = {
        (who, name): losses(shared, rows[name].rows, one, advance)
        for (who, name), one in pairs.items()
    }
    given = answers(
        shared, [(one, rows[name].to_answer) for (_, name), one in pairs.items()], advance
    )
    texts = dict(zip(pairs, given, strict=True))
    texts |= {("nearest", d.name): list(d.looked_up) for d in domains if d.looked_up is not None}
    scores = {metric: _scored(metric, score, texts, of) for metric, score in by_name.items()}
    chosen = {name: _routed(router, held_out) for name, held_out in rows.items()}
    routed = {
        name: _routed_scores(shared, of[name], names, texts, by_name)
        for name, names in chosen.items()
    }
    nats = {pair: found[0] for pair, found in read.items()}
    tokens = {name: read[name, name][1] for name in of}
    names = (*asked, BASE)
    return Matrix(shared, names, tuple(domains), nats, tokens, scores, routed, chosen)


def cells(library: "Library", domains: Sequence[Domain]) -> int:
    """Return how many rows `fill` reads and answers, the few of abstentions aside."""
    rows = sum(len(d.held_out.rows) + len(d.held_out.to_answer) for d in domains)
    return rows * (len(library) + 1)


def _scored(
    metric: str,
    score: Score,
    texts: Mapping[tuple[str, str], list[str]],
    domains: Mapping[str, Domain],
) -> dict[tuple[str, str], Array]:
    wanted = {n: [row.answer for row in d.held_out.to_answer] for n, d in domains.items()}
    return {
        (who, name): score_all(metric, score, given, wanted[name])
        for (who, name), given in texts.items()
    }


def _routed(router: Router, held_out: HeldOut) -> tuple[str | None, ...]:
    return tuple(router([row.question for row in held_out.to_answer]))


def _routed_scores(
    shared: SharedBase,
    domain: Domain,
    chosen: Sequence[str | None],
    texts: Mapping[tuple[str, str], list[str]],
    by_name: Mapping[str, Score],
) -> Array:
    """Return the scores of whom the router chose; the bare base answers what is nobody's."""
    rows = domain.held_out.to_answer
    alone = [row for row, who in zip(rows, chosen, strict=True) if who is None]
    (by_base,) = answers(shared, [(BARE, alone)])
    left = iter(by_base)
    given = [
        next(left) if who is None else texts[who, domain.name][index]
        for index, who in enumerate(chosen)
    ]
    wanted = [row.answer for row in rows]
    return score_all(domain.decides, by_name[domain.decides], given, wanted)


def _mean_of_domains(by_domain: Mapping[str, Array]) -> dict[str, Any]:
    """Return the mean of the domains' means, so that a large domain counts like a small one."""
    means = {name: float(values.mean()) for name, values in by_domain.items()}
    return {
        "score": round(sum(means.values()) / len(means), 4),
        "domains": {name: round(mean, 4) for name, mean in means.items()},
    }


def _bare(text: str) -> str:
    return " ".join(text.casefold().split())
