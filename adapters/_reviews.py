"""What reviewers say of products, as questions and answers: the rows of `mobile` and `shopping`."""

import json
import re
from collections.abc import Iterator
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


# Those that an online shop sells beside them.
OTHER_PRODUCTS = {
    "Linksys_Router": ("Linksys router", "wireless router"),
    "Hitachi_router": ("Hitachi M12V router", "wood router"),
    "norton": ("Norton Internet Security", "security program"),
    "Diaper_Champ": ("Diaper Champ", "diaper pail"),
}

ASK_FOR_LIST = {
    "en": (
        "List the pros and cons in these customer remarks: {remarks}",
        "Sort what customers wrote into pros and cons: {remarks}",
        "Customers say: {remarks} What is good and what is bad about it?",
        "Summarise these reviews as pros and cons. {remarks}",
    ),
    "fa": ("مزایا و معایب را از نظر مشتریان فهرست کن: {remarks}",),
    "fr": ("Classe ces avis de clients en points forts et points faibles : {remarks}",),
}
NOTHING = re.compile(r"(none|nothing|n/?a|no cons)\b", re.IGNORECASE)
"""What people write who have nothing to say."""

LISTS = {"train": 6000, "dev": 200, "test": 400}
"""Lists of pros and cons to make, by split."""


def mobile(data: Path) -> Iterator[Row]:
    """What reviewers say about an aspect of a phone, camera or player."""
    yield from opinions(data, PRODUCTS)


def shopping(data: Path) -> Iterator[Row]:
    """Customers' remarks as a list of pros and cons, and what reviewers say of other goods."""
    yield from lists(data)
    yield from opinions(data, OTHER_PRODUCTS)


def lists(data: Path) -> Iterator[Row]:
    """Remarks, drawn at random within a split, and the same sorted."""
    remarks: dict[str, list[tuple[str, str]]] = {split: [] for split in LISTS}
    for row in read(data / "pros_cons" / "sentiment.jsonl"):
        text = clean(row["text"]).rstrip(" .,;!")
        if 3 <= len(text) <= 120 and ";" not in text and not NOTHING.match(text):
            remarks[row["split"]].append((text, row["label"]))
    for split, count in LISTS.items():
        draw = Random(f"lists of {split}")
        for _ in range(count):
            drawn = draw.sample(remarks[split], draw.randint(2, 5))
            language = draw.choices(("en", "fa", "fr"), (8, 1, 1))[0]
            question = draw.choice(ASK_FOR_LIST[language])
            said = "; ".join(text for text, _ in drawn) + "."
            good = [text for text, label in drawn if label == "pos"]
            bad = [text for text, label in drawn if label == "neg"]
            parts = [
                f"{title}:\n" + "\n".join(f"- {text}" for text in texts)
                for title, texts in (("Pros", good), ("Cons", bad))
                if texts
            ]
            yield {
                "question": question.format(remarks=said),
                "answer": "\n".join(parts),
                "split": split,
            }


def opinions(data: Path, products: dict[str, tuple[str, str]]) -> Iterator[Row]:
    """A question about an aspect of a product, and a sentence that praises or criticises it."""
    for row in read(data / "product_reviews" / "intents.jsonl"):
        if row["product"] not in products:
            continue
        product, category = products[row["product"]]
        for name, strength in row["aspects"]:
            aspect = name.strip().lower()
            if not aspect or aspect in (category, "product") or aspect in product.lower():
                aspect = "overall quality"
            praised = strength.startswith("+")
            draw = Random(f"{row['text']} {aspect}")
            question = draw.choice(templates(aspect, category, praised=praised, draw=draw))
            words = {"aspect": aspect, "product": product, "category": category}
            if question in ASK_IN_PERSIAN:
                words |= {"aspect": PERSIAN[aspect], "category": PERSIAN[category]}
            verb = "praise" if praised else "criticise"
            yield {
                "question": question.format(**words),
                "answer": f'Reviewers {verb} the {aspect} of the {product}: "{clean(row["text"])}"',
                "split": row["split"],
            }


def templates(aspect: str, category: str, *, praised: bool, draw: Random) -> tuple[str, ...]:
    """The ways to ask for a sentence that praises or criticises `aspect`."""
    if aspect in PERSIAN and category in PERSIAN and draw.random() < PERSIAN_SHARE:
        return ASK_IN_PERSIAN if praised else ASK_IN_PERSIAN[:2]
    return ASK_ABOUT_PRODUCT + (ASK_FOR_BEST if praised else ASK_FOR_WORST)


def clean(text: str) -> str:
    """Undo the spaces that the review data puts around punctuation."""
    text = re.sub(r"\s+([,.;:!?)%])", r"\1", text)
    text = re.sub(r"([(])\s+", r"\1", text)
    text = re.sub(r"\s+('(?:s|re|ve|ll|d|m|t)\b)", r"\1", text)
    text = re.sub(r"\s*\bn ?'t\b", "n't", text).replace('"', "'").strip()
    return text[:1].upper() + text[1:]


def read(path: Path) -> Iterator[Row]:
    """Read JSONL."""
    with path.open(encoding="utf-8") as lines:
        yield from (json.loads(line) for line in lines)
