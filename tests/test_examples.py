"""The examples run as they stand, and so does the code in the README."""

import json
import re
import subprocess
import sys

import pytest

from tests.conftest import ROOT


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda p: p.stem)
def test_an_example_runs(path):
    ended = subprocess.run(
        [sys.executable, str(path)], capture_output=True, text=True, cwd=ROOT, timeout=300
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.strip()


def test_the_readmes_python_runs():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=300
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.strip()


@pytest.mark.parametrize(
    "name", ["cooking", "law", "maths", "medical", "mobile", "shell", "shopping", "sql"]
)
def test_the_readmes_figures_are_the_cards(name):
    """Figures come from a measurement, not from memory: `train` and `eval` write the cards."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (row,) = [line for line in text.split("\n") if line.startswith(f"| `{name}` |")]
    metrics = json.loads((ROOT / "adapters" / name / "expert.json").read_text())["metrics"]
    for metric in ("perplexity", "rouge_l", *(["exact_match"] if name in ("maths", "sql") else [])):
        assert f"| {metrics[metric]['base']:.3f} | {metrics[metric]['expert']:.3f} |" in row
    if name == "shell":
        assert all(
            f"{metrics['first_word'][who]:.3f}" in row for who in ("base", "nearest", "expert")
        )


@pytest.mark.parametrize(
    ("name", "measures"),
    [
        ("fa-entities", ("entity_f1",)),
        ("fa-inference", ("accuracy", "macro_f1")),
        ("fa-reader", ("answerable_f1", "no_answer_accuracy")),
        ("review-sentiment", ("accuracy", "macro_f1")),
    ],
)
def test_the_readmes_figures_of_experts_that_decide_are_the_cards(name, measures):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = [
        line.split(" | ")
        for line in text.split("\n")
        if line.startswith(f"| `{name}` |") and line.count("|") == 6
    ]
    metrics = json.loads((ROOT / "adapters" / name / "expert.json").read_text())["metrics"]
    for row, measure in zip(rows, measures, strict=True):
        found = [f"{metrics[measure][who]:.3f}" for who in ("base", "expert")]
        assert [item.strip(" |") for item in row[-2:]] == found
