"""Adapters from anywhere become experts, and experts go anywhere, through a hub on this machine."""

import json
import math
import random
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from one4all_lc.adopting import Adoption, adopt
from one4all_lc.card import ExpertCard
from one4all_lc.errors import InvalidInput, UnfitExpert
from one4all_lc.folder import (
    CONFIG_FILE,
    EXEMPLARS_FILE,
    WEIGHTS_FILE,
    Exemplar,
    read_expert,
    write_exemplars,
)
from one4all_lc.library import Library
from one4all_lc.sharing import model_card, push
from one4all_lc.versions import versions_of
from tests import fake_hub
from tests.killing import run_until
from tests.test_folder import (
    BASE,
    FINGERPRINT,
    Change,
    build,
    card,
    config,
    snapshot,
    tensors,
    with_value,
)

REPO = "someone/Law-LoRA_v2"


@pytest.fixture
def hub(monkeypatch, tmp_path: Path):
    """A hub, as HF_ENDPOINT would name it; nobody is logged in."""
    from huggingface_hub import constants

    with fake_hub.running() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield server


@pytest.fixture
def login(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", fake_hub.TOKEN)


@pytest.fixture
def adapters(tmp_path: Path) -> Path:
    return tmp_path / "adapters"


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A PEFT LoRA as PEFT writes it: no card, no exemplars."""
    folder = build(tmp_path / "elsewhere")
    (folder / "expert.json").unlink()
    (folder / EXEMPLARS_FILE).unlink()
    config(base_model_name_or_path="somewhere/base")(folder)
    return folder


@pytest.fixture
def about(tmp_path: Path) -> Adoption:
    write_exemplars(tmp_path, [Exemplar("What is a lien?"), Exemplar("قرارداد چیست؟", "fa")])
    return Adoption(description="Explains law.", exemplars=tmp_path / EXEMPLARS_FILE)


def in_place(folder: Path, change: Change) -> None:
    """Apply a change that signs the card to a folder that has none."""
    (folder / "expert.json").write_text("{}")
    change(folder)
    (folder / "expert.json").unlink()


def changed(about: Adoption, **values: object) -> Adoption:
    return replace(about, **values)


class TestAdopt:
    def test_a_folder(self, elsewhere: Path, adapters: Path, about: Adoption):
        """Lost: every adapter that was not trained here."""
        before = snapshot(elsewhere)
        expert = adopt(
            elsewhere,
            adapters,
            BASE,
            changed(
                about,
                languages=("en", "fa"),
                license="MIT",
                system_prompt="Be exact.",
                generation={"max_tokens": 64},
                metric="first_word",
            ),
        )
        assert snapshot(elsewhere) == before
        assert Library(adapters, BASE)["law"].identity == expert.identity
        assert (expert.card.description, expert.card.title) == ("Explains law.", "Law")
        assert expert.card.fingerprint == FINGERPRINT
        assert [item.language for item in expert.exemplars] == ["en", "fa"]
        assert expert.card.training == {"license": "MIT", "adopted_from": "law"}
        assert (expert.card.system_prompt, expert.card.metric) == ("Be exact.", "first_word")
        assert expert.card.generation == {"max_tokens": 64}

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            pytest.param(config(use_dora=True), "use_dora", id="DoRA"),
            pytest.param(config(bias="all"), "bias", id="bias"),
            pytest.param(config(modules_to_save=["lm_head"]), "modules_to_save", id="saved"),
            pytest.param(config(peft_type="IA3"), "peft_type 'IA3'", id="no LoRA"),
            pytest.param(config(r=3), "rank", id="rank"),
            pytest.param(with_value(math.inf, "f4"), "infinity", id="infinite"),
            pytest.param(tensors(A=np.ones((2, 5), "f4")), "where the base has", id="shape"),
            pytest.param(lambda f: (f / WEIGHTS_FILE).write_bytes(b"{"), "whole", id="cut"),
            pytest.param(lambda f: (f / WEIGHTS_FILE).unlink(), "is missing", id="no weights"),
            pytest.param(lambda f: (f / CONFIG_FILE).unlink(), "is missing", id="no config"),
            pytest.param(lambda f: (f / CONFIG_FILE).write_text("{"), "JSON", id="no JSON"),
            pytest.param(
                lambda f: (f / WEIGHTS_FILE).rename(f / "adapter_model.bin"), "pickle", id="pickle"
            ),
            pytest.param(
                config(base_model_name_or_path="meta/other-base"), "'meta/other-base'", id="base"
            ),
        ],
    )
    def test_what_the_engine_cannot_run(
        self, elsewhere: Path, adapters: Path, about: Adoption, change: Change, words: str
    ):
        """Lost: an application, to an adapter that was not looked at."""
        in_place(elsewhere, change)
        with pytest.raises(UnfitExpert, match=re.escape(words)) as refused:
            adopt(elsewhere, adapters, BASE, about)
        assert "\n" not in str(refused.value)
        assert not adapters.exists()

    @pytest.mark.parametrize(
        ("values", "words"),
        [
            pytest.param({"description": None}, "describe in a sentence", id="description"),
            pytest.param({"exemplars": None}, "no exemplars", id="exemplars"),
            pytest.param({"exemplars": Path("nowhere.jsonl")}, "nowhere.jsonl", id="file"),
            pytest.param({"name": "base"}, "reserved", id="reserved"),
            pytest.param({"name": "No Name"}, "cannot name an expert", id="name"),
            pytest.param({"metric": "beauty"}, "metric 'beauty'", id="metric"),
            pytest.param({"generation": {"heat": 2}}, "'heat'", id="generation"),
        ],
    )
    def test_what_is_not_said(self, elsewhere, adapters, about, values, words):
        """Lost: what the router and people must know of an expert."""
        with pytest.raises((InvalidInput, UnfitExpert), match=re.escape(words)):
            adopt(elsewhere, adapters, BASE, changed(about, **values))
        assert not adapters.exists()

    def test_exemplars_that_are_none_are_named_by_file_and_line(
        self, elsewhere, adapters, about, tmp_path
    ):
        """Lost: the line to mend."""
        path = tmp_path / "questions.jsonl"
        path.write_text('{"text": "Fine?"}\nWhat is a lien?\n')
        with pytest.raises(UnfitExpert, match=r"questions\.jsonl.*line 2"):
            adopt(elsewhere, adapters, BASE, changed(about, exemplars=path))

    @pytest.mark.parametrize("source", ["nowhere", "a/b/c", "http://x/y", ""])
    def test_neither_a_folder_nor_an_id(self, adapters: Path, about: Adoption, source: str):
        """Lost: a sentence, to whatever a client makes of such an id."""
        with pytest.raises(InvalidInput, match="neither a folder nor an id"):
            adopt(source, adapters, BASE, about)

    def test_a_pickle_beside_the_weights_stays_where_it_is(self, elsewhere, adapters, about):
        """Lost: adapters whose makers kept both forms; or safety, to the other form."""
        (elsewhere / "training_args.bin").write_bytes(b"pickle")
        expert = adopt(elsewhere, adapters, BASE, about)
        assert not list(expert.folder.glob("*.bin"))

    def test_the_base_under_another_name(self, elsewhere, adapters, about):
        """Lost: adapters that were trained on a copy of the base."""
        config(base_model_name_or_path="/home/me/copy")(elsewhere)
        with pytest.raises(UnfitExpert, match="same-base"):
            adopt(elsewhere, adapters, BASE, about)
        assert adopt(elsewhere, adapters, BASE, changed(about, same_base=True)).name == "law"

    def test_a_name_that_is_taken(self, elsewhere: Path, adapters: Path, about: Adoption):
        """Lost: an expert, to a stranger of its name."""
        old = snapshot(build(adapters))
        with pytest.raises(InvalidInput, match="--replace"):
            adopt(elsewhere, adapters, BASE, about)
        assert snapshot(adapters / "law") == old
        assert adopt(elsewhere, adapters, BASE, changed(about, replace=True)).card.version == 2
        assert [item.number for item in versions_of(adapters / "law")] == [2, 1]
        assert adopt(elsewhere, adapters, BASE, changed(about, name="lore")).name == "lore"

    def test_killed_at_random_moments_the_experts_are_intact(self, tmp_path, elsewhere, about):
        """Lost: the experts in use, to `kill -9` while another is adopted."""
        prepare = (
            "from pathlib import Path\n"
            "from one4all_lc.adopting import Adoption, adopt\n"
            "from tests.test_folder import BASE\n"
            "about = Adoption(description='x', exemplars=Path(sys.argv[4]), replace=True)"
        )
        work = "adopt(sys.argv[2], sys.argv[3], BASE, about)"

        def begin(name: str) -> tuple[Path, tuple[Path, ...]]:
            folder = build(tmp_path / name)
            build(tmp_path / name, "lore")
            return folder, (elsewhere, folder.parent, about.exemplars)

        folder, arguments = begin("whole")
        moments = run_until(0, prepare, work, arguments)
        new, others = snapshot(folder), snapshot(folder.parent / "lore")
        old = snapshot(build(tmp_path / "as-it-was"))
        for moment in random.SystemRandom().sample(range(1, moments + 1), 5):
            folder, arguments = begin(f"killed-at-{moment}")
            assert run_until(moment, prepare, work, arguments) is None
            assert snapshot(folder) in (old, new), f"killed at {moment} of {moments}"
            assert snapshot(folder.parent / "lore") == others
            assert Library(folder.parent, BASE).names == ("law", "lore")
            adopt(*arguments[:2], BASE, changed(about, replace=True))
            assert Library(folder.parent, BASE)["law"].card.title == "Law"


class TestFetch:
    def files(self, folder: Path) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in folder.iterdir()}

    def test_by_revision(self, hub, elsewhere: Path, adapters: Path, about: Adoption):
        """Lost: the version that was looked at, to whatever its owner uploads next."""
        first = hub.add(REPO, self.files(elsewhere))
        hub.repos[REPO].refs["v1"] = first
        in_place(elsewhere, with_value(0.25, "f4"))
        second = hub.add(REPO, self.files(elsewhere))
        by_default = adopt(REPO, adapters, BASE, about)
        assert by_default.name == "law-lora_v2"
        assert by_default.card.training["revision"] == second
        for revision in ("v1", first):
            old = adopt(
                REPO, adapters, BASE, changed(about, name=f"r-{revision[:4]}"), revision=revision
            )
            assert old.card.training["revision"] == first
            assert old.identity != by_default.identity

    def test_only_what_is_needed_is_fetched(self, hub, elsewhere, adapters, about):
        """Lost: disk and safety, to what else lies in a repository."""
        more = {"optimizer.pt": b"pickle", "model-00001.safetensors": b"large", "evil.py": b"1"}
        hub.add(REPO, {**self.files(elsewhere), **more})
        adopt(REPO, adapters, BASE, about)
        fetched = {path.rpartition("/")[2] for path in hub.asked if "/resolve/" in path}
        assert fetched == {CONFIG_FILE, WEIGHTS_FILE}

    def test_a_pickle_is_never_fetched(self, hub, elsewhere, adapters, about):
        """Lost: the machine, to code in somebody's adapter."""
        files = self.files(elsewhere)
        files["adapter_model.bin"] = files.pop(WEIGHTS_FILE)
        hub.add(REPO, files)
        with pytest.raises(InvalidInput, match="only a PEFT adapter saved as safetensors"):
            adopt(REPO, adapters, BASE, about)
        assert not [path for path in hub.asked if "adapter_model.bin" in path]

    @pytest.mark.parametrize(
        ("repo", "revision", "words"),
        [
            ("no/such", None, "has no no/such that you may use"),
            (REPO, "v9", "has no revision 'v9'"),
            ("a..b/c--d", None, "is no id on the hub"),
        ],
    )
    def test_what_is_not_there(self, hub, elsewhere, adapters, about, repo, revision, words):
        """Lost: a sentence that says what was wrong."""
        hub.add(REPO, self.files(elsewhere))
        with pytest.raises(InvalidInput, match=re.escape(words)) as refused:
            adopt(repo, adapters, BASE, about, revision=revision)
        assert "\n" not in str(refused.value)

    def test_a_revision_of_a_folder(self, elsewhere, adapters, about):
        """Lost: the belief that a folder was looked at as of then."""
        with pytest.raises(InvalidInput, match="--revision is for the hub"):
            adopt(elsewhere, adapters, BASE, about, revision="main")

    def test_what_was_fetched_before_needs_no_hub(
        self, hub, elsewhere, adapters, about, monkeypatch
    ):
        """Lost: an installation without network that was prepared for it."""
        hub.add(REPO, self.files(elsewhere))
        adopt(REPO, adapters, BASE, about)
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
        assert adopt(REPO, adapters, BASE, changed(about, name="again")).name == "again"
        with pytest.raises(InvalidInput, match="try again, or go online"):
            adopt("other/one", adapters, BASE, about)


class TestPush:
    def test_there_and_back(self, hub, login, adapters: Path, tmp_path: Path):
        """Lost: an expert, on its way to a colleague."""
        folder = build(adapters)
        card(training={"license": "CC BY 4.0"}, system_prompt="Be exact.")(folder)
        url = push(folder, "me/law")
        files = hub.repos["me/law"].commits[url.rpartition("/")[2]]
        kept = {CONFIG_FILE, WEIGHTS_FILE, "expert.json", EXEMPLARS_FILE}
        assert set(files) - {".gitattributes"} == kept | {"README.md"}
        assert all(files[name] == (folder / name).read_bytes() for name in kept)
        back = adopt("me/law", tmp_path / "theirs", BASE)
        ours = read_expert(folder, BASE)
        assert (back.identity, back.exemplars) == (ours.identity, ours.exemplars)
        for name in ("description", "system_prompt", "generation", "metrics", "title"):
            assert getattr(back.card, name) == getattr(ours.card, name)
        assert back.card.training["adopted_from"] == "me/law"

    def test_again_and_on_a_branch(self, hub, login, adapters: Path):
        """Lost: the second version, to a repository that is there already."""
        folder = build(adapters)
        push(folder, "me/law", private=True)
        assert hub.repos["me/law"].private
        push(folder, "me/law", message="anew")
        push(folder, "me/law", revision="next")
        assert set(hub.repos["me/law"].refs) == {"main", "next"}

    def test_nobody_is_logged_in(self, hub, adapters: Path):
        """Lost: a sentence that says how to log in."""
        with pytest.raises(InvalidInput, match="hf auth login") as refused:
            push(build(adapters), "me/law")
        assert "\n" not in str(refused.value)

    @pytest.mark.parametrize("repo", ["law", "a/b/c", "me/law x"])
    def test_no_id(self, hub, login, adapters: Path, repo: str):
        """Lost: the place where the expert should have gone."""
        with pytest.raises(InvalidInput, match="is no id on the hub: write owner/name"):
            push(build(adapters), repo)
        assert not hub.asked

    def test_unfit_is_not_pushed(self, hub, login, adapters: Path):
        """Lost: everybody else's time."""
        folder = build(adapters)
        config(use_dora=True)(folder)
        with pytest.raises(UnfitExpert):
            push(folder, "me/law")
        assert not hub.asked


class TestModelCard:
    def metadata(self, text: str) -> dict:
        return yaml.safe_load(text.split("---\n")[1])

    def test_says_what_the_hub_searches_by(self, adapters: Path):
        """Lost: whoever looks for experts of their base on the hub."""
        folder = build(adapters)
        figures = {"base": 0.1, "expert": 0.4, "rows": 100, "nearest": 0.2}
        sure = {"intervals": {"expert": [0.31, 0.5]}}
        card(
            languages=["en", "fa"],
            training={"license": "CC BY 4.0", "rows": 10, "recipe": {"rank": 8}},
            metrics={"split": "test", "rouge_l": {**figures, **sure}, "quantization": "nf4"},
        )(folder)
        text = model_card(read_expert(folder), "me/law")
        found = self.metadata(text)
        assert found["base_model"] == BASE.id
        assert found["license"] == "cc-by-4.0"
        assert found["language"] == ["en", "fa"]
        assert found["library_name"] == "peft"
        assert {"lora", "one4all_lc"} <= set(found["tags"])
        (result,) = found["model-index"][0]["results"]
        assert result["metrics"][0]["value"] == 0.4
        assert "| ROUGE-L | 0.100 | 0.400 | 0.310 to 0.500 | 0.200 | 100 |" in text
        assert "one4all adopt me/law" in text
        assert "- recipe, rank: 8" in text

    @pytest.mark.parametrize(
        ("written", "known"),
        [("BSD-3-Clause", "bsd-3-clause"), ("MIT", "mit"), ("My own", "other")],
    )
    def test_names_licenses_as_the_hub_does(self, adapters: Path, written: str, known: str):
        """Lost: the terms under which others may use it."""
        folder = build(adapters)
        card(training={"license": written}, metrics={})(folder)
        text = model_card(read_expert(folder), "me/law")
        assert self.metadata(text)["license"] == known
        assert written in text
        assert "Nothing was measured." in text

    def test_its_code_runs(self, adapters: Path):
        """Lost: the first minute of whoever finds it."""
        text = model_card(read_expert(build(adapters)), "me/law")
        (program,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
        compile(program, "README.md", "exec")
        assert 'model="law"' in program


def test_the_card_that_comes_along_is_checked(hub, adapters: Path, tmp_path: Path):
    """Lost: a library, to a card that somebody else wrote."""
    folder = build(tmp_path / "theirs")
    values = json.loads((folder / "expert.json").read_text())
    (folder / "expert.json").write_text(json.dumps(values | {"run": "rm -rf"}))
    hub.add("some/law", {path.name: path.read_bytes() for path in folder.iterdir()})
    with pytest.raises(UnfitExpert, match="'run' is unknown"):
        adopt("some/law", adapters, BASE)
    assert ExpertCard.from_dict(values).name == "law"
