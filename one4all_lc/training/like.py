"""The same expert on another base: a card's recipe, done again."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from one4all_lc.card import ExpertCard
from one4all_lc.errors import InvalidInput, UnfitExpert
from one4all_lc.folder import EXEMPLARS_FILE, Expert
from one4all_lc.training.checking import DataReport
from one4all_lc.training.data import Fields
from one4all_lc.training.proving import Publication
from one4all_lc.training.qlora import train_expert
from one4all_lc.training.recipe import About, Recipe
from one4all_lc.training.work import data_facts


@dataclass(frozen=True)
class Like:
    """What an expert's card says of how it was made.

    Attributes:
        folder: The expert's folder.
        card: Its card.
    """

    folder: Path
    card: ExpertCard

    @classmethod
    def read(cls, folder: str | Path) -> "Like":
        """Read the card; the weights, which fit another base, do not matter.

        Raises:
            UnfitExpert: There is no valid card.
        """
        return cls(Path(folder), ExpertCard.read(Path(folder)))

    @property
    def recipe(self) -> Recipe:
        """Its recipe, seed included."""
        return Recipe.from_training(self.card.training)

    @property
    def about(self) -> About:
        """What it is, for the new card."""
        card = self.card
        return About(
            title=card.title,
            description=card.description,
            languages=card.languages,
            system_prompt=card.system_prompt,
            generation=card.generation,
            license=card.training.get("license"),
            metric=card.metric,
            kind=card.kind,
        )

    @property
    def fields(self) -> Fields:
        """What its data calls its fields."""
        return Fields(**self.card.training.get("fields", {}))

    def data(self) -> list[Path]:
        """Return the files that the card names.

        Raises:
            InvalidInput: One is not here, or is another one by now.
        """
        named = [item for item in self.card.training.get("data", []) if isinstance(item, dict)]
        if not named:
            msg = f"The card of {self.card.name!r} names no data by hash: give it with --data."
            raise InvalidInput(msg)
        for item in named:
            path = Path(item["file"])
            if not path.is_file():
                msg = f"{path}, the data of {self.card.name!r}, is not here: give it with --data."
                raise InvalidInput(msg)
        paths = [Path(item["file"]) for item in named]
        if not self.same_data(paths):
            msg = (
                f"The files that {self.card.name!r} was trained on have changed since: give data "
                "with --data, and the new card will say that it is other data."
            )
            raise InvalidInput(msg)
        return paths

    def same_data(self, paths: Sequence[str | Path]) -> bool | None:
        """Whether files hold what the expert was trained on; None if its card has no hashes."""
        named = self.card.training.get("data", [])
        if not named or not all(isinstance(item, dict) for item in named):
            return None
        given = [item["sha256"] for item in data_facts(paths)]
        return sorted(given) == sorted(item["sha256"] for item in named)

    def place_for(self, base: str) -> Path:
        """Return where the expert of another base goes: beside `adapters`, a folder for the base.

        Experts of two bases are not used together, so they do not lie together.
        """
        parent = self.folder.resolve().parent
        slug = re.sub(r"[^a-z0-9.]+", "-", Path(base).name.lower()).strip("-")
        return parent.with_name(f"{parent.name}-{slug}") / self.card.name


def train_like(
    like: Like,
    base: str,
    *,
    folder: str | Path | None = None,
    data: Sequence[str | Path] = (),
    resume: bool = False,
    look: Callable[[DataReport], None] | None = None,
    publication: Publication | None = None,
) -> Expert:
    """Train the expert that a card describes on another base, by the same recipe.

    Args:
        like: The expert that is there.
        base: The base to train on.
        folder: Where the new expert goes; by default `like.place_for(base)`.
        data: Its data; by default the files that the card names, which must be unchanged.
        resume: Go on from the last checkpoint.
        look: As of `train_expert`.
        publication: As of `train_expert`.

    Raises:
        InvalidInput: The data is not here.
        UnfitExpert: The place is that of the expert itself.
    """
    place = Path(folder) if folder else like.place_for(base)
    if place.resolve() == like.folder.resolve():
        msg = f"{place} is the expert that shall be repeated: name another folder."
        raise UnfitExpert(msg)
    paths = list(data) or like.data()
    card, exemplars = like.card, like.folder / EXEMPLARS_FILE
    origin: dict[str, Any] = {
        "name": card.name,
        "version": card.version,
        "base": card.base,
        "weights_sha256": card.weights_sha256,
        "same_data": like.same_data(paths),
    }
    return train_expert(
        place,
        paths,
        about=like.about,
        recipe=like.recipe,
        base=base,
        resume=resume,
        fields=like.fields,
        exemplars=exemplars if exemplars.exists() else None,
        facts={"like": origin},
        look=look,
        publication=publication,
    )
