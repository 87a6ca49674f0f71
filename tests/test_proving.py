"""An expert is held against its base, against looking up, and against the version in place."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from one4all_lc.base.loading import SharedBase
from one4all_lc.card import ExpertCard
from one4all_lc.errors import InvalidInput, UnfitExpert, UnknownExpert, WorseExpert
from one4all_lc.folder import WEIGHTS_FILE, read_expert, sha256_of
from one4all_lc.library import Library
from one4all_lc.training.baselines import nearest_answers
from one4all_lc.training.data import Row
from one4all_lc.training.evaluation import examine, measure
from one4all_lc.training.gate import compare_cards
from one4all_lc.training.matrix import cells, domains_of, fill
from one4all_lc.training.matrix_report import as_dict, bars_of, page_of
from one4all_lc.training.measuring import Asked, HeldOut, answers, losses
from one4all_lc.training.proving import Publication, publish_if_not_worse
from one4all_lc.training.scores import exact_match, first_word, score_all, scores_of
from one4all_lc.versions import rollback, versions_of
from tests.experts import write_expert, write_tiny_base

WORDS = ("apple", "river", "stone", "cloud", "horse", "lemon", "table", "window")


def rows_of(prefix: str, tests: int = 2) -> list[Row]:
    """Rows written for these tests: repeat the word in capitals."""
    return [
        Row(f"{prefix} {word} {n}", f"{word.upper()} {n}!", "test" if n < tests else "train")
        for n in range(4)
        for word in WORDS
    ]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return str(write_tiny_base(tmp_path_factory.mktemp("bases") / "tiny"))


@pytest.fixture(scope="module")
def facts(base):
    return SharedBase.load(base, quantization="nf4").facts


LAW = {"generation": {"max_tokens": 6}, "system_prompt": "Shout."}


@pytest.fixture
def make(tmp_path, facts):
    """Return a function that writes an expert into a folder of its own."""

    def write(where, name="law", seed=0, strength=0.02, **card):
        return write_expert(
            tmp_path / where / name,
            facts,
            4,
            seed,
            strength,
            **(LAW | {"metric": "perplexity"} | card),
        )

    return write


def taught(folder, steps=4, towards=1):
    """Teach an expert in place what the rows want, or the contrary, by some steps in float32."""
    from peft import PeftModel
    from safetensors.torch import save_file

    from one4all_lc.training.data import encode

    card = ExpertCard.read(folder)
    shared = SharedBase.load(card.base, quantization="none", dtype=torch.float32, shared=False)
    model = PeftModel.from_pretrained(shared.model, folder, is_trainable=True)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    examples, _ = encode(rows_of("Say"), shared.tokenizer, card.system_prompt, 512)
    for _ in range(steps):
        for example in examples:
            labels = [-100] * len(example.prompt) + list(example.answer)
            ids = torch.tensor([[*example.prompt, *example.answer]])
            loss = model(input_ids=ids, labels=torch.tensor([labels])).loss
            (towards * loss / len(examples)).backward()
        optimizer.step()
        optimizer.zero_grad()
    tensors = {
        name.replace(".default", ""): value.detach().contiguous()
        for name, value in model.named_parameters()
        if value.requires_grad
    }
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    replace(card, weights_sha256=sha256_of(folder / WEIGHTS_FILE)).write(folder)
    return folder


class TestScores:
    def test_white_space_is_no_difference(self):
        """Lost: queries that are right but for a line break."""
        assert exact_match("SELECT  a\nFROM t", "SELECT a FROM t") == 1
        assert exact_match("SELECT a", "SELECT b") == 0

    def test_the_first_word_is_the_program(self):
        """Lost: the metric that says whether a command runs the right program."""
        assert first_word("git  log -1", "git status") == 1
        assert first_word("", "git status") == 0
        assert first_word("gitk", "git") == 0

    def test_a_scorer_of_ones_own(self, tmp_path, monkeypatch):
        """Lost: whatever matters in the user's own domain."""
        monkeypatch.chdir(tmp_path)
        (tmp_path / "mine_to_score.py").write_text(
            "def same_number(answer, wanted):\n    return answer.split()[-1] in wanted\n"
            "def broken(answer, wanted):\n    return 1 / 0\n"
            "def silent(answer, wanted):\n    return float('nan')\n"
            "number = 3\n"
        )
        score = scores_of("mine_to_score:same_number")["mine_to_score:same_number"]
        found = score_all("x", score, ["it is 4", "it is 5"], ["= 4", "= 4"])
        assert found.tolist() == [1, 0]
        for name, words in {
            "mine_to_score:gone": "cannot be loaded",
            "no_such_module:f": "cannot be loaded",
            "mine_to_score": "write module:function",
            "mine_to_score:number": "name a function",
        }.items():
            with pytest.raises(InvalidInput, match=words):
                scores_of(name)
        for name, words in {"broken": "ZeroDivisionError", "silent": "finite number"}.items():
            score = scores_of(f"mine_to_score:{name}")[f"mine_to_score:{name}"]
            with pytest.raises(InvalidInput, match=words):
                score_all(name, score, ["a"], ["b"])

    def test_looking_up_finds_the_likeliest_question(self):
        """Lost: the baseline that shows whether an expert learned more than its rows by heart."""
        rows = [
            Row("How do I list files?", "ls"),
            Row("How do I remove a file?", "rm"),
            Row("قیمت گوشی چند است؟", "گران"),
            Row("list files", "held out", "test"),
        ]
        asked = ["list all files please", "remove this file", "قیمت گوشی"]
        assert nearest_answers(rows, asked) == ["ls", "rm", "گران"]
        assert nearest_answers([row for row in rows if row.split == "test"], asked) is None


class TestMeasuring:
    def test_losses_are_those_of_transformers_and_peft(self, base, make):
        """Lost: the trust in a perplexity, to padding or to a layer that was left out."""
        from peft import PeftModel

        from one4all_lc.training.measuring import _example

        shared = SharedBase.load(base, quantization="none", dtype=torch.float32)
        expert = read_expert(make("a", strength=1.0), shared.facts)
        rows = [row for row in rows_of("Say it:") if row.split == "test"][:5]
        rows.append(Row("A much longer question. " * 9, "AND A MUCH LONGER ANSWER " * 3, "test"))
        asked = Asked.of(expert)
        ours, tokens = losses(shared, rows, asked)
        alone, _ = losses(shared, rows, asked.without_adapter())
        other = SharedBase.load(base, quantization="none", dtype=torch.float32, shared=False)
        model = PeftModel.from_pretrained(other.model, expert.folder).eval()
        theirs, bare = [], []
        for row in rows:
            example = _example(row, shared, expert.card.system_prompt)
            ids = torch.tensor([[*example.prompt, *example.answer]])
            labels = ids.clone()
            labels[:, : len(example.prompt)] = -100
            with torch.no_grad():
                theirs.append(float(model(input_ids=ids, labels=labels).loss) * len(example.answer))
                with model.disable_adapter():
                    loss = model(input_ids=ids, labels=labels).loss
                    bare.append(float(loss) * len(example.answer))
        assert ours == pytest.approx(np.array(theirs), rel=1e-4)
        assert alone == pytest.approx(np.array(bare), rel=1e-4)
        assert np.abs(ours / alone - 1).max() > 0.01, "the adapter's share must be large enough"
        assert tokens[-1] > tokens[0]

    def test_everybody_answers_in_one_batch_what_they_answer_alone(self, base, facts, make):
        """Lost: scores that do not depend on who else is measured."""
        shared = SharedBase.load(base, quantization="nf4")
        one, two = (
            Asked.of(read_expert(make(w, seed=i, strength=0.5), facts)) for i, w in enumerate("ab")
        )
        rows = rows_of("Say")[:4]
        together = answers(shared, [(one, rows), (two, rows), (one.without_adapter(), rows)])
        alone = [answers(shared, [(who, rows)])[0] for who in (one, two, one.without_adapter())]
        assert together == alone
        assert together[0] != together[2]

    def test_the_same_rows_have_the_same_name(self):
        """Lost: the comparison of two cards, or its honesty."""
        rows = rows_of("Say")
        one = HeldOut.drawn(rows, 6, 4)
        assert one == HeldOut.drawn(rows, 6, 4)
        assert one.sha256 == HeldOut.drawn(rows, 6, 4).sha256
        assert one.sha256 != HeldOut.drawn(rows, 6, 3).sha256
        assert one.sha256 != HeldOut.drawn(rows_of("Tell"), 6, 4).sha256
        assert {row.split for row in one.rows} == {"test"}

    def test_metrics_have_intervals_and_the_baseline(self, base, make):
        """Lost: how sure a card's figures are."""
        done = []
        found = examine(
            make("a"), rows_of("Say"), base, scored=8, answered=4, advance=lambda: done.append(1)
        ).metrics()
        assert len(done) == 2 * (8 + 4)
        perplexity = found["perplexity"]
        low, high = perplexity["intervals"]["expert"]
        assert low <= perplexity["expert"] <= high
        assert perplexity["ratio"] == pytest.approx(
            perplexity["expert"] / perplexity["base"], abs=1e-3
        )
        for name in ("exact_match", "rouge_l", "first_word"):
            assert set(found[name]) >= {"base", "expert", "nearest", "gain", "rows"}
            low, high = found[name]["intervals"]["nearest"]
            assert low <= found[name]["nearest"] <= high
        assert found["exact_match"]["rows"] == 4
        json.dumps(found)

    def test_a_metric_that_is_not_measured_is_refused_before_the_base_is_loaded(self, make):
        """Lost: a minute, and the sentence that says which option is missing."""
        folder = make("a", metric="mine:score")
        with pytest.raises(InvalidInput, match="give --scorer mine:score"):
            examine(folder, rows_of("Say"), read_expert(folder).card.base)


class TestGate:
    @pytest.fixture
    def place(self, make):
        return taught(make("adapters"))

    @pytest.fixture
    def how(self):
        return Publication(gate=True, scored=16, answered=4)

    def test_better_replaces(self, place, make, how):
        """Lost: every improvement."""
        better = taught(make("made"), 8)
        expert, verdict = publish_if_not_worse(better, place, rows_of("Say"), publication=how)
        assert expert.card.version == 2
        assert verdict.against == "version 1"
        assert verdict.gain > 0
        assert verdict.interval[0] <= verdict.gain <= verdict.interval[1]

    def test_the_same_replaces(self, place, tmp_path, how):
        """Lost: a new card or new exemplars for the same weights."""
        same = shutil.copytree(place, tmp_path / "same" / "law")
        expert, verdict = publish_if_not_worse(same, place, rows_of("Say"), publication=how)
        assert (expert.card.version, verdict.gain) == (2, 0)

    def test_worse_does_not(self, place, make, how):
        """Lost: the expert in use, to a training that went wrong."""
        worse, before = make("made", seed=1, strength=0.5), read_expert(place)
        with pytest.raises(WorseExpert, match=r"version 1 has .*--force") as refused:
            publish_if_not_worse(worse, place, rows_of("Say"), publication=how)
        assert str(worse) in str(refused.value)
        assert read_expert(place) == before
        forced = replace(how, gate=False)
        expert, verdict = publish_if_not_worse(worse, place, rows_of("Say"), publication=forced)
        assert (expert.card.version, verdict) == (2, None)
        lenient = replace(how, tolerance=1e9)
        assert publish_if_not_worse(worse, place, rows_of("Say"), publication=lenient)

    def test_a_new_expert_must_not_be_worse_than_the_base(self, make, tmp_path, how):
        """Lost: the meaning of an expert."""
        worse, place = taught(make("made"), towards=-1), tmp_path / "adapters" / "law"
        with pytest.raises(WorseExpert, match="where the base has"):
            publish_if_not_worse(worse, place, rows_of("Say"), publication=how)
        assert not place.exists()
        good = taught(make("good"))
        assert publish_if_not_worse(good, place, rows_of("Say"), publication=how)[0].name == "law"

    def test_the_old_one_is_asked_by_its_own_prompt(self, place, make, how, monkeypatch):
        """Lost: fairness, to a new version with a new prompt."""
        from one4all_lc.training import gate

        asked = []
        real = gate.losses
        monkeypatch.setattr(
            gate, "losses", lambda shared, rows, who: asked.append(who) or real(shared, rows, who)
        )
        new = taught(make("made", system_prompt="Say it in capitals."))
        publish_if_not_worse(new, place, rows_of("Say"), publication=replace(how, tolerance=9))
        assert [who.system_prompt for who in asked] == ["Shout."]
        assert read_expert(place).card.system_prompt == "Say it in capitals."

    def test_the_metric_of_the_card_decides(self, place, make, how, tmp_path, monkeypatch):
        """Lost: what the user meant by better."""
        monkeypatch.chdir(tmp_path)
        (tmp_path / "by_length.py").write_text("def short(answer, wanted): return -len(answer)\n")
        new = make("made", metric="by_length:short")
        with_scorer = replace(how, scorer="by_length:short", tolerance=1e9)
        _, verdict = publish_if_not_worse(new, place, rows_of("Say"), publication=with_scorer)
        assert verdict.metric == "by_length:short"
        assert verdict.rows == 4
        with pytest.raises(InvalidInput, match="give --scorer by_length:short"):
            publish_if_not_worse(new, place, rows_of("Say"), publication=how)

    def test_where_answers_tie_the_perplexity_decides(self, place, make, how):
        """Lost: an expert, to a worse one, where neither gets an answer exactly right."""
        exact = replace(ExpertCard.read(place), metric="exact_match")
        exact.write(place)
        worse = make("made", seed=1, strength=0.5, metric="exact_match")
        with pytest.raises(WorseExpert, match="perplexity"):
            publish_if_not_worse(worse, place, rows_of("Say"), publication=how)

    def test_cards_are_compared_where_both_were_measured_alike(self, place, make, base, how):
        """Lost: publishing without the data, or its honesty."""
        rows = rows_of("Say")
        better = taught(make("made"), 8)
        with pytest.raises(InvalidInput, match="give them with --data"):
            publish_if_not_worse(better, place)
        for folder in (place, better):
            card = ExpertCard.read(folder)
            replace(card, metrics=measure(folder, rows, base, scored=16, answered=4)).write(folder)
        _, verdict = publish_if_not_worse(better, place)
        assert verdict.gain > 0
        new = ExpertCard.read(place)
        other = replace(new, metrics={**new.metrics, "rows_sha256": "0" * 64})
        with pytest.raises(InvalidInput, match="give them with --data"):
            compare_cards(new, other)

    def test_rolled_back_after_all(self, place, make, how):
        """Lost: the way back from a version that users like less than the metric does."""
        old = read_expert(place).identity
        better = taught(make("made"), 8)
        publish_if_not_worse(better, place, rows_of("Say"), publication=how)
        assert rollback(place).identity == old
        assert [item.number for item in versions_of(place)] == [2, 1]


def test_a_training_replaces_only_what_it_beats(base, tmp_path):
    """Lost: the expert in use, to a training that was told to publish what it made."""
    from one4all_lc.training.qlora import train_expert
    from one4all_lc.training.recipe import About, Recipe

    rows = [
        json.dumps({"question": row.question, "answer": row.answer, "split": row.split})
        for row in rows_of("Say")
    ]
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(rows))
    folder = tmp_path / "adapters" / "law"
    about = About(description="Shouts.", generation={"max_tokens": 6}, metric="perplexity")
    how = Publication(gate=True, scored=16, answered=4)

    def train(learning_rate, **options):
        recipe = Recipe(steps=30, rank=4, learning_rate=learning_rate, patience=0)
        return train_expert(
            folder, [data], about=about, recipe=recipe, base=base, publication=how, **options
        )

    good = train(1e-2)
    assert (good.card.version, good.card.metric) == (1, "perplexity")
    with pytest.raises(WorseExpert, match="version 1 has") as refused:
        train(1e-7)
    made = folder.parent / ".law.training" / "law"
    assert str(made) in str(refused.value)
    assert read_expert(folder) == good
    assert read_expert(made).card.version == 2
    forced = replace(how, gate=False)
    assert publish_if_not_worse(made, folder, publication=forced)[0].card.version == 2
    assert rollback(folder).identity == good.identity


def test_a_gate_without_held_out_rows_is_refused_before_the_training(base, tmp_path):
    """Lost: a training, at the end of which nothing can be compared."""
    from one4all_lc.training.qlora import train_expert
    from one4all_lc.training.recipe import About

    data = tmp_path / "rows.jsonl"
    data.write_text('{"question": "Say a", "answer": "A!"}\n{"question": "Say b", "answer": "B!"}')
    about, how = About(description="Shouts."), Publication(gate=True)
    with pytest.raises(InvalidInput, match="hold some out"):
        train_expert(tmp_path / "law", [data], about=about, base=base, publication=how)
    unknown = replace(about, metric="mine:score")
    with pytest.raises(InvalidInput, match="give --scorer mine:score"):
        train_expert(tmp_path / "law", [data], about=unknown, base=base)
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_other_experts_answer_bit_for_bit_as_before(base, facts, make, tmp_path):
    """Lost: the promise that an update of one expert touches nobody else."""
    shared = SharedBase.load(base, quantization="nf4")
    for index, name in enumerate(("law", "art", "tax")):
        make("adapters", name, seed=index, strength=0.4)
    adapters = tmp_path / "adapters"
    library = Library(adapters, facts)
    rows = rows_of("Say")[:6]

    def all_answers():
        who = [Asked.of(expert) for expert in library]
        read = {item.expert.name: losses(shared, rows, item)[0].tolist() for item in who}
        return read, dict(
            zip(library.names, answers(shared, [(w, rows) for w in who]), strict=True)
        )

    before, said = all_answers()
    publish_if_not_worse(
        make("made", "law", seed=9, strength=0.4),
        adapters / "law",
        publication=Publication(gate=False),
    )
    assert library.refresh() == ("law",)
    after, says = all_answers()
    assert before["law"] != after["law"]
    for name in ("art", "tax"):
        assert before[name] == after[name]
        assert said[name] == says[name]


class TestMatrix:
    @pytest.fixture(scope="class")
    def matrix(self, base, facts, tmp_path_factory):
        root = tmp_path_factory.mktemp("matrix")
        for index, name in enumerate(("sql", "law", "art")):
            exemplars = [f"Say {name} apple 0", f"about {name}"]
            write_expert(
                root / name, facts, 4, index, 0.3, exemplars=exemplars, generation={"max_tokens": 5}
            )
        replace(ExpertCard.read(root / "sql"), metric="exact_match").write(root / "sql")
        library = Library(root, facts)
        shared = SharedBase.load(base, quantization="nf4")
        data = {name: rows_of(f"Say {name}") for name in ("sql", "law")}
        domains = domains_of(library, data, shared, scored=6, answered=4)
        done = []

        def router(questions):
            chosen = ["law" if "law" in text else "art" for text in questions]
            return [None, *chosen[1:]]

        found = fill(library, domains, shared, router, advance=lambda: done.append(1))
        assert len(done) == cells(library, domains) == 2 * (6 + 4) * 4
        return found

    def test_everybody_is_asked_everything(self, matrix):
        """Lost: the proof that a domain's own expert is the best for it."""
        assert matrix.names == ("art", "law", "sql", "base")
        for domain in matrix.domains:
            assert matrix.deciding("base", domain).shape == (4,)
            for name in matrix.names:
                assert matrix.nats[name, domain.name].shape == (6,)
        assert not np.allclose(matrix.nats["art", "law"], matrix.nats["sql", "law"])

    def test_no_question_is_an_exemplar(self, matrix):
        """Lost: the worth of a routed score, to questions that the router knows by heart."""
        asked = {row.question for domain in matrix.domains for row in domain.held_out.rows}
        assert asked
        assert not asked & {f"Say {name} apple 0" for name in ("sql", "law")}

    def test_routed_answers_are_those_of_whom_the_router_chose(self, matrix):
        """Lost: the router's share in what users get."""
        law = next(domain for domain in matrix.domains if domain.name == "law")
        assert matrix.chosen["law"] == (None, "law", "law", "law")
        assert matrix.routed["law"][1:].tolist() == matrix.deciding("law", law)[1:].tolist()
        ways = matrix.ways()
        assert ways["oracle"]["domains"]["law"] == round(matrix.deciding("law", law).mean(), 4)
        experts = [matrix.deciding(name, law).mean() for name in ("art", "law", "sql")]
        assert ways["random"]["domains"]["law"] == pytest.approx(np.mean(experts), abs=1e-4)

    def test_bars_end_the_document_and_say_what_did_not_run(self, matrix):
        """Lost: a pass for an expert that was never measured."""
        found = as_dict(matrix)
        assert list(found)[-1] == "bars"
        bars = found["bars"]
        assert set(bars) == {
            "sql_exact_match",
            "shell_first_word",
            "medical_rouge_l",
            "worst_perplexity_ratio",
            "routed_over_oracle",
        }
        assert bars["shell_first_word"] == {"value": None, "bar": 0.55, "holds": None}
        assert bars["sql_exact_match"]["value"] is not None
        worst = max(matrix.ratio(d.name, d) for d in matrix.domains)
        assert bars["worst_perplexity_ratio"]["value"] == round(worst, 4)
        assert bars_of(matrix)["worst_perplexity_ratio"].holds is (worst <= 0.6)
        json.dumps(found, allow_nan=False)

    def test_the_page_shows_it(self, matrix, tmp_path):
        """Lost: the picture that one looks at first."""
        from one4all_lc.reports.page import write_report

        page = page_of(matrix)
        text = write_report(tmp_path, page).read_text(encoding="utf-8")
        for words in ("Each expert on every domain", "oracle", "sql exact match", "law"):
            assert words in text
        for name in ("scores", "perplexity"):
            assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")

    def test_domains_that_cannot_be_measured(self, base, facts, tmp_path):
        """Lost: a sentence that says which file is wrong."""
        write_expert(tmp_path / "law", facts, 4, exemplars=["Say"])
        library, shared = Library(tmp_path, facts), SharedBase.load(base, quantization="nf4")
        with pytest.raises(InvalidInput, match="rows of 'law' measure nothing: None of the rows"):
            domains_of(library, {"law": [Row("a", "b")]}, shared, scored=1, answered=1)
        with pytest.raises(UnknownExpert):
            domains_of(library, {"lore": rows_of("x")}, shared, scored=1, answered=1)


def test_an_unfit_folder_is_not_measured(make):
    """Lost: a sentence, to whatever a broken adapter does in the middle of a measurement."""
    folder = make("a")
    (folder / WEIGHTS_FILE).write_bytes(b"")
    with pytest.raises(UnfitExpert):
        publish_if_not_worse(folder, folder.parent / "x" / "law", rows_of("Say"))
