"""Exemplars mined into an expert's folder, and a library's exemplars looked through."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from langchain_core.embeddings import Embeddings

from one4all_lc.errors import InvalidInput
from one4all_lc.exemplar_file import Exemplars, change_exemplars
from one4all_lc.folder import OOS, Exemplar, Expert, read_exemplars
from one4all_lc.routing import mining
from one4all_lc.routing.background import QUESTIONS
from one4all_lc.routing.exemplars import ExemplarSet, embed
from one4all_lc.routing.rows import Labelled


@dataclass(frozen=True)
class Near:
    """Two exemplars that are too near each other.

    Attributes:
        experts: Whose they are.
        texts: Both.
        cosine: Around the middle of everyday questions.
    """

    experts: tuple[str, str]
    texts: tuple[str, str]
    cosine: float


@dataclass(frozen=True)
class Gap:
    """A question that is far from every exemplar of its expert.

    Attributes:
        expert: Whose it is.
        text: The question.
        nearest: The expert's nearest exemplar.
        cosine: To that one.
    """

    expert: str
    text: str
    nearest: str
    cosine: float


@dataclass(frozen=True)
class Review:
    """What there is to mend in a library's exemplars.

    Attributes:
        conflicts: Pairs of exemplars of two experts, the nearest first.
        duplicates: Pairs of one expert's, the nearest first.
        thin: Experts with few exemplars, and how many they have.
        languages: Experts and the languages of their cards in which they have no exemplar.
        gaps: Questions that are far from every exemplar, the farthest first.
        exemplars: How many were looked through.
        questions: How many questions were compared with them.
    """

    conflicts: tuple[Near, ...]
    duplicates: tuple[Near, ...]
    thin: tuple[tuple[str, int], ...]
    languages: tuple[tuple[str, str], ...]
    gaps: tuple[Gap, ...]
    exemplars: int
    questions: int

    def as_dict(self) -> dict[str, Any]:
        """Return the review as JSON-ready values."""
        values = asdict(self)
        values["thin"] = [{"expert": name, "exemplars": count} for name, count in self.thin]
        values["languages"] = [
            {"expert": name, "language": language} for name, language in self.languages
        ]
        return values


@dataclass(frozen=True)
class Mining:
    """What to mine.

    Attributes:
        count: How many exemplars the expert should have.
        replace: Whether mined ones take the place of those that are there.
        duplicate: Cosine from which two questions say the same.
        seed: The same one mines the same.
    """

    count: int
    replace: bool = False
    duplicate: float = mining.DUPLICATE
    seed: int = 0

    def mined(
        self, rows: Sequence[Labelled], unit: mining.Array, taken: mining.Array | None
    ) -> Exemplars:
        """Choose rows, of unit vectors (n, d), beside exemplars of unit vectors (t, d)."""
        chosen = mining.mine(
            unit,
            max(self.count - (0 if taken is None else len(taken)), 0),
            taken=taken,
            languages=[row.language for row in rows],
            duplicate=self.duplicate,
            seed=self.seed,
        )
        return tuple(Exemplar(rows[index].text, rows[index].language) for index in chosen)


def review(
    experts: Sequence[Expert],
    known: ExemplarSet,
    rows: Sequence[Labelled] = (),
    embeddings: Embeddings | None = None,
    *,
    duplicate: float = mining.DUPLICATE,
    conflict: float = mining.CONFLICT,
    far: float = mining.FAR,
) -> Review:
    """Look through a library's exemplars.

    Args:
        experts: The experts.
        known: Their exemplars with embeddings.
        rows: Questions labelled with experts' names, for gaps.
        embeddings: Embeds the rows; needed only with rows.
        duplicate: Cosine from which two exemplars of one expert say the same.
        conflict: Cosine from which two exemplars of two experts are too near.
        far: Cosine under which a question is far from an exemplar.

    Raises:
        InvalidInput: A row's label is no expert's name.
    """
    names = [expert.name for expert in experts]
    middle = mining.middle_of(known.background) if len(known.background) else None
    unit = mining.around(known.vectors, middle) if len(known.vectors) else known.vectors
    owners = np.array([names.index(name) for name in known.experts], np.intp)
    counts = {expert.name: sum(not item.label for item in expert.exemplars) for expert in experts}
    questions = [row for row in rows if row.label != OOS]
    return Review(
        conflicts=_named(mining.conflicts(unit, owners, conflict), known),
        duplicates=_named(mining.near_duplicates(unit, owners, duplicate), known),
        thin=tuple(item for item in counts.items() if item[1] < mining.THIN),
        languages=tuple(
            (expert.name, language)
            for expert in experts
            for language in expert.card.languages
            if language not in {item.language for item in expert.exemplars}
        ),
        gaps=_gaps(questions, embeddings, known, (unit, middle), far),
        exemplars=len(known.experts),
        questions=len(questions),
    )


def mine_exemplars(
    folder: Path,
    rows: Sequence[Labelled],
    embeddings: Embeddings,
    settings: Mining,
    *,
    write: bool = True,
) -> tuple[Exemplars, Exemplars]:
    """Mine exemplars from training questions into an expert's folder.

    The exemplars that are there stay, and mined ones fill up to `settings.count`; a process that is
    killed leaves the file as it was. Questions that repeat an exemplar are not taken.

    Args:
        folder: The expert's folder, which may be still without an adapter; it is made if need be.
        rows: Its questions; those of split `train` are used.
        embeddings: The router's embedder.
        settings: What to mine.
        write: Whether to write the file.

    Returns:
        The mined exemplars, and all that the expert has with them.

    Raises:
        InvalidInput: There is no question to mine from, or the folder cannot be written.
    """
    unique = tuple({row.text: row for row in rows if row.split == "train"}.values())
    if not unique:
        msg = f"There is no question of split 'train' for {folder.name!r} among {len(rows)} rows."
        raise InvalidInput(msg)
    middle = mining.middle_of(embed(embeddings, list(QUESTIONS)))
    unit = mining.around(embed(embeddings, [row.text for row in unique]), middle)
    mined: Exemplars = ()

    def filled(old: Exemplars) -> Exemplars:
        nonlocal mined
        kept = tuple(item for item in old if item.label == OOS or not settings.replace)
        own = [item.text for item in kept if item.label != OOS]
        taken = mining.around(embed(embeddings, own), middle) if own else None
        mined = settings.mined(unique, unit, taken)
        return (*kept, *mined)

    if not write:
        after = filled(read_exemplars(folder))
        return mined, after
    _make(folder)
    after = change_exemplars(folder, filled)[1]
    return mined, after


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        msg = f"{folder} cannot be made ({error.strerror}): name a folder that can be."
        raise InvalidInput(msg) from error


def _named(pairs: Sequence[mining.Pair], known: ExemplarSet) -> tuple[Near, ...]:
    return tuple(
        Near(
            (known.experts[pair.first], known.experts[pair.second]),
            (known.exemplars[pair.first].text, known.exemplars[pair.second].text),
            pair.cosine,
        )
        for pair in pairs
    )


def _gaps(
    rows: Sequence[Labelled],
    embeddings: Embeddings | None,
    known: ExemplarSet,
    space: tuple[mining.Array, mining.Array | None],
    far: float,
) -> tuple[Gap, ...]:
    if not rows or embeddings is None:
        return ()
    unit, middle = space
    strangers = sorted({row.label for row in rows} - set(known.experts))
    if strangers:
        msg = (
            f"Rows are labelled {strangers[0]!r}, which is no expert: the experts are "
            f"{', '.join(dict.fromkeys(known.experts))}."
        )
        raise InvalidInput(msg)
    vectors = mining.around(embed(embeddings, [row.text for row in rows]), middle)
    owners, gaps = np.array(known.experts), []
    for name in dict.fromkeys(row.label for row in rows):
        own = np.flatnonzero(owners == name)
        asked = [index for index, row in enumerate(rows) if row.label == name]
        places, cosines = mining.nearest(vectors[asked], unit[own])
        gaps += [
            Gap(name, rows[index].text, known.exemplars[own[place]].text, float(cosine))
            for index, place, cosine in zip(asked, places, cosines, strict=True)
            if cosine < far
        ]
    return tuple(sorted(gaps, key=lambda gap: gap.cosine))
