"""What a forward did, recorded to be done again: the same operations on the same memory.

A forward of one token a row spends a quarter of its time in Python: modelling code, shapes, new
tensors. While only the contents of its inputs change it does the same again, so it is recorded once
as the list of what it computed, our kernels' calls and torch's operations, and then that list is
run. It is what a CUDA graph is for kernels of a CPU.
"""

import contextlib
import functools
import weakref
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from one4all_lc.base.compiled.kernel import noting

_DEPENDS_ON_DATA = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
_MAKES_ROOM = {"aten::empty", "aten::new_empty", "aten::empty_like", "aten::empty_strided"}


Step = Callable[[], object]
"""One of our kernels with its arguments, or one of torch's operations with its own."""


class Recording:
    """A function's operations, and where its result is found after each run.

    Attributes:
        steps: What is done, in this order.
        result: Where the last of them leave what the function returned.

    Args:
        steps: See there.
        result: See there.
        memory: Of what they make.
        kept: What else they point to: our kernels' calls hold addresses alone.
    """

    def __init__(self, steps: list[Step], result: Tensor, memory: "_Memory", kept: object) -> None:
        self.steps, self.result, self._memory, self._kept = steps, result, memory, kept

    @property
    def memory_bytes(self) -> int:
        """Bytes of what its steps make."""
        return self._memory.memory_bytes

    @torch.inference_mode()
    def run(self) -> Tensor:
        """Do it all again; return what the next run overwrites."""
        for step in self.steps:
            step()
        return self.result


@torch.inference_mode()
def record(function: Callable[[], Tensor]) -> tuple[Tensor, Recording | None]:
    """Run a function and record it.

    Args:
        function: It reads tensors that outlive it, and writes only such tensors and its own.

    Returns:
        What it returned, and the recording; None if it cannot be done again, because it looks at
        what it has computed, or because that gave something else.
    """
    recorder = _Recorder()
    with noting(recorder.steps.append), recorder:
        found = function()
    result = found.clone()
    if recorder.looks:
        return result, None
    recording = Recording(recorder.steps, found, recorder.memory, recorder.kept)
    recorder.memory.spoil()
    same = torch.allclose(recording.run(), result, rtol=0, atol=0, equal_nan=True)
    return result, recording if same else None


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes torch's operations, and gives what they make a place that outlives it.

    Attributes:
        steps: What was done.
        kept: What the steps point to.
        looks: Whether an operation's outcome was looked at, or decided a shape.
        memory: Of the tensors that it made.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.steps: list[Step] = []
        self.kept: list[object] = []
        self.looks = False
        self.memory = _Memory()

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run an operation and note it."""
        kwargs = kwargs or {}
        result = operation(*args, **kwargs)
        given, made = _tensors([args, *kwargs.values()]), _tensors([result])
        self.looks |= _looks(operation, given, result)
        if self.looks:  # no recording will be made
            return result
        if operation._schema.is_mutable:
            self.steps.append(self._again(operation, args, kwargs))
            return result
        places = {_place(item) for item in given}
        if all(_place(item) in places for item in made):
            for view in made:
                self._keep(view)
            return result
        result = _mapped(self.memory.placed, result)
        if operation._schema.name not in _MAKES_ROOM:
            self.steps.append(self._into(operation, args, kwargs, _tensors([result])))
        return result

    def _keep(self, view: Tensor) -> None:
        """Keep a view's memory: it is in use as long as the view is, or for good if not ours."""
        if not self.memory.use(view):
            self.kept.append(view)

    def _again(self, operation: Any, args: Any, kwargs: Any) -> functools.partial[Any]:
        args = _mapped(self.memory.lasting, args)
        named = {name: _mapped(self.memory.lasting, item) for name, item in kwargs.items()}
        return functools.partial(operation, *args, **named)

    def _into(self, operation: Any, args: Any, kwargs: Any, made: Sequence[Tensor]) -> Step:
        """Return an operation that makes tensors as a step that fills those it made first."""
        places = [self.memory.lasting(item) for item in made]
        again = self._again(operation, args, kwargs)
        into = getattr(operation.overloadpacket, "out", None)
        if into is not None and len(places) == 1:
            step = functools.partial(into, *again.args, **again.keywords, out=places[0])
            with contextlib.suppress(RuntimeError, TypeError):  # it takes other arguments
                step()
                return step
        return functools.partial(_fill, places, again)


def _fill(places: Sequence[Tensor], operation: Callable[[], Any]) -> None:
    """Put what an operation makes into places."""
    for place, item in zip(places, _tensors([operation()]), strict=True):
        place.copy_(item)


def _tensors(values: Sequence[Any]) -> list[Tensor]:
    """Return the tensors among values, and in the sequences among them, in their order."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += _tensors(value)
    return found


def _mapped(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Return a value with every tensor in it replaced."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, list | tuple):
        return type(value)([_mapped(function, item) for item in value])
    return value


def _looks(operation: Any, given: Sequence[Tensor], result: Any) -> bool:
    """Whether what an operation computes decides what Python does next, or a shape."""
    if not isinstance(result, Tensor | list | tuple):
        return True
    if _DEPENDS_ON_DATA.isdisjoint(operation.tags):
        return False
    by_number = all(item.dtype != torch.bool for item in given[1:])
    return not (operation is torch.ops.aten.index.Tensor and by_number)


def _place(tensor: Tensor) -> int:
    """Where a tensor's memory begins; of those in a layout of oneDNN's there is nothing to know."""
    return 0 if tensor.is_mkldnn else tensor.untyped_storage().data_ptr()


class _Memory:
    """Blocks of memory for tensors; a block whose tensors are gone is given to others.

    So a recording takes no more than the forward itself did at once, not all that it ever made.
    """

    def __init__(self) -> None:
        self._blocks: dict[int, Tensor] = {}
        self._free: dict[int, list[Tensor]] = defaultdict(list)
        self._users: dict[int, int] = defaultdict(int)
        self._watched: dict[int, weakref.ref[Tensor]] = {}

    def placed(self, made: Tensor) -> Tensor:
        """Return a tensor like one just made, with what is in it, in a block."""
        size = (made.untyped_storage().nbytes() + 63) // 64 * 64
        free = self._free[size]
        block = free.pop() if free else torch.empty(max(size, 64), dtype=torch.uint8)
        self._blocks[block.untyped_storage().data_ptr()] = block
        room = torch.empty(0, dtype=made.dtype).set_(block.untyped_storage())
        tensor = room.as_strided(made.shape, made.stride(), made.storage_offset()).copy_(made)
        self.use(tensor)
        return tensor

    def use(self, tensor: Tensor) -> bool:
        """Count a tensor as a user of its block as long as it lives; False if it has none."""
        place = _place(tensor)
        if place not in self._blocks:
            return False
        key = id(tensor)
        if key in self._watched:
            return True
        self._users[place] += 1

        def gone(_: object) -> None:
            del self._watched[key]
            self._users[place] -= 1
            if not self._users[place]:
                block = self._blocks[place]
                self._free[block.nbytes].append(block)

        self._watched[key] = weakref.ref(tensor, gone)
        return True

    def lasting(self, tensor: Tensor) -> Tensor:
        """Return a tensor for the steps, which does not count as a user."""
        if _place(tensor) not in self._blocks:
            return tensor
        return tensor.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())

    @property
    def memory_bytes(self) -> int:
        """Bytes of all blocks."""
        return sum(block.nbytes for block in self._blocks.values())

    def spoil(self) -> None:
        """Overwrite everything: what is not computed anew shall be seen."""
        for block in self._blocks.values():
            block.fill_(0xFF)
