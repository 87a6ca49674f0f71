"""A small thing to learn, for tests that train: say a word in capitals."""

import json

from one4all_lc.training.qlora import train_expert
from one4all_lc.training.recipe import About, Recipe

ABOUT = About(description="Answers in capitals.", license="CC0", system_prompt="Shout.")
WORDS = ("apple", "river", "stone", "cloud", "horse", "lemon", "table", "window")


def write_rows(path, splits=("train", "test")):
    """Write 48 rows of the first split and 16 of the second."""
    numbers = {splits[0]: range(6), splits[1]: range(6, 8)}
    rows = [
        {"question": f"Say {word} {n}", "answer": f"{word.upper()} {n}!", "split": split}
        for split in splits
        for word in WORDS
        for n in numbers[split]
    ]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def train(folder, data, base, steps=12, **options):
    """Train an expert on such rows."""
    recipe = Recipe(steps=steps, batch_tokens=240, learning_rate=1e-2)
    return train_expert(folder, [data], about=ABOUT, recipe=recipe, base=base, **options)
