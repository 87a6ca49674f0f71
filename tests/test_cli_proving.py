"""eval, publish, rollback, experts --versions, adopt and push, as one types them."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from one4all_lc.base.loading import describe
from one4all_lc.folder import read_expert
from one4all_lc.publishing import publish
from tests import fake_hub
from tests.experts import write_expert, write_tiny_base
from tests.test_cli import one_sentence
from tests.test_proving import rows_of


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_tiny_base(tmp_path_factory.mktemp("bases") / "tiny")


@pytest.fixture(scope="module")
def facts(base):
    return describe(str(base))


@pytest.fixture
def adapters(tmp_path, facts):
    for index, name in enumerate(("law", "art")):
        write_expert(
            tmp_path / "adapters" / name,
            facts,
            4,
            index,
            0.3,
            exemplars=[f"Say {name} {word}" for word in ("plum", "door", "rain")],
            generation={"max_tokens": 4},
            metric="perplexity",
        )
    return tmp_path / "adapters"


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "rows"
    folder.mkdir()
    for name in ("law", "art"):
        lines = [
            json.dumps({"question": row.question, "answer": row.answer, "split": row.split})
            for row in rows_of(f"Say {name}")
        ]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    return folder


def test_eval_is_a_matrix_a_page_and_one_document(run, adapters, data, base, tmp_path):
    """Lost: the proof of every expert, and the bars that a script reads."""
    out = tmp_path / "out"
    options = ("--adapters", adapters, "--base", base, "--data", data, "--limit", 3)
    code, text, err = run("eval", *options, "--out", out, "--json")
    assert code == 0, err
    found = json.loads(text)
    assert list(found)[-1] == "bars"
    assert set(found["matrix"]) == set(found["metrics"]) == {"law", "art"}
    assert set(found["matrix"]["law"]["scores"]) == {"law", "art", "base", "nearest"}
    assert found["metrics"]["law"]["rouge_l"]["rows"] == 3
    assert found["bars"]["sql_exact_match"]["value"] is None
    assert {path.name for path in out.iterdir()} == {"report.html", "scores.png", "perplexity.png"}
    assert "of 36 rows" in err, "progress must be shown where nobody watches as well"
    code, text, _ = run("eval", *options)
    assert code == 0
    assert "oracle" in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data", "{adapters}"], "has rows for no expert"),
        (["--data", "{data}/lore.jsonl"], "There is no expert 'lore'"),
        (["--data", "{data}/law.jsonl", "--scorer", "nowhere:f"], "cannot be loaded"),
        (["--data", "{data}/law.jsonl", "--base", "no/such"], "no/such was not found"),
    ],
)
def test_eval_refuses_in_one_sentence(run, adapters, data, base, arguments, words):
    """Lost: an evening, to a typing error that is found after the measuring."""
    arguments = [item.format(adapters=adapters, data=data) for item in arguments]
    if "--base" not in arguments:
        arguments += ["--base", str(base)]
    code, out, err = run("eval", "--adapters", adapters, *arguments)
    assert (code, out) == (1, "")
    lines = [line for line in err.splitlines() if line.startswith("one4all: ")]
    assert len(lines) == 1
    assert words in lines[0]


def test_publish_versions_and_rollback(run, adapters, data, base, facts, tmp_path):
    """Lost: the way from one version to the next, and back."""
    other = write_expert(
        tmp_path / "made" / "law", facts, 4, 7, 0.3, metric="perplexity", title="Newer"
    )
    here = ("--adapters", adapters)
    asked = ("--data", data / "law.jsonl", "--base", base, "--limit", 4)
    code, text, err = run("publish", other, *here, *asked, "--tolerance", 1e9, "--json")
    assert code == 0, err
    found = json.loads(text)
    assert (found["version"], found["verdict"]["against"]) == (2, "version 1")
    _, text, _ = run("experts", "--versions", *here, "--json")
    listed = [(item["name"], item["version"], item["in_place"]) for item in json.loads(text)]
    assert listed == [("art", 1, True), ("law", 2, True), ("law", 1, False)]
    assert "law" in run("experts", "--versions", *here)[1]
    assert run("rollback", "law", *here)[:2] == (0, f"law version 1 is in {adapters / 'law'}\n")
    assert json.loads(run("rollback", "law", "--version", 2, *here, "--json")[1])["version"] == 2
    assert run("publish", other, *here, "--force", "--keep", 0)[0] == 0
    listed = json.loads(run("experts", "--versions", *here, "--json")[1])
    assert [item["version"] for item in listed] == [1, 3]


def test_publish_refuses_in_one_sentence(run, adapters, data, base, facts, tmp_path):
    """Lost: the expert in place, to a worse one; or the sentence that says why it stays."""
    here = ("--adapters", adapters, "--base", base)
    worse = write_expert(tmp_path / "made" / "law", facts, 4, 7, 3.0, metric="perplexity")
    before = read_expert(adapters / "law")
    code, out, err = run("publish", worse, *here)
    assert (code, out) == (1, "")
    assert "give them with --data" in one_sentence(err)
    code, out, err = run("publish", worse, *here, "--data", data / "law.jsonl", "--limit", 4)
    (line,) = [line for line in err.splitlines() if line.startswith("one4all: ")]
    assert (code, out) == (1, "")
    assert "is not published; it stays in" in line
    assert read_expert(adapters / "law") == before
    for arguments, words in (
        (["publish", "nowhere"], "there is no such directory"),
        (["rollback", "law", "--adapters", adapters], "no version to go back to"),
        (["rollback", "../law", "--adapters", adapters], "cannot name an expert"),
    ):
        code, _, err = run(*arguments)
        assert code == 1
        assert words in one_sentence(err)


def typed(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "one4all_lc.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=300,
    )


def test_push_and_adopt_through_a_hub(adapters, base, tmp_path):
    """Lost: experts from elsewhere, and for others."""
    with fake_hub.running() as hub:
        settings = {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path / "hf"),
            "HF_TOKEN": fake_hub.TOKEN,
            "HF_HUB_DISABLE_XET": "1",
        }
        pushed = typed("push", adapters / "law", "me/law", "--json", **settings)
        assert pushed.returncode == 0, pushed.stderr
        commit = json.loads(pushed.stdout)["commit"].rpartition("/")[2]
        assert b"base_model" in hub.repos["me/law"].commits[commit]["README.md"]
        theirs = tmp_path / "theirs"
        theirs.mkdir()
        place = ("--adapters", theirs, "--base", base)
        adopted = typed("adopt", "me/law", "--revision", commit, *place, "--json", **settings)
        assert adopted.returncode == 0, adopted.stderr
        assert json.loads(adopted.stdout)["identity"] == read_expert(adapters / "law").identity
        again = typed("adopt", "me/law", *place, **settings)
        assert again.returncode == 1
        assert "--replace" in one_sentence(again.stderr.splitlines()[-1])
        nobody = typed("adopt", "me/nothing", *place, **settings)
        assert nobody.returncode == 1
        assert "has no me/nothing" in one_sentence(nobody.stderr)
    unreachable = typed("push", adapters / "law", "me/law", **settings)
    assert unreachable.returncode == 1
    assert "try again, or go online" in one_sentence(unreachable.stderr)


def test_adopt_a_folder_of_pefts_own(run, adapters, base, tmp_path):
    """Lost: adapters that were trained with PEFT alone."""
    plain = tmp_path / "plain-lora"
    shutil.copytree(adapters / "law", plain)
    for name in ("expert.json", "exemplars.jsonl"):
        (plain / name).unlink()
    exemplars = tmp_path / "questions.jsonl"
    exemplars.write_text('{"text": "What is a lien?"}\n')
    said = ("--description", "Explains law.", "--exemplars", exemplars)
    code, out, err = run("adopt", plain, *said, "--adapters", adapters, "--base", base)
    assert code == 0, err
    assert "plain-lora version 1 is in" in out
    on_the_default_base = ("--name", "other", "--adapters", adapters)
    code, _, err = run("adopt", plain, *said, *on_the_default_base)
    assert code == 1
    assert "--same-base" in one_sentence(err)


def test_push_can_be_looked_at_before(run, adapters):
    """Lost: the chance to read a model card before all others do."""
    code, out, _ = run("push", adapters / "law", "me/law", "--dry-run")
    assert code == 0
    assert out.startswith("---\nbase_model:")
    code, out, _ = run("push", adapters / "law", "me/law", "--dry-run", "--json")
    assert json.loads(out)["model_card"].startswith("---\n")


def test_a_library_that_runs_notices_what_is_typed(run, adapters, facts, tmp_path):
    """Lost: the new version, until the application is started anew."""
    from one4all_lc.library import Library

    library = Library(adapters, facts)
    made = write_expert(tmp_path / "made" / "law", facts, 4, 7, 0.3)
    publish(made, adapters / "law")
    assert library.refresh() == ("law",)
    run("rollback", "law", "--adapters", adapters)
    assert library.refresh() == ("law",)
    assert library["law"].card.version == 1
