"""What a peer's process does: answer JSON lines. It runs in the peer's environment: no imports of
this project, and nothing beyond the standard library.

in    {"prompts": [[token id, ...], ...], "adapters": [number or null, ...], "tokens": N}
out   {"ready": true} once, then for each request {"seconds": S, "counts": [tokens, ...]}
"""

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

Answer = Callable[[list[list[int]], list[int | None], int], list[int]]
"""Answers prompts greedily with so many tokens each, and returns how many each has."""


def serve(prepare: Callable[[dict[str, Any]], Answer]) -> None:
    """Prepare with the settings of the command line, then answer until standard input ends."""
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # peers log to standard output

    def reply(message: dict[str, Any]) -> None:
        replies.write(json.dumps(message) + "\n")

    answer = prepare(json.loads(sys.argv[1]))
    reply({"ready": True})
    for line in sys.stdin:
        request = json.loads(line)
        started = time.perf_counter()
        counts = answer(request["prompts"], request["adapters"], request["tokens"])
        reply({"seconds": time.perf_counter() - started, "counts": counts})
