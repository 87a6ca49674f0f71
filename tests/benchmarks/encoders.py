"""Encoder experts: what sharing a batch costs, and how soon one text is read.

python -m tests.benchmarks.encoders [--rounds 7] [--data DIR] [--json]

Eight experts of every kind with random adapters of rank 16 on all linear layers read 32 texts, four
each, in one batch. The bare encoder is transformers' own forward of the same tokens, in the faster
of bfloat16 and float32. PEFT has the eight adapters by `adapter_names`, as it loads them (float32
beside a bfloat16 base; the bar), and cast to bfloat16 by hand. Figures are texts per second. One
text is asked of a `ClassifyExpert` as a user asks it, tokenizing, threads and result included, and
held against the bare encoder's forward of its tokens alone.

The quality of the experts that ship is measured on the test rows of the public data sets in DIR, as
served; without --data it is what their cards say, where those say it.
"""

import argparse
import itertools
import json
import runpy
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from one4all_lc.base.loading import DEFAULT_ENCODER, SharedBase
from one4all_lc.card import ExpertCard
from one4all_lc.engine.encoders import EncoderEngine
from one4all_lc.engine.encoding import TextRow
from one4all_lc.engine.texts import TextRequest
from one4all_lc.experts.text import ClassifyExpert
from one4all_lc.experts.text.reading import Tokenizing
from one4all_lc.folder import Expert, read_expert
from one4all_lc.library import Library
from one4all_lc.training.kinds.examination import examine_kind
from one4all_lc.training.kinds.rows import KindRow, read_kind_rows
from tests.benchmarks.harness import Bar, Rounds, report, rounds
from tests.benchmarks.questions import QUESTIONS
from tests.encoders import KINDS
from tests.experts import write_expert

ADAPTERS = Path(__file__).parents[2] / "adapters"
ROWS, EXPERTS, RANK = 32, 8, 16
REPEATS = 8
"""Calls of one case and round: the median counts."""

OURS = "8 experts mixed, 32 texts"
PEFT = {
    None: "PEFT adapter_names, 32 texts",
    torch.bfloat16: "the same, adapters cast to bfloat16",
}
BARE = {torch.bfloat16: "bare, bfloat16, 32 texts", torch.float32: "bare, float32, 32 texts"}
ONE, FORWARD = "classify, 1 text", "bare, 1 text"


@dataclass(frozen=True)
class Quality:
    """A figure of an expert that ships.

    Attributes:
        expert: Its name.
        metric: Of its card.
        bar: What it should reach.
        source: Of rows from several data sets, which; cards have no figure of one alone.
    """

    expert: str
    metric: str
    bar: float
    source: str | None = None


QUALITY = {
    "review_sentiment_accuracy": Quality("review-sentiment", "accuracy", 0.86, "product_reviews"),
    "pros_cons_accuracy": Quality("review-sentiment", "accuracy", 0.955, "pros_cons"),
    "fa_inference_accuracy": Quality("fa-inference", "accuracy", 0.70),
    "fa_entities_f1": Quality("fa-entities", "entity_f1", 0.60),
    "fa_reader_f1": Quality("fa-reader", "answerable_f1", 0.60),
    "fr_reader_f1": Quality("fr-reader", "answerable_f1", 0.50),
}
"""Null until the expert ships."""

MORE = (
    "دوربین این گوشی در نور کم عالی است ولی باتری آن زود تمام می‌شود.",
    "L'écran est magnifique, mais la batterie ne tient pas une journée entière.",
)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--data", type=Path, help="folder of the public data sets")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    base = SharedBase.load(DEFAULT_ENCODER)
    with tempfile.TemporaryDirectory() as folder:
        experts = [_expert(Path(folder), i, base) for i in range(EXPERTS)]
        engine = EncoderEngine.of(base)
        rows = _rows(base, experts)
        models = {dtype: _bare(dtype) for dtype in BARE}
        classify = ClassifyExpert(
            engine=engine, library=Library.of(experts, base.facts), model=experts[0].name
        )
        text = QUESTIONS[0]
        alone = _batch([rows_of(base, [text], experts[:1])[0]])
        batch = _batch(rows)
        requests = [TextRequest(row) for row in rows]
        cases = {
            OURS: _speed(lambda: [h.result() for h in engine.submit(requests)]),
            **{
                BARE[dtype]: _speed(lambda model=model: model(**batch))
                for dtype, model in models.items()
            },
            ONE: _seconds(lambda: classify.invoke(text)),
            FORWARD: _seconds(lambda: models[base.dtype](**alone)),
        }
        names = [row.expert.name for row in rows]
        for cast, name in PEFT.items():
            tuned = _peft(experts, base.dtype, cast)
            cases[name] = _speed(lambda tuned=tuned: tuned(**batch, adapter_names=names))
        for case in cases.values():
            case()
        measured = rounds(cases, arguments.rounds)
    bars = _quality_bars(arguments.data) | _bars(measured)
    report(measured, bars, arguments.json, unit="texts/s or ms", rows=ROWS)


def _bars(measured: Rounds) -> dict[str, Bar]:
    over_bare = [measured.ratio(OURS, name) for name in BARE.values()]
    over_forward = measured.ratio(ONE, FORWARD)
    return {
        "mixed32_over_base": Bar(min(over_bare), 0.9),
        "mixed32_over_peft": Bar(measured.ratio(OURS, PEFT[None]), 3.0),
        "classify_over_forward": Bar(over_forward, 1.3, at_most=True),
    }


def _quality_bars(data: Path | None) -> dict[str, Bar]:
    return {name: Bar(_quality(item, data), item.bar) for name, item in QUALITY.items()}


def _quality(item: Quality, data: Path | None) -> float | None:
    folder = ADAPTERS / item.expert
    if not folder.is_dir():
        return None
    if data is None:
        figures = ExpertCard.read(folder).metrics.get(item.metric, {})
        return None if item.source else figures.get("expert")
    found = examine_kind(folder, _test_rows(item, data), DEFAULT_ENCODER)
    return round(found.by_who["expert"][item.metric].value, 4)


def _test_rows(item: Quality, data: Path) -> list[KindRow]:
    """Return an expert's rows as they were prepared, without those to learn from."""
    prepare = runpy.run_path(str(ADAPTERS / "prepare.py"))
    recipes = {recipe.__name__: recipe for recipe in prepare["RECIPES"]}
    prepared = recipes[item.expert.replace("-", "_")](data)
    rows = [
        row
        for row in prepared
        if row["split"] == "test" and item.source in (None, row.get("source"))
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        return read_kind_rows(ExpertCard.read(ADAPTERS / item.expert).kind, [path])


def _expert(folder: Path, number: int, base: SharedBase) -> Expert:
    kind = list(KINDS.values())[number % len(KINDS)]
    made = write_expert(folder / f"x{number}", base.facts, rank=RANK, seed=number, **kind)
    return read_expert(made, base.facts)


def _rows(base: SharedBase, experts: Sequence[Expert]) -> list[TextRow]:
    texts = list(itertools.islice(itertools.cycle([*QUESTIONS, *MORE]), ROWS))
    return rows_of(base, texts, list(itertools.islice(itertools.cycle(experts), ROWS)))


def rows_of(base: SharedBase, texts: Sequence[str], experts: Sequence[Expert]) -> list[TextRow]:
    """Return what the experts read of texts, one each."""
    tokenizing = Tokenizing.of(base)
    windows = [tokenizing.windows(tokenizing.tokens(text))[0] for text in texts]
    return [TextRow(item.tokens, one) for item, one in zip(windows, experts, strict=True)]


def _batch(rows: Sequence[TextRow]) -> dict[str, torch.Tensor]:
    ids = torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(row.tokens) for row in rows], batch_first=True, padding_value=1
    )
    mask = torch.nn.utils.rnn.pad_sequence(
        [torch.ones(len(row.tokens), dtype=torch.long) for row in rows], batch_first=True
    )
    return {"input_ids": ids, "attention_mask": mask}


def _bare(dtype: torch.dtype) -> torch.nn.Module:
    return SharedBase.load(DEFAULT_ENCODER, quantization="none", dtype=dtype, shared=False).model


def _peft(
    experts: Sequence[Expert], dtype: torch.dtype, cast: torch.dtype | None
) -> torch.nn.Module:
    from peft import PeftModel

    first, *others = experts
    model = PeftModel.from_pretrained(_bare(dtype), first.folder, adapter_name=first.name)
    for expert in others:
        model.load_adapter(expert.folder, adapter_name=expert.name)
    return model.to(cast).eval() if cast else model.eval()


def _speed(run: Callable[[], object]) -> Callable[[], float]:
    return lambda: ROWS / _median(run)


def _seconds(run: Callable[[], object]) -> Callable[[], float]:
    return lambda: 1e3 * _median(run)


def _median(run: Callable[[], object]) -> float:
    times = []
    with torch.inference_mode():
        for _ in range(REPEATS):
            begun = time.perf_counter()
            run()
            times.append(time.perf_counter() - begun)
    return sorted(times)[len(times) // 2]


if __name__ == "__main__":
    main()
