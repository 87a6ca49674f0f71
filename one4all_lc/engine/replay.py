"""Steps in which everybody decodes: recorded once for a number of rows, then done again."""

import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from one4all_lc.base.compiled.recording import Recording, record
from one4all_lc.base.lora import Plan, Segment
from one4all_lc.base.tables import TableSegment

_log = logging.getLogger(__name__)

_MOST = 16
"""Recordings that are kept: each has the memory of one forward."""

_WORTH = 2
"""A step is recorded when it comes for this time: recording takes as long as three steps."""


@dataclass(frozen=True, eq=False)
class Tokens:
    """One forward's tokens, one after another.

    Attributes:
        ids: Token ids, shape (tokens,).
        slots: The slot in the cache of each.
        positions: The column of each.
        last: Which of them are the last of the rows, shape (rows,), in the rows' own order.
    """

    ids: Tensor
    slots: Tensor
    positions: Tensor
    last: Tensor


class Replay:
    """Runs steps in which every row decodes.

    Args:
        forward: Computes logits, shape (rows, vocabulary), of tokens by a plan.
    """

    def __init__(self, forward: Callable[[Tokens, Plan], Tensor]) -> None:
        self._forward = forward
        self._steps: OrderedDict[object, _Step | int] = OrderedDict()  # or how often it came
        self._possible = True

    def __call__(self, tokens: Tokens, plan: Plan, place: object) -> Tensor:
        """Return the logits, which the next step may overwrite.

        Args:
            tokens: One a row.
            plan: What adapters add to them.
            place: Changes whenever the cache lies elsewhere.
        """
        if not self._possible:
            return self._forward(tokens, plan)
        key = (len(tokens.ids), place, _kind(plan))
        step = self._steps.pop(key, 0)
        if isinstance(step, _Step):
            self._steps[key] = step
            return step.run(tokens, plan)
        if step + 1 < _WORTH:
            self._keep(key, step + 1)
            return self._forward(tokens, plan)
        step = _Step(tokens, plan)
        logits, recording = record(lambda: self._forward(step.tokens, step.plan))
        if recording is None:
            _log.info("steps of this base cannot be recorded: each is computed by its own code")
            self._possible = False
        else:
            step.recording = recording
            self._keep(key, step)
        return logits

    @property
    def memory_bytes(self) -> int:
        """Bytes of all recordings."""
        steps = list(self._steps.values())  # read by other threads
        return sum(step.recording.memory_bytes for step in steps if isinstance(step, _Step))

    def _keep(self, key: object, step: "_Step | int") -> None:
        self._steps[key] = step
        if len(self._steps) > _MOST:
            self._steps.popitem(last=False)


class _Step:
    """A recorded step, and the tensors that it reads."""

    recording: Recording

    def __init__(self, tokens: Tokens, plan: Plan) -> None:
        self.tokens = Tokens(*(item.clone() for item in _parts(tokens)))
        # A unit of work for every row, if need be: there are fewer where neighbours share adapters.
        self._units = torch.zeros(len(tokens.ids), 5, dtype=torch.long)
        self.plan = Plan(plan.decoding, tuple(self._segment(item) for item in plan.segments))
        self._fill(tokens, plan)

    def run(self, tokens: Tokens, plan: Plan) -> Tensor:
        self._fill(tokens, plan)
        return self.recording.run()

    def _segment(self, segment: Segment) -> TableSegment:
        assert isinstance(segment, TableSegment)
        return TableSegment(segment.tokens, self._units, (), segment.groups)

    def _fill(self, tokens: Tokens, plan: Plan) -> None:
        for mine, given in zip(_parts(self.tokens), _parts(tokens), strict=True):
            mine.copy_(given)
        self._units.zero_()
        for segment in plan.segments:
            assert isinstance(segment, TableSegment)
            self._units[: len(segment.units)] = segment.units


def _parts(tokens: Tokens) -> Sequence[Tensor]:
    return tokens.ids, tokens.slots, tokens.positions, tokens.last


def _kind(plan: Plan) -> object:
    """What a recorded step depends on besides its tensors: which groups adapters add to."""
    return tuple(
        (segment.tokens.stop, frozenset(segment.groups.items()))
        for segment in plan.segments
        if isinstance(segment, TableSegment)
    )
