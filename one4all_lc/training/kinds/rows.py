"""Rows of data for experts that decide, one form for each kind.

classify   {"text", "label"} or {"text", "labels": [...]}
pair       {"premise", "hypothesis", "label"}
tag        {"text", "entities": [{"start", "end", "label"}]}, or "tags": BIO tags of its words
extract    {"question", "context", "answer", "answer_start"}; no answer: null, "" or left out
"""

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from one4all_lc.errors import InvalidInput
from one4all_lc.head import OUTSIDE
from one4all_lc.training.data import Fields, Row
from one4all_lc.training.sources import SPLITS, Read, Record, Unreadable, all_sources

Span = tuple[int, int, str]
"""First character, the one behind the last, and the type or the words of what stands there."""


@dataclass(frozen=True)
class KindRow(Row):
    """A row of an expert that decides; `question` and `answer` are the same in words.

    Attributes:
        texts: What is read: a text; premise and hypothesis; question and context.
        labels: Of kinds that label: those that hold.
        spans: Of `tag` the entities; of `extract` the answer, or nothing if there is none.
        several: Whether a text may have several labels.
        also: Of `extract`: other answers that are right.
    """

    texts: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    spans: tuple[Span, ...] = ()
    several: bool = False
    also: tuple[str, ...] = ()

    @property
    def types(self) -> tuple[str, ...]:
        """Labels, or types of entities."""
        return self.labels or tuple(label for _, _, label in self.spans)


class _Wrong(Exception):
    """What is wrong with a record: a word for it, and words."""

    def __init__(self, kind: str, what: str) -> None:
        super().__init__(what)
        self.kind, self.what = kind, what


_Parse = Callable[[Record, Fields], dict[str, Any]]


def read_kind_rows(
    kind: str, paths: Iterable[str | Path], fields: Fields | None = None
) -> list[KindRow]:
    """Read the rows of a kind.

    Args:
        kind: `classify`, `pair`, `tag` or `extract`.
        paths: JSONL, CSV and parquet files, and folders of them or of `datasets.save_to_disk`.
        fields: What these call their fields.

    Raises:
        InvalidInput: A file is missing or empty, or a line is not such a row; the message names
            the file and the line.
    """
    rows = []
    for read in scan_kind(kind, paths, fields):
        if isinstance(read, Unreadable):
            msg = f"{read.place} {read.what}."
            raise InvalidInput(msg)
        rows.append(read)
    return rows


def scan_kind(
    kind: str, paths: Iterable[str | Path], fields: Fields | None = None
) -> Iterator[KindRow | Unreadable]:
    """Yield each row of a kind, or what is wrong with its line."""
    for read in all_sources(paths):
        yield _row(kind, read, fields or Fields())


def _row(kind: str, read: Read, fields: Fields) -> KindRow | Unreadable:
    if isinstance(read, Unreadable):
        return read
    try:
        parsed = _PARSERS[kind](read, fields)
        split = _split(read, fields)
    except _Wrong as wrong:
        shown = repr(str(read.values))[:82]
        write = _WRITE[kind].format(**vars(fields))
        return Unreadable(read.place, wrong.kind, f"{wrong.what}: {shown}. Write {write}")
    name = read.values.get(fields.id)
    return KindRow(
        question="\n".join(reversed(parsed["texts"]) if kind == "extract" else parsed["texts"]),
        answer=_said(parsed),
        split=split,
        place=read.place,
        id=None if name in (None, "") else str(name),
        marked=read.marked,
        **parsed,
    )


def _said(parsed: Mapping[str, Any]) -> str:
    spans = [f"{text} [{start}:{end}]" for start, end, text in parsed.get("spans", ())]
    return ", ".join([*parsed.get("labels", ()), *spans]) or "none"


def _split(read: Record, fields: Fields) -> str:
    split = read.values.get(fields.split) or read.split or "train"
    if split not in SPLITS:
        raise _Wrong("split", f"has split {split!r}, which is none of {list(SPLITS)}")
    return str(split)


def _text(read: Record, name: str) -> str:
    values = read.values
    if name not in values:
        raise _Wrong("field", f"has no text under {name!r}; its fields are {list(values)[:12]}")
    value = values[name]
    if not isinstance(value, str):
        raise _Wrong("type", f"has no text under {name!r} but {type(value).__name__}")
    if not value.strip():
        raise _Wrong("empty_field", f"has no text under {name!r}")
    if "\0" in value:
        raise _Wrong("nul", f"holds a NUL character under {name!r}")
    return value


def _classify(read: Record, fields: Fields) -> dict[str, Any]:
    text = _text(read, fields.text)
    several = fields.label not in read.values and fields.labels in read.values
    value = read.values.get(fields.labels if several else fields.label)
    if isinstance(value, list):
        labels, several = tuple(_label(item, fields.labels) for item in value), True
    else:
        labels = (_label(value, fields.label),)
    if len(set(labels)) < len(labels):
        raise _Wrong("label", f"has a label twice: {list(labels)}")
    return {"texts": (text,), "labels": labels, "several": several}


def _label(value: Any, name: str) -> str:
    if type(value) is int:  # of data that numbers its classes
        return str(value)
    if not isinstance(value, str) or not value.strip():
        raise _Wrong("label", f"has no label under {name!r}")
    return value.strip()


def _pair(read: Record, fields: Fields) -> dict[str, Any]:
    texts = (_text(read, fields.premise), _text(read, fields.hypothesis))
    return {"texts": texts, "labels": (_label(read.values.get(fields.label), fields.label),)}


def _tag(read: Record, fields: Fields) -> dict[str, Any]:
    text = _text(read, fields.text)
    if fields.entities not in read.values and fields.tags in read.values:
        return {"texts": (text,), "spans": _spans_of_tags(text, read.values[fields.tags], fields)}
    value = read.values.get(fields.entities)
    if read.tabular and isinstance(value, str):
        try:
            value = json.loads(value or "[]")
        except ValueError:
            raise _Wrong("entities", f"has {fields.entities!r} that are not JSON") from None
    if not isinstance(value, list):
        raise _Wrong("entities", f"has no list under {fields.entities!r}")
    spans = sorted(_entity(item, text) for item in value)
    for (_, end, _), (start, _, _) in itertools.pairwise(spans):
        if start < end:
            raise _Wrong("entities", f"has entities that overlap at character {start}")
    return {"texts": (text,), "spans": tuple(spans)}


def _entity(item: Any, text: str) -> Span:
    values = item if isinstance(item, Mapping) else {}
    start, end, label = values.get("start"), values.get("end"), values.get("label")
    if type(start) is not int or type(end) is not int or not isinstance(label, str):
        raise _Wrong("entities", f"has the entity {repr(item)[:60]} without start, end and label")
    if not (0 <= start < end <= len(text)) or not label.strip() or not text[start:end].strip():
        where = f"{start}:{end} in {len(text)} characters"
        raise _Wrong("entities", f"has an entity {label!r} at {where}, where nothing stands")
    named = values.get("text")
    if named is not None and named != text[start:end]:
        what = f"has the entity {named!r} where {text[start:end]!r} stands"
        raise _Wrong("entities", what)
    return start, end, label.strip()


def _spans_of_tags(text: str, tags: Any, fields: Fields) -> tuple[Span, ...]:
    """Return the entities that BIO tags of a text's words, cut at spaces, mean.

    `I-` of another type than the entity before it, or of none, begins one, as seqeval counts.
    """
    given = tags.split() if isinstance(tags, str) else list(tags or [])
    words = text.split()
    if len(given) != len(words):
        what = f"has {len(given)} {fields.tags} for {len(words)} words"
        raise _Wrong("tags", what)
    spans: list[Span] = []
    at, running = 0, False
    for word, tag in zip(words, given, strict=True):
        start = text.index(word, at)
        at = start + len(word)
        prefix, _, label = str(tag).partition("-")
        if tag != OUTSIDE and (prefix not in ("B", "I") or not label):
            raise _Wrong("tags", f"has the tag {tag!r}, which is no BIO tag")
        if running and prefix == "I" and spans[-1][2] == label:
            spans[-1] = (spans[-1][0], at, label)
        elif tag != OUTSIDE:
            spans.append((start, at, label))
        running = tag != OUTSIDE
    return tuple(spans)


def _extract(read: Record, fields: Fields) -> dict[str, Any]:
    question, context = _text(read, fields.question), _text(read, fields.context)
    answer = read.values.get(fields.answer)
    if answer in (None, ""):
        return {"texts": (question, context)}
    if not isinstance(answer, str) or not answer.strip():
        raise _Wrong("type", f"has no text under {fields.answer!r} but {type(answer).__name__}")
    start = _start(read, answer, context, fields)
    also = read.values.get(fields.also) or []
    if not isinstance(also, list) or not all(isinstance(item, str) for item in also):
        raise _Wrong("type", f"has {fields.also!r} that are not a list of texts")
    span = (start, start + len(answer), answer)
    return {"texts": (question, context), "spans": (span,), "also": tuple(also)}


def _start(read: Record, answer: str, context: str, fields: Fields) -> int:
    """Return where an answer stands, by its number or where it comes first."""
    given = read.values.get(fields.start)
    if given in (None, ""):
        start = context.find(answer)
        if start < 0:
            raise _Wrong("answer", f"has the answer {answer[:40]!r}, which is not in the context")
        return start
    try:
        start = int(given)
    except (TypeError, ValueError):
        raise _Wrong("answer", f"has {fields.start!r} {given!r}, which is no number") from None
    if context[max(0, start) : start + len(answer)] != answer:
        what = f"has the answer {answer[:40]!r} at {start}, where"
        stands = context[max(0, start) : start + len(answer)][:40]
        raise _Wrong("answer", f"{what} {stands!r} stands")
    return start


_PARSERS: Mapping[str, _Parse] = {
    "classify": _classify,
    "pair": _pair,
    "tag": _tag,
    "extract": _extract,
}

_WRITE = {
    "classify": '{{"{text}": "...", "{label}": "...", "{split}": "train"}}',
    "pair": '{{"{premise}": "...", "{hypothesis}": "...", "{label}": "...", "{split}": "train"}}',
    "tag": (
        '{{"{text}": "...", "{entities}": [{{"start": 0, "end": 4, "label": "..."}}], '
        '"{split}": "train"}}'
    ),
    "extract": (
        '{{"{question}": "...", "{context}": "...", "{answer}": "...", "{start}": 0, '
        '"{split}": "train"}}, with null for no answer'
    ),
}
