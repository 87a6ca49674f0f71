"""What a warm `one4all ask` spends its time on: whole processes, medians of several.

python -m tests.benchmarks.ask [--runs 5] [--json]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

from rich.console import Console
from rich.table import Table

QUESTION = "Which smartphone has the best camera in 2025?"
BAR = 15.0
"""Seconds that the whole process may take."""


def one_run() -> dict[str, float]:
    """Run the command once; return its own parts and the process's whole time."""
    started = time.monotonic()
    command = [sys.executable, "-m", "one4all_lc.cli", "ask", QUESTION, "--json"]
    output = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    whole = time.monotonic() - started
    answer = json.loads(output)
    parts = answer["seconds"]
    generating = parts["total"] - parts["load"] - parts["route"] - parts["first_token"]
    return {
        "start": whole - parts["total"],
        **{name: parts[name] for name in ("load", "route", "first_token")},
        "rest_of_answer": generating,
        "process": whole,
        "output_tokens": answer["usage"]["output_tokens"],
    }


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    one_run()  # fetches and unpacks what is not there yet
    runs = [one_run() for _ in range(arguments.runs)]
    parts = {
        name: {
            "median": round(statistics.median(run[name] for run in runs), 2),
            "least": round(min(run[name] for run in runs), 2),
            "most": round(max(run[name] for run in runs), 2),
        }
        for name in runs[0]
    }
    table = Table("seconds", "median", "least", "most", title=f"{os.cpu_count()} cores")
    for name, figures in parts.items():
        table.add_row(name, *(str(value) for value in figures.values()))
    Console(stderr=True).print(table)
    if arguments.json:
        value = parts["process"]["median"]
        bars = {"warm_ask_seconds": {"value": value, "bar": BAR, "holds": value <= BAR}}
        print(json.dumps({"runs": arguments.runs, "parts": parts, "bars": bars}, indent=2))


if __name__ == "__main__":
    main()
