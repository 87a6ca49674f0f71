"""Steps in which everybody decodes: recorded once for a number of rows, then done again.

Recordings are of few sizes. Where rows are fewer the last one is computed several times: it writes
into the cache what it writes there anyway.
"""

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
        rows = len(tokens.ids)
        key = (_size(rows), place, _kind(plan))
        step = self._steps.pop(key, 0)
        if isinstance(step, _Step):
            self._steps[key] = step
            return step.run(tokens, plan)[:rows]
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
        return logits[:rows]

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
        self._rows = _size(len(tokens.ids))
        self.tokens = Tokens(*(item.new_empty(self._rows) for item in _parts(tokens)))
        # A unit of work for every row, if need be: there are fewer where neighbours share adapters.
        self._units = torch.zeros(self._rows, 5, dtype=torch.long)
        self.plan = Plan(self._rows, tuple(self._segment(item) for item in plan.segments))
        self._fill(tokens, plan)

    def run(self, tokens: Tokens, plan: Plan) -> Tensor:
        self._fill(tokens, plan)
        return self.recording.run()

    def _segment(self, segment: Segment) -> TableSegment:
        assert isinstance(segment, TableSegment)
        return TableSegment(slice(0, self._rows), self._units, (), segment.groups, segment.reads)

    def _fill(self, tokens: Tokens, plan: Plan) -> None:
        rows = len(tokens.ids)
        for mine, given in zip(_parts(self.tokens), _parts(tokens), strict=True):
            mine[:rows] = given
            mine[rows:] = given[rows - 1]
        self._units.zero_()
        for segment in plan.segments:
            assert isinstance(segment, TableSegment)
            count = len(segment.units)
            self._units[:count] = segment.units
            first, of_last, *mixture = segment.units[-1].tolist()
            if first + of_last == rows:  # the last row has adapters, and so have its copies
                copies = [[row, 1, *mixture] for row in range(rows, self._rows)]
                self._units[count : count + len(copies)] = torch.tensor(copies).view(-1, 5)


def _size(rows: int) -> int:
    """Return how many rows a recording for so many has: at most an eighth is for nothing."""
    step = 1 << max(0, (rows - 1).bit_length() - 3)
    return -(-rows // step) * step


def _parts(tokens: Tokens) -> Sequence[Tensor]:
    return tokens.ids, tokens.slots, tokens.positions, tokens.last


def _kind(plan: Plan) -> object:
    """What a recorded step depends on besides its tensors: which groups adapters add to."""
    return tuple(
        frozenset(segment.groups.items())
        for segment in plan.segments
        if isinstance(segment, TableSegment)
    )
