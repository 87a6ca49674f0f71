"""Choosing the next tokens, by transformers' own processors."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers.generation.logits_process import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from one4all_lc.engine.grammar import Matcher
from one4all_lc.sampling import Sampling


class Sampler:
    """Chooses the tokens of one request, as `generate` would with the same settings.

    Args:
        sampling: The request's settings.
        device: Where the logits are.
        end_tokens: The tokens that end an answer.
        matcher: Says which tokens may come, if the answer must have a form.
        closing: After so many tokens an answer of a form is brought to its end.
    """

    def __init__(
        self,
        sampling: Sampling,
        device: torch.device,
        end_tokens: frozenset[int] = frozenset(),
        matcher: Matcher | None = None,
        closing: int = 0,
    ) -> None:
        self._matcher, self._closing = matcher, closing
        self._draws = sampling.temperature > 0
        self._min_tokens, self.end_tokens = sampling.min_tokens, sorted(end_tokens)
        self._generator: torch.Generator | None = None
        if sampling.seed is not None:
            self._generator = torch.Generator(device).manual_seed(sampling.seed)
        self._processors = LogitsProcessorList()
        if sampling.repetition_penalty != 1:
            self._processors.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
        if self._draws:
            self._processors.append(TemperatureLogitsWarper(sampling.temperature))
            if sampling.top_k:
                self._processors.append(TopKLogitsWarper(sampling.top_k))
            if sampling.top_p < 1:
                self._processors.append(TopPLogitsWarper(sampling.top_p))

    def choose(self, logits: Tensor, prompt: Sequence[int], tokens: Sequence[int]) -> int:
        """Return the next token.

        Args:
            logits: Shape (vocabulary,).
            prompt: The prompt, which counts as said for the repetition penalty.
            tokens: The tokens chosen so far.

        Raises:
            FloatingPointError: The logits are not finite: the row's adapter or cache is broken.
        """
        scores = logits[None].float()
        if not bool(torch.isfinite(scores.max())):
            raise FloatingPointError(_NOT_FINITE)
        forbidden = self.forbidden(len(tokens), scores.shape[1], scores.device)
        # Before the processors: what they keep of the likeliest must be what may come.
        if forbidden is not None:
            scores = scores.masked_fill(forbidden, -torch.inf)
        if self._processors:
            seen = torch.tensor([[*prompt, *tokens]], device=scores.device)
            scores = self._processors(seen, scores)
        if not self._draws:
            return int(scores.argmax())
        probabilities = torch.softmax(scores, -1)
        return int(torch.multinomial(probabilities, 1, generator=self._generator))

    @property
    def likeliest_only(self) -> bool:
        """Whether the next token is always the likeliest that may come."""
        return not self._draws and not self._processors

    def forbidden(self, count: int, vocabulary: int, device: torch.device) -> Tensor | None:
        """Return which tokens may not come after `count` others, shape (vocabulary,), bool."""
        early = self.must_go_on(count)
        if self._matcher is None:
            if not early:
                return None
            allowed = torch.ones(vocabulary, dtype=torch.bool)
        else:
            allowed = self._matcher.allowed(vocabulary, closing=count >= self._closing)
        ends = torch.tensor(self.end_tokens if early else [], dtype=torch.long)
        longer = allowed.index_fill(0, ends, value=False)
        # A form that is complete ends, however short.
        return ~(longer if longer.any() else allowed).to(device)

    def must_go_on(self, count: int) -> bool:
        """Whether an answer of `count` tokens is too short to end."""
        return count < self._min_tokens and bool(self.end_tokens)

    @property
    def has_form(self) -> bool:
        """Whether the answer must have a form."""
        return self._matcher is not None

    def accept(self, token: int) -> bool:
        """Note the token that was chosen; return whether the answer's form ends with it."""
        if self._matcher is None:
            return False
        self._matcher.accept(token)
        return self._matcher.ended


def likeliest(
    logits: Tensor, samplers: Sequence[Sampler], counts: Sequence[int]
) -> list[int | None]:
    """Return the next tokens of all rows that take the likeliest, at once; None for the others.

    Args:
        logits: Shape (rows, vocabulary); forbidden tokens are overwritten.
        samplers: One a row.
        counts: How many tokens each row has chosen.
    """
    rows = [i for i, sampler in enumerate(samplers) if sampler.likeliest_only]
    if not rows:
        return [None] * len(samplers)
    formed = [i for i in rows if samplers[i].has_form]
    for i in formed:
        forbidden = samplers[i].forbidden(counts[i], logits.shape[1], logits.device)
        assert forbidden is not None  # a form forbids, if only nothing
        logits[i].masked_fill_(forbidden, -torch.inf)
    short = [i for i in rows if i not in formed and samplers[i].must_go_on(counts[i])]
    if short:
        ends = samplers[short[0]].end_tokens  # an engine's, so everybody's
        logits[torch.tensor(short)[:, None], torch.tensor(ends)] = -torch.inf
    values, tokens = logits.max(-1)
    finite = torch.isfinite(values).tolist()
    # What is not finite is left to `choose`, which says so.
    likely = [token if ok else None for token, ok in zip(tokens.tolist(), finite, strict=True)]
    return [likely[i] if samplers[i].likeliest_only else None for i in range(len(samplers))]


_NOT_FINITE = "The model's logits are not finite: its weights or an adapter's are broken."
