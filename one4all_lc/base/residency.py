"""Which adapters are in memory: loaded when first used, evicted least recently used."""

import hashlib
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

from one4all_lc.base.lora import Adapter
from one4all_lc.errors import UnfitExpert
from one4all_lc.folder import Expert

if TYPE_CHECKING:
    import torch

DEFAULT_BUDGET = 1 << 30
"""Bytes of adapters that stay in memory while nobody uses them."""


class Residency:
    """The adapters in memory, by identity.

    Args:
        device: Where they are put.
        dtype: In which type.
        budget: Bytes; more than that is evicted, least recently used first, never what is in use.
    """

    def __init__(
        self, device: "torch.device", dtype: "torch.dtype", budget: int = DEFAULT_BUDGET
    ) -> None:
        self._device, self._dtype, self._budget = device, dtype, budget
        self._lock = threading.Lock()
        self._adapters: OrderedDict[str, Adapter] = OrderedDict()
        self._users: dict[str, int] = {}

    def acquire(self, expert: Expert) -> Adapter:
        """Return an expert's adapter, loaded if it must be; it stays until `release`.

        Raises:
            UnfitExpert: The weights on disk are no longer those that the expert was read with.
        """
        identity = expert.identity
        with self._lock:
            self._users[identity] = self._users.get(identity, 0) + 1
            adapter = self._adapters.get(identity)
        if adapter is None:
            try:  # without the lock: others go on, and two may load the same, of which one stays
                loaded = self._load(expert)
            except BaseException:
                self.release(identity)
                raise
        with self._lock:
            if adapter is None:
                adapter = self._adapters.setdefault(identity, loaded)
            self._adapters.move_to_end(identity)
            self._evict()
        return adapter

    def release(self, identity: str) -> None:
        """Give back what one `acquire` returned."""
        with self._lock:
            self._users[identity] -= 1
            self._evict()

    def __getitem__(self, identity: str) -> Adapter:
        """Return an adapter that somebody has acquired."""
        return self._adapters[identity]

    @property
    def memory_bytes(self) -> int:
        """Bytes of all adapters in memory."""
        return sum(adapter.memory_bytes for adapter in list(self._adapters.values()))

    @property
    def identities(self) -> tuple[str, ...]:
        """The adapters in memory, least recently used first."""
        return tuple(self._adapters)

    def _evict(self) -> None:
        idle = [identity for identity in self._adapters if not self._users.get(identity)]
        for identity in idle:
            if self.memory_bytes <= self._budget:
                return
            del self._adapters[identity]
            self._users.pop(identity, None)

    def _load(self, expert: Expert) -> Adapter:
        from safetensors.torch import load

        content = expert.weights_file.read_bytes() if expert.weights_file.is_file() else b""
        if hashlib.sha256(content).hexdigest() != expert.card.weights_sha256:
            msg = (
                f"{expert.weights_file} changed after expert {expert.name!r} was read: replace the "
                "expert in the library to use the new weights."
            )
            raise UnfitExpert(msg)
        tensors = load(content)
        factors = {}
        for module, factor in expert.factors.items():
            prefix = f"base_model.model.{module}.lora_"
            a = tensors[f"{prefix}A.weight"].T.float()
            b = tensors[f"{prefix}B.weight"].T.float() * factor.scale
            factors[module] = (self._placed(a), self._placed(b))
        return Adapter(expert.identity, factors)

    def _placed(self, tensor: "torch.Tensor") -> "torch.Tensor":
        return tensor.to(self._device, self._dtype).contiguous()
