"""What training an expert that decides needs beside the loop: data judged, a reader, a head."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from one4all_lc.base.loading import SharedBase, describe, load_tokenizer
from one4all_lc.errors import InvalidInput
from one4all_lc.experts.text.reading import Tokenizing
from one4all_lc.training.checking import DataReport, Encode, Finding, judge
from one4all_lc.training.data import Fields
from one4all_lc.training.kinds.examples import Labelling, encoder_of
from one4all_lc.training.kinds.rows import KindRow, scan_kind
from one4all_lc.training.sources import Place

if TYPE_CHECKING:
    from torch import nn

    from one4all_lc.training.kinds.objective import Reader


def look_at_kind(
    kind: str,
    data: Sequence[str | Path],
    base: str,
    max_tokens: int,
    fields: Fields | None = None,
) -> DataReport:
    """Look at the data as a training would; refuse nothing yet.

    Args:
        kind: Of the expert.
        data: Files and folders of the kind's rows.
        base: An encoder.
        max_tokens: Tokens of a window.
        fields: What the data calls its fields.

    Raises:
        InvalidInput: The base is a decoder.
    """
    if not describe(base).encodes:
        msg = f"{base} is a decoder: an expert of kind {kind!r} needs an encoder, as --base."
        raise InvalidInput(msg)
    tokenizer = load_tokenizer(base)
    tokenizing = Tokenizing(tokenizer, max_tokens)

    labelling = Labelling(kind, ())

    def encoding(rows: Sequence[KindRow]) -> Encode:
        nonlocal labelling
        labelling = Labelling.of(kind, rows)
        return encoder_of(labelling, tokenizing, max_tokens)

    special = {token for token in tokenizer.all_special_tokens if len(token) > 1}
    report = judge(scan_kind(kind, data, fields), encoding, special, max_tokens)
    found = (*report.findings, *_of_labels(kind, report.rows))
    return dataclasses.replace(report, findings=found, labelling=labelling)


def _of_labels(kind: str, rows: Sequence[KindRow]) -> list[Finding]:
    """Judge what the rows say that there is to learn."""
    learned = [row for row in rows if row.split == "train"]
    if not learned:
        return []
    place, known = learned[0].place, {name for row in learned for name in row.types}
    file = Place(place.file)
    several = any(row.several for row in learned)
    if kind in ("classify", "pair") and len(known) < 2 - several:
        what = f"All training rows have the label {next(iter(known), '')!r}: give others too."
        return [Finding("one_label", file, f"{file}: {what}", refused=True)]
    if kind != "classify" and kind != "pair" and not any(row.spans for row in learned):
        what = "No training row has an entity or answer: there is nothing to learn."
        return [Finding("no_spans", file, f"{file}: {what}", refused=True)]
    if kind == "extract":
        return []
    new = [row for row in rows if not known.issuperset(row.types)]
    return [
        Finding(
            "new_label",
            row.place,
            f"{row.place} has {sorted(set(row.types) - known)[0]!r}, which no training row has.",
        )
        for row in new
    ]


def reader_of(labelling: Labelling, shared: SharedBase, encoder: "nn.Module") -> "Reader":
    """Put a new head beside an encoder's adapter."""
    from one4all_lc.base.heads import Head
    from one4all_lc.training.kinds.objective import Reader

    head = Head(labelling.kind, labelling.labels, shared.facts.width)
    return Reader(encoder, head.to(shared.device))


def head_card(
    reader: "Reader", labelling: Labelling, made: Path, max_tokens: int
) -> dict[str, Any]:
    """Save the head; return what a card says of it."""
    facts = reader.head.save(made, several=labelling.several, max_tokens=max_tokens)
    return {"labels": labelling.labels, "head": facts.as_dict()}
