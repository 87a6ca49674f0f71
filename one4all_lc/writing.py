"""Files that take their place whole: a reader sees the old one or the new one."""

import os
import uuid
from pathlib import Path

from one4all_lc.errors import InvalidInput


def replace_bytes(path: str | Path, content: bytes) -> Path:
    """Write a file beside `path` and rename it to `path`; its folder is made if need be.

    A process that is killed leaves the old file, and at most a hidden one beside it.

    Returns:
        The path.

    Raises:
        InvalidInput: It cannot be written; the old file stays.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        place = path.resolve()  # a link stays a link
        scratch = place.with_name(f".{place.name}.{uuid.uuid4().hex}")
        try:
            with scratch.open("xb") as file:
                if place.exists():
                    os.chmod(scratch, place.stat().st_mode & 0o777)
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(scratch, place)
        except BaseException:
            scratch.unlink(missing_ok=True)
            raise
    except OSError as error:
        msg = f"{path} cannot be written ({error.strerror}): name a place that can be."
        raise InvalidInput(msg) from error
    return path


def replace_text(path: str | Path, text: str) -> Path:
    """As `replace_bytes`, with text in UTF-8."""
    return replace_bytes(path, text.encode())
