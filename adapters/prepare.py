"""Turn the public data sets into the rows that the shipped experts were trained on.

    python adapters/prepare.py --data DIR --out DIR [NAME...]

`DIR` holds the data sets that README.md names, with their public homes; `--out` receives
`NAME.jsonl` for each expert, in the form that `one4all train` reads.
"""

import argparse
import json
import operator
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).parent))

from _deciding import DECIDING
from _reviews import Row, mobile, read, shopping

ASK_FOR_TERM = (
    'What does "{term}" mean in law?',
    "What does {term} mean?",
    'Explain the legal term "{term}".',
    "What is meant by {term} in a court?",
    "Define {term} in plain English.",
)
ASK_FOR_STEPS = (
    "How do I make {title}?",
    "How do you cook {title}?",
    "What are the steps for {title}?",
)
ASK_FOR_INGREDIENTS = (
    "What ingredients do I need for {title}?",
    "What goes into {title}?",
    "What do I have to buy to make {title}?",
)


def medical(data: Path) -> Iterator[Row]:
    """Health questions, without the answers that only point elsewhere."""
    for row in read(data / "medquad" / "qa.jsonl"):
        if not row["hpo_boilerplate"]:
            yield plain(row)


def sql(data: Path) -> Iterator[Row]:
    """A question and a table's columns to a query."""
    for row in read(data / "wikisql" / "qa.jsonl"):
        yield plain(row) | {"columns": row["columns"]}


def shell(data: Path) -> Iterator[Row]:
    """A task to a command."""
    for name in ("tldr_pages/qa.en.jsonl", "nl2bash/qa.jsonl"):
        for row in read(data / name):
            yield plain(row)


def law(data: Path) -> Iterator[Row]:
    """Legal terms, asked for in several ways, and terms of service in plain English."""
    for row in read(data / "legal_glossary" / "qa.jsonl"):
        ways = ASK_FOR_TERM if len(row["term"].split()) < 6 else ASK_FOR_TERM[:1]
        question = Random(row["term"]).choice(ways).format(term=row["term"])
        yield plain(row) | {"question": question, "answer": sentence(row["answer"])}
    for row in read(data / "tldrlegal" / "qa.jsonl"):
        if len(row["answer"].split()) > 2:  # "hi." explains nothing
            yield plain(row) | {"answer": sentence(row["answer"])}


def cooking(data: Path) -> Iterator[Row]:
    """Ingredients and steps of dishes."""
    for row in read(data / "recipes_public_domain" / "qa.jsonl"):
        asked = row["question"].startswith("What ingredients")
        ways = ASK_FOR_INGREDIENTS if asked else ASK_FOR_STEPS
        question = Random(row["question"]).choice(ways).format(title=row["title"])
        yield plain(row) | {"question": question}


def maths(data: Path) -> Iterator[Row]:
    """Word problems; each operation is written out with its result, so no calculator is needed."""
    for row in read(data / "svamp" / "qa.jsonl"):
        expression, final = row["answer"].rpartition("=")[0], row["final"]
        steps, value = worked_out(expression)
        if value is not None and abs(value - float(final)) < 1e-6:
            yield plain(row) | {"answer": f"{'; '.join(steps)}. The answer is {final}."}


OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}


def worked_out(expression: str) -> tuple[list[str], float | None]:
    """Return the steps of a calculation, `4 * 12 = 48`, inner ones first, and its value.

    Args:
        expression: In full brackets: `( ( 22.0 - 17.0 ) / 5.0 )`.
    """
    steps: list[str] = []
    stack: list[list[str]] = [[]]
    for token in expression.split():
        if token == "(":
            stack.append([])
        elif token != ")":
            stack[-1].append(token)
        else:
            left, sign, right = stack.pop()
            if sign == "/" and float(right) == 0:
                return steps, None
            value = number(OPERATIONS[sign](float(left), float(right)))
            steps.append(f"{number(float(left))} {sign} {number(float(right))} = {value}")
            stack[-1].append(value)
    (values,) = stack
    return steps, float(values[0]) if len(values) == 1 else None


def number(value: float) -> str:
    """Write a number as people do."""
    return f"{value:.0f}" if value == int(value) else f"{value:.2f}".rstrip("0")


def plain(row: Row) -> Row:
    """Keep what `one4all train` reads."""
    return {name: row[name] for name in ("question", "answer", "split")}


def sentence(text: str) -> str:
    """Begin with a capital, end with a full stop, on one line."""
    text = re.sub(r"\s+", " ", text).strip()
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "?", "!", ")")) else ".")


RECIPES = (sql, shell, medical, law, cooking, mobile, shopping, maths, *DECIDING)


def write(path: Path, rows: Iterable[Row]) -> None:
    """Write JSONL; of rows that say the same the first is kept, a held-out one before any other."""
    held_out_first = sorted(rows, key=lambda row: row["split"] == "train")
    kept: dict[str, Row] = {}
    for row in held_out_first:
        said = {name: value for name, value in row.items() if name not in ("split", "source")}
        kept.setdefault(json.dumps(said), row)
    lines = [json.dumps(row, ensure_ascii=False) for row in kept.values()]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{path}: {len(lines)} rows")


def main() -> None:
    """Write a file for each expert."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the public data sets")
    parser.add_argument("--out", type=Path, required=True, help="where to write")
    parser.add_argument("names", nargs="*", help="experts; by default all")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    known = {recipe.__name__.replace("_", "-"): recipe for recipe in RECIPES}
    if unknown := set(arguments.names) - set(known):
        parser.error(f"there are no rows for {sorted(unknown)}: the experts are {list(known)}")
    for name in arguments.names or known:
        write(arguments.out / f"{name}.jsonl", known[name](arguments.data))


if __name__ == "__main__":
    main()
