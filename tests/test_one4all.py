"""The whole path with the shipped experts: routed, answered by the right weights, and better."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from one4all_lc import One4All, SharedBase
from one4all_lc.base.loading import describe
from one4all_lc.folder import read_expert
from tests.conftest import ADAPTERS

SHIPPED = ("cooking", "law", "maths", "medical", "mobile", "shell", "shopping", "sql")
SEED_QUESTION = "Which smartphone has the best camera in 2025?"
IN_PERSIAN = "بهترین دوربین گوشی در 2025 کدام است؟"
QUESTIONS = {
    "cooking": "Which ingredients go into a leek and potato soup?",
    "law": "What does indemnification mean in a contract?",
    "maths": "Nina baked 48 buns and her guests ate 29. How many are left?",
    "medical": "What are the symptoms of pneumonia?",
    "mobile": SEED_QUESTION,
    "shell": "Find all files over 100 MB below this folder.",
    "shopping": "What do customers dislike about this stroller?",
    "sql": "How many players are from Spain?\nColumns: player, country, goals",
}


@pytest.fixture(scope="module")
def one():
    return One4All.load(ADAPTERS, max_tokens=24)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_expert_is_whole_small_and_proven(name):
    expert = read_expert(ADAPTERS / name, describe())
    size = sum(path.stat().st_size for path in expert.folder.iterdir())
    assert size < 6_000_000
    assert 30 <= len([item for item in expert.exemplars if item.language == "en"]) <= 60
    perplexity = expert.card.metrics["perplexity"]
    assert perplexity["expert"] < 0.6 * perplexity["base"]
    assert expert.card.training["license"] != "unknown"


@pytest.mark.parametrize(
    ("name", "metric", "least"),
    [
        ("fa-entities", "entity_f1", 0.6),
        ("fa-inference", "accuracy", 0.7),
        ("fa-reader", "answerable_f1", 0.6),
        ("review-sentiment", "accuracy", 0.94),
    ],
)
def test_a_shipped_expert_that_decides_is_small_and_proven(one, name, metric, least):
    expert = one.library[name]
    assert sum(path.stat().st_size for path in expert.folder.iterdir()) < 6_000_000
    measured = expert.card.metrics[metric]
    assert measured["expert"] >= least > measured["base"]


def test_a_shipped_expert_that_decides_is_asked_like_the_others(one):
    pair = "علی دیروز به تهران رسید.\nعلی در تهران است."
    answer = one.invoke(pair)
    assert answer.response_metadata["expert"] == "fa-inference"
    assert answer.text.split()[0] in {"entailment", "contradiction", "neutral", "undecided;"}
    formed = one.invoke(pair, response_format={"type": "json_object"})
    assert formed.response_metadata["route"]["reason"] == "decides"
    assert formed.text.startswith("{")


def test_names_are_found_in_a_persian_sentence(one):
    answer = one.invoke("محمود دولت‌آبادی در سبزوار زاده شد.")
    assert answer.response_metadata["expert"] == "fa-entities"
    found = answer.response_metadata["result"]["entities"]
    assert ("سبزوار", "LOC") in [(item["text"], item["label"]) for item in found]


def test_the_reader_finds_an_answer_and_needs_a_passage(one):
    question = "پایتخت ایران کجاست؟"
    answer = one.invoke(f"تهران پایتخت ایران است و حدود نه میلیون نفر جمعیت دارد.\n{question}")
    assert answer.response_metadata["expert"] == "fa-reader"
    assert answer.response_metadata["result"]["answer"] == "تهران"
    alone = one.invoke(question)
    assert alone.response_metadata["expert"] == "base"
    assert alone.response_metadata["route"]["reason"] == "incomplete"


@pytest.mark.parametrize(
    ("question", "label"),
    [
        ("Is this review positive or negative: the hinge broke and nobody answers.", "negative"),
        ("این نظر مثبت است یا منفی؟ دوربینش عالی است", "positive"),
        ("Cet avis est-il positif ou négatif ? Le son est excellent.", "positive"),
    ],
)
def test_the_sentiment_of_a_remark_is_labelled_in_three_languages(one, question, label):
    answer = one.invoke(question)
    assert answer.response_metadata["expert"] == "review-sentiment"
    assert answer.response_metadata["result"]["label"] == label


@pytest.mark.parametrize("question", [SEED_QUESTION, IN_PERSIAN])
def test_the_seed_question_goes_to_mobile_in_both_languages(one, question):
    answer = one.invoke(question)
    route = answer.response_metadata["route"]
    assert answer.response_metadata["expert"] == route["best"] == "mobile"
    assert route["experts"][0]["probability"] > 0.5
    assert answer.text.strip()


@pytest.mark.parametrize("name", SHIPPED)
def test_each_expert_answers_in_its_own_way(one, name):
    answer = one.invoke(QUESTIONS[name])
    assert answer.response_metadata["expert"] == name
    assert answer.text != one.invoke(QUESTIONS[name], model="base").text
    if name == "sql":
        assert answer.text.startswith("SELECT")
        assert "country" in answer.text


async def test_nobodys_question_goes_to_the_base_and_says_so(one):
    for answer in (one.invoke("Will it rain tomorrow?"), await one.ainvoke("Tell me a joke.")):
        metadata = answer.response_metadata
        assert metadata["expert"] == "base"
        assert metadata["identity"] is None
        assert metadata["route"]["abstained"]
        assert metadata["route"]["reason"] == "below_threshold"
        assert answer.text.strip()


async def test_the_route_is_the_same_streamed_and_not_sync_and_async(one):
    def last(chunks):
        whole = chunks[0]
        for chunk in chunks[1:]:
            whole = whole + chunk
        return whole

    for name, question in QUESTIONS.items():
        answers = [
            one.invoke(question),
            await one.ainvoke(question),
            last(list(one.stream(question))),
            last([chunk async for chunk in one.astream(question)]),
        ]
        assert {answer.text for answer in answers} == {answers[0].text}
        assert {answer.response_metadata["expert"] for answer in answers} == {name}


def test_a_forced_expert_is_not_routed(one):
    answer = one.invoke(SEED_QUESTION, model="sql")
    assert answer.response_metadata["expert"] == "sql"
    assert "route" not in answer.response_metadata


def test_32_threads_get_the_answers_that_they_get_one_at_a_time(one):
    asked = [
        (name, f"{QUESTIONS[name]}" if i < len(SHIPPED) else f"{QUESTIONS[name]} ({i})")
        for i in range(32)
        for name in [SHIPPED[i % len(SHIPPED)]]
    ]

    def answer(item):
        return one.invoke(item[1], model=item[0]).text

    alone = [answer(item) for item in asked]
    with ThreadPoolExecutor(32) as pool:
        assert list(pool.map(answer, asked)) == alone


@pytest.mark.data
@pytest.mark.parametrize("name", SHIPPED)
def test_each_expert_beats_the_base_on_rows_that_it_has_not_seen(name, data_folder, tmp_path):
    import runpy

    from one4all_lc.training.data import Row
    from one4all_lc.training.evaluation import measure

    prepare = runpy.run_path(str(ADAPTERS / "prepare.py"))
    rows = [
        Row(question_of(row), row["answer"], row["split"])
        for row in prepare[name](data_folder)
        if row["split"] == "test"
    ]
    base = SharedBase.load().facts.id
    metrics = measure(ADAPTERS / name, rows, base, scored=24, answered=12)
    assert metrics["perplexity"]["expert"] < 0.75 * metrics["perplexity"]["base"]
    if name == "sql":
        assert metrics["exact_match"]["expert"] > metrics["exact_match"]["base"]
    if name == "medical":
        assert metrics["rouge_l"]["expert"] > metrics["rouge_l"]["base"]


def question_of(row):
    from one4all_lc.training.data import ask_about

    return ask_about(row["question"], row.get("columns"), row.get("context"))
