"""A PEFT LoRA made elsewhere becomes an expert: fetched, checked against the base, published."""

import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from one4all_lc.card import (
    CARD_FILE,
    BaseFacts,
    ExpertCard,
    check_name,
    facts_for_people,
    read_json,
)
from one4all_lc.errors import InvalidInput, UnfitExpert
from one4all_lc.folder import (
    CONFIG_FILE,
    EXEMPLARS_FILE,
    PICKLES,
    WEIGHTS_FILE,
    Expert,
    read_exemplars,
    read_expert,
    sha256_of,
)
from one4all_lc.hub import HUB_ID, fetch
from one4all_lc.publishing import KEPT, publish


@dataclass(frozen=True)
class Adoption:
    """What people and the router should know of an adapter that comes without a card.

    An adapter that comes with one, because `one4all push` put it where it is, needs none of this;
    what is given here has the last word.

    Attributes:
        name: The expert's; by default made from the folder's or the hub id's.
        title: A few words for people.
        description: What it is for.
        languages: ISO 639-1 codes of the questions that it was made for.
        system_prompt: What stands before every conversation.
        generation: Defaults of `Sampling`, `{"max_tokens": 96}`.
        license: Of the data that it was trained on, or of the adapter.
        metric: Which metric decides for it.
        exemplars: A file of `{"text", "language"}` lines.
        same_base: Its configuration names another base, which is this one under another name.
        replace: An expert of that name gets a new version.
    """

    name: str | None = None
    title: str | None = None
    description: str | None = None
    languages: tuple[str, ...] | None = None
    system_prompt: str | None = None
    generation: Mapping[str, Any] | None = None
    license: str | None = None
    metric: str | None = None
    exemplars: Path | None = None
    same_base: bool = False
    replace: bool = False


def adopt(
    source: str | Path,
    adapters: str | Path,
    base: BaseFacts,
    about: Adoption | None = None,
    *,
    revision: str | None = None,
    keep: int = KEPT,
) -> Expert:
    """Make an expert of a PEFT LoRA.

    Only its configuration and its safetensors file are taken, and a card and exemplars if it has
    them: a pickle never reaches this machine from a hub, nor the expert's folder from another.

    Args:
        source: A folder, or an id on the Hugging Face hub.
        adapters: The folder of experts that it joins.
        base: The base that will carry it.
        about: What its card shall say.
        revision: Branch, tag or commit on the hub.
        keep: Old versions that are kept where it replaces one.

    Returns:
        The expert in place.

    Raises:
        UnfitExpert: The adapter cannot be run on the base.
        InvalidInput: It cannot be fetched, or what it is for is not said.
    """
    about, adapters = about or Adoption(), Path(adapters).resolve()
    found, origin = _found(source, revision)
    name = about.name or _name_from(str(source))
    check_name(name)
    _check_place(adapters / name, about)
    with tempfile.TemporaryDirectory(prefix="one4all-") as work:
        made = Path(work) / name
        made.mkdir()
        _take(found, made, about)
        _check_claim(made, base, about)
        _write_card(made, found, base, about, origin)
        read_expert(made, base)
        return publish(made, adapters / name, keep=keep)


def _found(source: str | Path, revision: str | None) -> tuple[Path, dict[str, Any]]:
    """Return the folder of the adapter and where it comes from, for the card."""
    folder = Path(source).expanduser()
    if str(source).strip() and folder.is_dir():
        if revision is not None:
            msg = f"{source} is a folder: --revision is for the hub."
            raise InvalidInput(msg)
        return folder.resolve(), {"adopted_from": folder.resolve().name}
    if not HUB_ID.fullmatch(str(source)):
        msg = f"{source} is neither a folder nor an id on the hub: give one, as owner/name."
        raise InvalidInput(msg)
    fetched = fetch(str(source), revision)
    return fetched.folder, {"adopted_from": str(source), "revision": fetched.commit}


def _name_from(source: str) -> str:
    """Make a name of the last part of a path or id."""
    last = Path(source).expanduser().resolve().name if Path(source).exists() else source
    plain = re.sub(r"[^a-z0-9_-]+", "-", last.rpartition("/")[2].lower()).strip("-_")
    return plain[:63]


def _check_place(place: Path, about: Adoption) -> None:
    if (place / CARD_FILE).exists() and not about.replace:
        msg = (
            f"There is an expert {place.name!r} already: give this one another name (--name), or "
            "make it that one's next version (--replace)."
        )
        raise InvalidInput(msg)


def _take(found: Path, made: Path, about: Adoption) -> None:
    """Copy what an expert consists of."""
    if not (found / WEIGHTS_FILE).is_file():
        pickles = sorted(path.name for path in found.iterdir() if path.suffix.lower() in PICKLES)
        if pickles:
            what = f"it has only {pickles[0]}, a pickle, which can run code when it is loaded"
            _refuse(found, what, "save the adapter as safetensors")
        _refuse(found, f"{WEIGHTS_FILE} is missing", "name a folder of a PEFT adapter")
    for name in (CONFIG_FILE, WEIGHTS_FILE, EXEMPLARS_FILE):
        if (found / name).is_file():
            shutil.copyfile(found / name, made / name)
    if about.exemplars is not None:
        if not about.exemplars.is_file():
            msg = f"{about.exemplars} is not there: give a file of exemplars."
            raise InvalidInput(msg)
        shutil.copyfile(about.exemplars, made / EXEMPLARS_FILE)
    try:
        exemplars = read_exemplars(made)
    except UnfitExpert as error:
        shown = str(about.exemplars or found / EXEMPLARS_FILE)
        raise UnfitExpert(str(error).replace(str(made), shown)) from None
    if not exemplars:
        msg = (
            f"{made.name!r} has no exemplars: give a file of questions that it is for (--exemplars)"
            ', {"text": "...", "language": "en"} on each line.'
        )
        raise InvalidInput(msg)


def _check_claim(made: Path, base: BaseFacts, about: Adoption) -> None:
    """Refuse an adapter that says it was made for another base; its shapes are checked later."""
    config = read_json(made / CONFIG_FILE)
    claimed = config.get("base_model_name_or_path") if isinstance(config, dict) else None
    same = about.same_base or not isinstance(claimed, str) or not claimed.strip()
    if not same and _last_name(str(claimed)) != _last_name(base.id):
        what = f"its configuration says that it was made for {claimed!r}, not for {base.id!r}"
        how = "name that base (--base), or say that it is the same (--same-base)"
        _refuse(made, what, how)


def _last_name(model: str) -> str:
    return model.rstrip("/").rpartition("/")[2].lower()


def _write_card(
    made: Path, found: Path, base: BaseFacts, about: Adoption, origin: Mapping[str, Any]
) -> None:
    """Write the card: what was given, else what it came with, else what can be known."""
    came_with = ExpertCard.read(found).as_dict() if (found / CARD_FILE).is_file() else {}

    said = facts_for_people(made.name, about, came_with)
    training = {**came_with.get("training", {}), "license": said.pop("license")}
    ExpertCard(
        name=made.name,
        base=base.id,
        fingerprint=base.fingerprint,
        weights_sha256=sha256_of(made / WEIGHTS_FILE),
        training={**training, **origin},
        metrics=_metrics(came_with, base),
        metric=about.metric or came_with.get("metric", "rouge_l"),
        version=came_with.get("version", 1),
        **said,
    ).write(made)


def _metrics(came_with: Mapping[str, Any], base: BaseFacts) -> Mapping[str, Any]:
    """Keep the figures that an expert of this very base came with."""
    fingerprint = came_with.get("fingerprint")
    same = fingerprint == {**vars(base.fingerprint)}
    return came_with.get("metrics", {}) if same else {}


def _refuse(folder: Path, what: str, how: str) -> NoReturn:
    msg = f"{folder} cannot be adopted: {what}; {how}."
    raise UnfitExpert(msg)
