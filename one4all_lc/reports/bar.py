"""A figure and what it must reach: what `one4all eval` and the benchmarks end with."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Bar:
    """A figure and what it must reach.

    Attributes:
        value: The figure; None if it was not measured.
        bar: What it is held against.
        at_most: The bar is an upper one.
    """

    value: float | None
    bar: float
    at_most: bool = False

    @property
    def holds(self) -> bool | None:
        """Whether the figure reaches the bar; None if there is no figure."""
        if self.value is None:
            return None
        return self.value <= self.bar if self.at_most else self.value >= self.bar

    def as_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {"value": self.value, "bar": self.bar, "holds": self.holds}
