"""Turn the public data sets into the rows that the shipped experts were trained on.

    python adapters/prepare.py --data DIR --out DIR

`DIR` holds `product_reviews/intents.jsonl`, `medquad/qa.jsonl` and `wikisql/qa.jsonl` (their
public homes are listed in README.md); `--out` receives `mobile.jsonl`, `medical.jsonl` and
`sql.jsonl` in the form that `one4all train` reads.
"""

import argparse
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from random import Random
from typing import Any

Row = dict[str, Any]

# The products of the review data that are phones, cameras and players.
PRODUCTS = {
    "Nokia_6600": ("Nokia 6600", "phone"),
    "Nokia_6610": ("Nokia 6610", "phone"),
    "Canon_G3": ("Canon G3", "camera"),
    "Canon_S100": ("Canon S100", "camera"),
    "Canon_PowerShot_SD500": ("Canon PowerShot SD500", "camera"),
    "Nikon_coolpix_4300": ("Nikon Coolpix 4300", "camera"),
    "Creative_Labs_Nomad_Jukebox_Zen_Xtra_40GB": ("Creative Zen Xtra", "player"),
    "MicroMP3": ("Creative Zen Micro", "player"),
    "ipod": ("iPod", "player"),
    "Apex_AD2600_Progressive_scan_DVD player": ("Apex AD2600 DVD player", "player"),
}

ASK_ABOUT_PRODUCT = (
    "What do reviewers say about the {aspect} of the {product}?",
    "How is the {aspect} of the {product}?",
    "Is the {aspect} of the {product} any good?",
    "What do people think of the {product}'s {aspect}?",
)
ASK_FOR_BEST = (
    "Which {category} has the best {aspect}?",
    "I care about the {aspect}. Which {category} should I buy?",
    "Can you recommend a {category} with a good {aspect}?",
)
ASK_FOR_WORST = (
    "Which {category} has a bad {aspect}?",
    "What do people complain about in the {aspect} of a {category}?",
)
ASK_IN_PERSIAN = (
    "نظر کاربران درباره {aspect} {product} چیست؟",
    "{aspect} {product} چطور است؟",
    "کدام {category} بهترین {aspect} را دارد؟",
)
PERSIAN = {
    "phone": "گوشی",
    "camera": "دوربین",
    "player": "پخش‌کننده",
    "battery": "باتری",
    "battery life": "عمر باتری",
    "screen": "صفحه نمایش",
    "sound": "صدا",
    "sound quality": "کیفیت صدا",
    "price": "قیمت",
    "size": "اندازه",
    "weight": "وزن",
    "picture": "عکس",
    "picture quality": "کیفیت عکس",
    "pictures": "عکس‌ها",
    "zoom": "زوم",
    "lens": "لنز",
    "software": "نرم‌افزار",
    "design": "طراحی",
    "look": "ظاهر",
    "memory": "حافظه",
    "quality": "کیفیت",
    "speaker": "بلندگو",
    "headphones": "هدفون",
    "feature": "امکانات",
    "features": "امکانات",
    "keypad": "صفحه کلید",
    "use": "کاربری",
}
PERSIAN_SHARE = 0.35


def mobile(data: Path) -> Iterator[Row]:
    """What reviewers say about an aspect of a phone, camera or player."""
    for row in read(data / "product_reviews" / "intents.jsonl"):
        if row["product"] not in PRODUCTS:
            continue
        product, category = PRODUCTS[row["product"]]
        for name, strength in row["aspects"]:
            aspect = name.strip().lower()
            if not aspect or aspect in (category, "product") or aspect in product.lower():
                aspect = "overall quality"
            praised = strength.startswith("+")
            draw = Random(f"{row['text']} {aspect}")
            question = draw.choice(templates(aspect, praised=praised, draw=draw))
            words = {"aspect": aspect, "product": product, "category": category}
            if question in ASK_IN_PERSIAN:
                words |= {"aspect": PERSIAN[aspect], "category": PERSIAN[category]}
            verb = "praise" if praised else "criticise"
            yield {
                "question": question.format(**words),
                "answer": f'Reviewers {verb} the {aspect} of the {product}: "{clean(row["text"])}"',
                "split": row["split"],
            }


def templates(aspect: str, *, praised: bool, draw: Random) -> tuple[str, ...]:
    """The ways to ask for a sentence that praises or criticises `aspect`."""
    if aspect in PERSIAN and draw.random() < PERSIAN_SHARE:
        return ASK_IN_PERSIAN if praised else ASK_IN_PERSIAN[:2]
    return ASK_ABOUT_PRODUCT + (ASK_FOR_BEST if praised else ASK_FOR_WORST)


def clean(text: str) -> str:
    """Undo the spaces that the review data puts around punctuation."""
    text = re.sub(r"\s+([,.;:!?)%])", r"\1", text)
    text = re.sub(r"([(])\s+", r"\1", text)
    text = re.sub(r"\s+('(?:s|re|ve|ll|d|m|t)\b)", r"\1", text)
    text = re.sub(r"\s*\bn ?'t\b", "n't", text).replace('"', "'").strip()
    return text[:1].upper() + text[1:]


def medical(data: Path) -> Iterator[Row]:
    """Health questions, without the answers that only point elsewhere."""
    for row in read(data / "medquad" / "qa.jsonl"):
        if not row["hpo_boilerplate"]:
            yield {name: row[name] for name in ("question", "answer", "split")}


def sql(data: Path) -> Iterator[Row]:
    """A question and a table's columns to a query."""
    for row in read(data / "wikisql" / "qa.jsonl"):
        yield {name: row[name] for name in ("question", "columns", "answer", "split")}


def read(path: Path) -> Iterator[Row]:
    """Read JSONL."""
    with path.open(encoding="utf-8") as lines:
        yield from (json.loads(line) for line in lines)


def write(path: Path, rows: Iterable[Row]) -> None:
    """Write JSONL."""
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{path}: {len(lines)} rows")


def main() -> None:
    """Write the three files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the public data sets")
    parser.add_argument("--out", type=Path, required=True, help="where to write")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for recipe in (mobile, medical, sql):
        write(arguments.out / f"{recipe.__name__}.jsonl", recipe(arguments.data))


if __name__ == "__main__":
    main()
