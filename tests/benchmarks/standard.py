"""LangChain's own suites for chat models: this package beside `ChatHuggingFace`, a scoreboard.

python -m tests.benchmarks.standard [--json]

Each class of `tests/test_standard.py`, and `ChatHuggingFace` on the same base with the same claims
of what it can do, in processes of their own.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[2]
SUITES = ("tests/test_standard.py", "tests/benchmarks/standard_chathuggingface.py")
COLUMNS = ("passed", "expected to fail", "skipped", "failed")


def run(suite: str) -> dict[str, Counter[str]]:
    """Run a file of suites; return by class how its tests ended."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        command = [sys.executable, "-m", "pytest", "-q", suite, f"--junitxml={report}"]
        subprocess.run([*command, "--benchmark-disable"], cwd=ROOT, stdout=sys.stderr, check=False)
        ended: dict[str, Counter[str]] = {}
        for case in ElementTree.parse(report).iter("testcase"):
            name = case.attrib["classname"].rpartition(".")[2]
            ended.setdefault(name, Counter())[how(case)] += 1
        return ended


def how(case: ElementTree.Element) -> str:
    """Return how a test ended."""
    skipped = case.find("skipped")
    if skipped is not None:
        return "expected to fail" if skipped.attrib.get("type") == "pytest.xfail" else "skipped"
    broken = case.find("failure") is not None or case.find("error") is not None
    return "failed" if broken else "passed"


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    scores = {name: ended for suite in SUITES for name, ended in run(suite).items()}
    table = Table("suite", *COLUMNS)
    for name, ended in scores.items():
        table.add_row(name.removeprefix("Test"), *(str(ended[column]) for column in COLUMNS))
    Console(stderr=True).print(table)
    if arguments.json:
        print(json.dumps({name: {c: ended[c] for c in COLUMNS} for name, ended in scores.items()}))


if __name__ == "__main__":
    main()
