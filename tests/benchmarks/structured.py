"""What it costs that answers must have a form: 8 rows of JSON against 8 free rows.

python -m tests.benchmarks.structured [--rounds 7] [--tokens 64] [--json]

A figure is generated tokens per second of 8 rows after the first token of each: the form is a list
of objects that has no end within these tokens. `structured_cost` is the share of throughput that
the form takes.
"""

import argparse
import itertools
import time

from one4all_lc.base.loading import SharedBase
from one4all_lc.engine.engine import Engine
from one4all_lc.engine.grammar import Grammar
from one4all_lc.engine.request import Request
from tests.benchmarks.harness import Bar, prompts, report, rounds
from tests.benchmarks.ours import exactly

ROWS = 8
FREE, FORMED = "8 free rows", "8 rows of JSON"

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 40},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "kind": {"enum": ["reader", "writer", "critic"]},
        "tags": {"type": "array", "items": {"type": "string", "pattern": "^[a-z]{3,12}$"}},
    },
    "required": ["name", "age", "kind", "tags"],
}
FORM = {"type": "array", "items": PERSON, "minItems": 50}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    base = SharedBase.load()
    engine, source = Engine.of(base), prompts(base.tokenizer)
    grammar = Grammar.json_schema(FORM)

    def speed(form: Grammar | None, tokens: int) -> float:
        handles = [
            engine.submit(Request(prompt, (), exactly(4 * tokens), None, form))
            for prompt in itertools.islice(source, ROWS)
        ]
        readers = [iter(handle) for handle in handles]
        for reader in readers:
            next(reader)
        begun = time.perf_counter()
        for reader in readers:
            list(itertools.islice(reader, tokens))
        seconds = time.perf_counter() - begun
        for handle in handles:
            handle.cancel()
            handle.result()
        return ROWS * tokens / seconds

    cases = {
        FREE: lambda: speed(None, arguments.tokens),
        FORMED: lambda: speed(grammar, arguments.tokens),
    }
    speed(grammar, 4)  # warms up
    measured = rounds(cases, arguments.rounds)
    cost = round(1 - measured.ratio(FORMED, FREE), 3)
    report(
        measured,
        {"structured_cost": Bar(cost, 0.15, at_most=True)},
        arguments.json,
        unit="tokens/s",
        rounds=arguments.rounds,
        tokens=arguments.tokens,
    )


if __name__ == "__main__":
    main()
