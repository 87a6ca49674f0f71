"""`exemplars`, `eval-router` and `route --explain`: one document with --json, nothing lost."""

import json

import pytest

from one4all_lc import cli
from one4all_lc.folder import EXEMPLARS_FILE, read_exemplars
from one4all_lc.testing import FakeEmbeddings
from tests.test_cli import one_sentence
from tests.test_routing import FRUIT, SPACE, make_expert


@pytest.fixture
def run(run, monkeypatch, tmp_path):
    """Run `one4all` with an embedder without weights."""
    monkeypatch.setenv("ONE4ALL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    for module in (cli.routing, cli.asking):
        monkeypatch.setattr(module, "embedder_of", lambda _: FakeEmbeddings())
    return run


@pytest.fixture
def adapters(tmp_path):
    make_expert(tmp_path / "adapters", "fruit", [*FRUIT, "Is [bold]rhubarb[/bold] a fruit?"])
    make_expert(tmp_path / "adapters", "space", [*SPACE, FRUIT[0]])
    return tmp_path / "adapters"


@pytest.fixture
def rows(tmp_path):
    """Write labelled questions of two experts and of nobody."""
    file = tmp_path / "rows.jsonl"
    items = [
        {"text": f"{text} {number}", "label": label, "split": "test" if number > 5 else "train"}
        for label, texts in (("fruit", FRUIT), ("space", SPACE), ("oos", ["Who sang that?"]))
        for text in texts
        for number in range(8)
    ]
    file.write_text("".join(json.dumps(item) + "\n" for item in items))
    return file


def test_explain_prints_scores_thresholds_and_nearest_exemplars(run, adapters):
    """Nobody could see why a question went where it went."""
    asked = ("route", "Is [bold]rhubarb[/bold] sweet?", "--adapters", adapters)
    code, out, _ = run(*asked, "--explain")
    assert code == 0
    assert out.splitlines()[0] == "fruit\tIs [bold]rhubarb[/bold] sweet?"
    for words in ("probability", "threshold", "nearest exemplar", "fruit", "space"):
        assert words in out
    assert "Is [bold]rhubarb[/bold] a fruit?" in out  # as it is, not as markup
    code, out, _ = run(*asked, "--explain", "--json")
    (route,) = json.loads(out)
    assert {"threshold", "in_scope", "in_scope_probability", "name", "score", "probability"} == set(
        route["experts"][0]
    )
    assert route["nearest"][0]["text"] == "Is [bold]rhubarb[/bold] a fruit?"


def test_exemplars_are_mined_into_a_folder(run, tmp_path, rows):
    """Whoever has data would have to choose exemplars by hand."""
    folder = tmp_path / "new" / "fruit"
    code, out, err = run("exemplars", folder, "--data", rows, "--count", 2, "--dry-run")
    assert (code, len(out.splitlines()), folder.exists()) == (0, 2, False)
    code, out, _ = run("exemplars", folder, "--data", rows, "--count", 2, "--json")
    mined = json.loads(out)["mined"]
    assert [item["text"] for item in mined] == [item.text for item in read_exemplars(folder)]
    assert all(item["text"].split(" ")[0] in {"How", "Are", "Which"} for item in mined)
    code, _, err = run("exemplars", folder, "--data", rows, "--count", 3)
    assert code == 0
    assert "has 3 exemplars, 1 of them mined from 24 rows" in err


def test_a_check_shows_conflicts_duplicates_and_gaps(run, adapters, tmp_path):
    """Two experts would share a question in silence."""
    questions = tmp_path / "space.jsonl"
    questions.write_text('{"question": "Who composed that symphony", "answer": "x"}\n')
    asked = ("exemplars", "--check", "--adapters", adapters, "--data", questions)
    code, out, _ = run(*asked, "--json")
    found = json.loads(out)
    assert code == 0
    assert found["conflicts"][0]["texts"] == [FRUIT[0]] * 2
    assert found["gaps"][0]["text"] == "Who composed that symphony"
    assert {item["expert"] for item in found["thin"]} == {"fruit", "space"}
    code, out, _ = run(*asked)
    assert "conflicts between experts" in out
    assert "Who composed that symphony" in out


def test_eval_router_measures_and_writes_where_it_is_told(run, rows, tmp_path):
    """Rows of users would lie where nobody expects them, or the figures nowhere."""
    out_folder = tmp_path / "out"
    code, out, _ = run("eval-router", "--data", rows, "--out", out_folder, "--json")
    found = json.loads(out)
    assert code == 0
    assert found["accuracy_in_scope"] > 0.9
    assert set(found["arms"]) == {"router", "oracle", "random", "base"}
    assert found["report"] == str(out_folder / "report.html")
    assert (out_folder / "confusion.png").exists()
    texts = [FRUIT[0], SPACE[0], "Who sang that?"]
    cache = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert not [path for path in cache for text in texts if text.encode() in path.read_bytes()]


def test_eval_router_prints_tables_for_people(run, rows):
    """Whoever only looks would have to read JSON."""
    code, out, err = run("eval-router", "--data", rows, "--exemplars-per-domain", 3, "--seed", 1)
    assert code == 0
    for words in ("always the base", "fruit", "space", "oos", "auroc"):
        assert words in out
    assert "9 exemplars" in " ".join(err.split())


def test_eval_router_measures_experts_of_ones_own(run, rows, adapters):
    """Users could measure a benchmark's router and not their own."""
    asked = ("eval-router", "--data", rows, "--adapters", adapters, "--json")
    code, out, _ = run(*asked)
    assert code == 0
    assert [row["exemplars"] for row in json.loads(out)["experts"]] == [4, 4, 0]
    text = rows.read_text().replace('"space"', '"law"')
    rows.write_text(text)
    code, out, err = run(*asked)
    assert (code, out) == (1, "")
    assert "'law', which is no expert" in one_sentence(err)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["exemplars"], 2, "--check"),
        (["exemplars", "x"], 2, "--data FILE"),
        (["exemplars", "x", "--data", "nowhere.jsonl"], 1, "nowhere.jsonl is not there"),
        (["eval-router", "--data", "nowhere.jsonl"], 1, "nowhere.jsonl is not there"),
        (["eval-router"], 2, "--data"),
    ],
)
def test_bad_input_gets_one_sentence(run, arguments, code, words):
    got, out, err = run(*arguments)
    assert (got, out) == (code, "")
    assert words in " ".join(err.split())


def test_a_folder_that_cannot_be_written_loses_nothing(run, rows, adapters, tmp_path):
    """A report, or an expert's exemplars, would be half there."""
    (tmp_path / "file").touch()
    code, _, err = run("eval-router", "--data", rows, "--out", tmp_path / "file" / "out")
    assert code == 1
    assert "cannot be written" in one_sentence(err)
    before = (adapters / "fruit" / EXEMPLARS_FILE).read_bytes()
    (adapters / "fruit" / f".{EXEMPLARS_FILE}.lock").mkdir()
    code, _, err = run("exemplars", adapters / "fruit", "--data", rows, "--count", 9)
    assert code == 1
    assert "cannot be changed" in one_sentence(err)
    assert (adapters / "fruit" / EXEMPLARS_FILE).read_bytes() == before
