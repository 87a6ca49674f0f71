"""What can go wrong, as a caller would tell it apart.

    One4AllError
    ├── InvalidInput      the question, the data row or the option cannot be used as given
    ├── UnknownExpert     no expert of that name is in the library
    ├── UnfitExpert       an expert folder that must not be used: broken, or of another base
    │   └── WorseExpert   one that measures worse than the one that it would replace
    ├── Abstained         no expert is for the question, and nobody else shall answer it
    ├── ModelNotFound     a base or an embedder that no place holds
    ├── EngineClosed      the engine was closed before the request was done
    ├── EngineBusy        as many requests wait as may
    └── DeadlineExceeded  the request was not done within its time

Every message is one sentence or two: what was wrong, what was given, how to fix it.
"""


class One4AllError(Exception):
    """The root of every error that this package raises on purpose."""


class InvalidInput(One4AllError, ValueError):
    """The input cannot be used as given: an empty question, a data row that does not parse."""


class UnknownExpert(One4AllError, LookupError):
    """No expert of that name is in the library."""


class UnfitExpert(One4AllError, ValueError):
    """An expert folder that must not be used: something in it is broken or of another base."""


class WorseExpert(UnfitExpert):
    """A version that measures worse on held-out rows than what it would replace."""


class Abstained(One4AllError, LookupError):
    """No expert is for the question, and nobody else shall answer it."""


class ModelNotFound(One4AllError, LookupError):
    """A base or an embedder that none of the places tried holds."""


class EngineClosed(One4AllError, RuntimeError):
    """The engine was closed before the request was done."""


class EngineBusy(One4AllError, RuntimeError):
    """As many requests wait for the engine as may, and the caller would not wait longer."""


class DeadlineExceeded(One4AllError, TimeoutError):
    """The request was not done within its time; it waits and runs no more."""
