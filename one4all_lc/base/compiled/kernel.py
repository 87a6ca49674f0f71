"""Compiling a kernel for the type of its tensors, and running it on torch's own threads."""

import contextlib
import ctypes
import functools
import hashlib
import struct
import threading
import types
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch

_STANDS_FOR = {torch.bfloat16: "uint16", torch.float32: "float32"}


def runs(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether kernels run on tensors of this device and type."""
    return device.type == "cpu" and dtype in _STANDS_FOR


class Kernel:
    """A function that is compiled for this processor.

    It takes a pointer to its arguments. The first is the number of the next unit of work: every
    thread takes units until none is left. The second is how many there are.

    Args:
        function: It uses only what Numba compiles.
        fits: Tells for which types this processor runs it; None for all of them.
        early: Whether `compile_all` compiles it: not what few bases need.
    """

    _all: ClassVar[list["Kernel"]] = []

    def __init__(
        self,
        function: Callable[[Any], None],
        fits: Callable[[torch.dtype], bool] | None = None,
        *,
        early: bool = True,
    ) -> None:
        self._all.append(self)
        self._function = function
        self._fits, self._early = fits or (lambda _: True), early
        self._compiled: dict[torch.dtype, _Compiled] = {}

    @classmethod
    def where(
        cls, fits: Callable[[torch.dtype], bool], *, early: bool = True
    ) -> Callable[[Callable[[Any], None]], "Kernel"]:
        """Make a function a kernel for some types, or some processors, alone."""
        return lambda function: cls(function, fits, early=early)

    def __call__(
        self, dtype: torch.dtype, units: int, *arguments: int, parallel: bool = True
    ) -> None:
        """Run it.

        Args:
            dtype: Of the tensors that the arguments point to.
            units: How many units of work there are.
            *arguments: What it takes besides: numbers, and addresses of contiguous tensors.
            parallel: Whether they are worth waking other threads.

        Raises:
            MemoryError: A thread has ended early.
        """
        compiled = self._compiled.get(dtype) or self.compile(dtype)
        call = _Call(compiled, array("q", (0, units, *arguments)), parallel=parallel)
        call()
        note = getattr(_notes, "note", None)
        if note is not None:
            note(call)

    @classmethod
    def compile_all(cls, dtype: torch.dtype) -> None:
        """Compile the kernels that were imported: the first request shall not wait for it."""
        for kernel in cls._all:
            if kernel._early and kernel._fits(dtype):
                kernel.compile(dtype)

    def compile(self, dtype: torch.dtype) -> "_Compiled":
        """Compile it for a type, or read what was compiled before.

        Raises:
            TypeError: This processor cannot run it on that type; to try would end the process.
        """
        if not self._fits(dtype):
            msg = f"{self._function.__name__} does not run on {dtype} here"
            raise TypeError(msg)
        if dtype not in self._compiled:
            from numba import cfunc
            from numba import types as kinds

            from one4all_lc.base.compiled import elements

            element = getattr(kinds, _STANDS_FOR[dtype])
            signature = kinds.void(kinds.CPointer(element))
            function = _keyed(self._function)
            options = {"fastmath": elements.FAST, "error_model": "numpy"}
            try:
                made = cfunc(signature, cache=True, **options)(function)
            except RuntimeError:  # nowhere to keep it
                made = cfunc(signature, **options)(function)
            alone = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(made.address)
            name = self._function.__name__
            self._compiled[dtype] = _Compiled(name, made.address, alone, made)
        return self._compiled[dtype]


_notes = threading.local()


@contextlib.contextmanager
def noting(note: Callable[[Callable[[], None]], object]) -> Iterator[None]:
    """Note this thread's calls of kernels: each is handed over, to be made again."""
    _notes.note = note
    try:
        yield
    finally:
        _notes.note = None


class _Call:
    """A kernel with its arguments."""

    @property
    def name(self) -> str:
        """Of the kernel."""
        return self._compiled.name

    __slots__ = ("_compiled", "_given", "_pointer", "_run")

    def __init__(self, compiled: "_Compiled", given: "array[int]", *, parallel: bool) -> None:
        self._compiled, self._given = compiled, given
        self._pointer = given.buffer_info()[0]
        self._run = _together() if parallel else None

    def __call__(self) -> None:
        given = self._given
        given[0] = 0
        if self._run is None:
            self._compiled.alone(self._pointer)
        else:
            self._run(self._compiled.address, self._pointer, 0, 0)
        if given[0] < given[1]:  # Numba has printed why
            msg = f"{self._compiled.name} has done {given[0]} of {given[1]} units of work"
            raise MemoryError(msg)


class _Compiled(NamedTuple):
    """Machine code: its name, where it begins, how it is called, and what keeps it."""

    name: str
    address: int
    alone: Callable[[int], None]
    owner: object


def _keyed(function: Callable[..., None]) -> Callable[..., None]:
    """Return a function that Numba keeps under another key whenever what kernels share changes.

    Numba looks at the function's own file and at the variables that it closes over: so it is given
    one, which it does not use.
    """
    code = function.__code__.replace(co_freevars=("sources",))
    return types.FunctionType(
        code, function.__globals__, function.__name__, None, (types.CellType(_sources()),)
    )


@functools.cache
def _sources() -> str:
    """Return the hash of all that kernels are made of."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


@functools.cache
def _together() -> Callable[[int, int, int, int], None] | None:
    """Return GNU OpenMP's own way to run a function on the threads that torch's products use.

    A pool of threads beside torch's would slow both (see `base.threads`).
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        run = ctypes.CDLL(None).GOMP_parallel
        run.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        run.restype = None
        return run
    return None


def bits_of(number: float) -> int:
    """Return a float32's bits, to be passed as an argument."""
    return int.from_bytes(struct.pack("<f", number), "little")
