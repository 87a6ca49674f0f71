"""Which adapters are in memory: loaded on a thread of their own, evicted least recently used."""

import enum
import hashlib
import json
import math
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from one4all_lc.base.threads import compute_alone
from one4all_lc.errors import UnfitExpert
from one4all_lc.folder import Expert, LoraFactor
from one4all_lc.tensors import FLOATS
from one4all_lc.versions import weights_kept

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from torch import Tensor

    from one4all_lc.base.lora import Adapter

    Array = NDArray[Any]
    Bytes = NDArray[np.uint8]

DEFAULT_BUDGET = 1 << 29
"""Bytes of adapters that are in memory."""


_EMPTY = np.zeros(0, np.uint8)


class Readiness(enum.Enum):
    """Whether a request's adapters can be used now."""

    READY = "ready"
    LOADING = "loading"
    FULL = "full"


class Residency:
    """The adapters in memory, by identity.

    Args:
        device: Where they are put.
        dtype: In which type.
        budget: Bytes; more than that is evicted, least recently used first, never what is in use.
        on_loaded: Called from the loading thread whenever a load has ended, well or not.
    """

    def __init__(
        self,
        device: "torch.device",
        dtype: "torch.dtype",
        budget: int = DEFAULT_BUDGET,
        on_loaded: Callable[[], None] = lambda: None,
    ) -> None:
        self.budget = budget
        self._device, self._dtype, self._on_loaded = device, dtype, on_loaded
        self._lock = threading.RLock()  # a garbage collection inside may call `_drop`
        self._adapters: OrderedDict[str, Adapter] = OrderedDict()
        self._users: dict[str, int] = {}
        self._loading: dict[str, int] = {}  # bytes
        self._failed: dict[str, Exception] = {}  # told to the next who asks
        self._watched: dict[str, weakref.finalize[Any, Expert]] = {}
        self._loader = ThreadPoolExecutor(1, "one4all-adapters", initializer=compute_alone)
        self.loads = 0

    def acquire(self, experts: Sequence[Expert], *, load: bool = True) -> Readiness:
        """Take a request's adapters if all are in memory; `release` gives them back.

        Never waits: what is missing starts to load, if there is room beside what is in use.

        Args:
            experts: Those of one request.
            load: False only looks.

        Raises:
            UnfitExpert: The weights on disk are no longer those that an expert was read with.
        """
        with self._lock:
            for expert in experts:
                failure = self._failed.pop(expert.identity, None)
                if failure is not None:
                    raise failure
            missing = [item for item in experts if item.identity not in self._adapters]
            if not missing:
                for expert in experts:
                    self._users[expert.identity] = self._users.get(expert.identity, 0) + 1
                    self._adapters.move_to_end(expert.identity)
                return Readiness.READY
            new = {item.identity: item for item in missing if item.identity not in self._loading}
            wanted = list(new.values())
            if not wanted or not load:
                return Readiness.LOADING
            kept = {expert.identity for expert in experts}
            if not self._has_room(wanted, kept):
                return Readiness.FULL
            for expert in wanted:
                self._loading[expert.identity] = self._bytes(expert)
                self._loader.submit(self._load_and_keep, expert, kept)
            self._evict(kept)
            return Readiness.LOADING

    def release(self, expert: Expert) -> None:
        """Give back what one `acquire` took."""
        with self._lock:
            self._users[expert.identity] -= 1
            if not self._users[expert.identity]:
                del self._users[expert.identity]
            self._evict(set())

    def load(self, expert: Expert) -> "Adapter":
        """Load an adapter at once, for its caller alone.

        Raises:
            UnfitExpert: The weights on disk are no longer those that the expert was read with.
        """
        return _load(expert, self._device, self._dtype)

    def close(self) -> None:
        """Load no more."""
        self._loader.shutdown(wait=True, cancel_futures=True)
        with self._lock:
            self._adapters.clear()

    def __getitem__(self, identity: str) -> "Adapter":
        """Return an adapter that somebody has acquired."""
        return self._adapters[identity]

    def __contains__(self, identity: object) -> bool:
        return identity in self._adapters

    @property
    def memory_bytes(self) -> int:
        """Bytes of all adapters in memory, not packed."""
        with self._lock:
            return sum(adapter.memory_bytes for adapter in self._adapters.values())

    @property
    def identities(self) -> tuple[str, ...]:
        """The adapters in memory, least recently used first."""
        with self._lock:
            return tuple(self._adapters)

    def _bytes(self, expert: Expert) -> int:
        size = sum(f.rank * (f.in_features + f.out_features) for f in expert.factors.values())
        head = sum(math.prod(shape) for shape in expert.head.values())
        return size * self._dtype.itemsize + 4 * head

    def _has_room(self, wanted: Sequence[Expert], kept: set[str]) -> bool:
        """Whether these fit beside what is in use; what runs alone always does."""
        if not self._users and not self._loading:
            return True
        held = sum(
            self._adapters[i].memory_bytes for i in self._adapters if i in self._users or i in kept
        )
        loading = sum(self._loading.values())
        return held + loading + sum(map(self._bytes, wanted)) <= self.budget

    def _evict(self, kept: set[str]) -> None:
        """Make the budget hold; what is loading counts already."""
        idle = [item for item in self._adapters if item not in self._users and item not in kept]
        total = self.memory_bytes + sum(self._loading.values())
        for identity in idle:
            if total <= self.budget:
                return
            total -= self._adapters.pop(identity).memory_bytes

    def _load_and_keep(self, expert: Expert, kept: set[str]) -> None:
        """Load one of a request's adapters without losing the others."""
        identity = expert.identity
        try:
            loaded = self.load(expert)
        except Exception as error:
            with self._lock:
                self._failed[identity] = error
                del self._loading[identity]
        else:
            with self._lock:
                self._adapters[identity] = loaded
                del self._loading[identity]
                self.loads += 1
                self._evict(kept)
            # Once neither a library nor a request knows the expert, nobody can ask for it again.
            self._drop_with(expert)
        self._on_loaded()

    def _drop_with(self, expert: Expert) -> None:
        """Drop an adapter once nobody knows its expert; the expert keeps no closed engine."""
        watched = self._watched.get(expert.identity)
        if watched is None or not watched.alive:
            drop, identity = weakref.WeakMethod(self._drop), expert.identity
            watched = weakref.finalize(expert, lambda: (drop() or _nothing)(identity))
            watched.atexit = False
            self._watched[identity] = watched

    def _drop(self, identity: str) -> None:
        with self._lock:
            if identity not in self._users:
                self._adapters.pop(identity, None)


def _nothing(_: str) -> None:
    """Do what a residency that is gone does."""


def _load(expert: Expert, device: "torch.device", dtype: "torch.dtype") -> "Adapter":
    from one4all_lc.base.lora import Adapter

    weights = _arrays(_unchanged(expert, expert.weights_file, expert.card.weights_sha256))
    head: dict[str, Tensor] = {}
    if expert.head:
        read = _arrays(_unchanged(expert, expert.head_file, expert.card.head["sha256"]))
        head = {name: _tensor(array).to(device).float() for name, array in read.items()}
    return Adapter(expert.identity, _factors(expert, weights, device, dtype), head)


def _unchanged(expert: Expert, file: Path, sha256: str) -> "Bytes":
    """Read a file of an expert, which must be what it was when the expert was read."""
    for place in _places(expert, file):
        content = np.fromfile(place, np.uint8) if place.is_file() else _EMPTY
        if hashlib.sha256(content.data).hexdigest() == sha256:
            return content
    msg = (
        f"{file} changed after expert {expert.name!r} was read: replace the expert in the "
        "library to use the new weights."
    )
    raise UnfitExpert(msg)


def _places(expert: Expert, file: Path) -> Iterator[Path]:
    """Yield where a file of an expert may lie."""
    yield file
    # Another version was published: whoever has not noticed yet is served by the one it knows.
    if kept := weights_kept(expert):
        yield kept.with_name(file.name)


def _arrays(content: "Bytes") -> dict[str, "Array"]:
    """Return the tensors of a safetensors file that was checked, without copying them.

    Those of bfloat16 are uint16. Source: https://huggingface.co/docs/safetensors/index#format
    """
    begin = 8 + int.from_bytes(content[:8].tobytes(), "little")
    header = json.loads(content[8:begin].tobytes())
    header.pop("__metadata__", None)
    return {
        name: np.ndarray(of["shape"], FLOATS[of["dtype"]], content, begin + of["data_offsets"][0])
        for name, of in header.items()
    }


def _tensor(array: "Array") -> "Tensor":
    """Return an array of `_arrays` as a tensor on the same memory."""
    import torch

    tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if array.dtype == np.uint16 else tensor


def _factors(
    expert: Expert, arrays: Mapping[str, "Array"], device: "torch.device", dtype: "torch.dtype"
) -> "dict[str, tuple[Tensor, Tensor]]":
    """Return the factors of every module, the scale in B.

    Those of one shape are computed together: hundreds of small operations would hold up the thread
    that decodes.
    """
    alike: dict[LoraFactor, list[str]] = {}
    for module, factor in expert.factors.items():
        alike.setdefault(factor, []).append(module)
    factors: dict[str, tuple[Tensor, Tensor]] = {}
    for factor, modules in alike.items():
        a = _tensor(np.stack([arrays[_name(module, "A")] for module in modules])).to(device, dtype)
        # Transposed: kernels read the outputs of one rank side by side.
        b = _tensor(_stacked([arrays[_name(module, "B")].T for module in modules])).to(device)
        b = (b if b.dtype == dtype else b.float()).mul_(factor.scale).to(dtype)
        pairs = zip(a.unbind(), b.unbind(), strict=True)
        factors |= {module: (a, b.t()) for module, (a, b) in zip(modules, pairs, strict=True)}
    return factors


def _stacked(arrays: "Sequence[Array]") -> "Array":
    """Stack arrays in C order: numpy alone keeps the order that they have."""
    stacked = np.empty((len(arrays), *arrays[0].shape), arrays[0].dtype)
    return np.stack(arrays, out=stacked)


def _name(module: str, factor: str) -> str:
    return f"base_model.model.{module}.lora_{factor}.weight"
