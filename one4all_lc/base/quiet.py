"""What other libraries say, kept short: off the terminal, or in one line."""

import contextlib
import logging
from collections.abc import Iterator


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the progress bars and notices of transformers and bitsandbytes off the terminal."""
    from transformers.utils import logging as transformers_logging

    level = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    notices = logging.getLogger("bitsandbytes")
    notices_level = notices.level
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    notices.setLevel(logging.ERROR)
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        notices.setLevel(notices_level)
        if bars:
            transformers_logging.enable_progress_bar()


def first_line(error: Exception) -> str:
    """What an error says first, in at most 200 characters."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
