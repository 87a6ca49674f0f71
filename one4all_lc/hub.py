"""Adapters on the Hugging Face hub, or on whatever HF_ENDPOINT names: fetched and put there."""

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from one4all_lc.base.quiet import first_line
from one4all_lc.card import CARD_FILE
from one4all_lc.errors import InvalidInput
from one4all_lc.folder import CONFIG_FILE, EXEMPLARS_FILE, WEIGHTS_FILE

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")

WANTED = (CONFIG_FILE, WEIGHTS_FILE, CARD_FILE, EXEMPLARS_FILE)
"""What is fetched: nothing else of a repository reaches the disk."""

_NOT_ALLOWED = (401, 403)


@dataclass(frozen=True)
class Fetched:
    """Files of a repository.

    Attributes:
        folder: Where they lie, in the hub's cache.
        commit: The commit that they are of.
    """

    folder: Path
    commit: str


def fetch(repo_id: str, revision: str | None = None) -> Fetched:
    """Fetch an adapter's files from the hub, or from its cache where they are the same.

    Args:
        repo_id: `owner/name`.
        revision: Branch, tag or commit; None takes the main branch.

    Raises:
        InvalidInput: There is no such repository or revision, the hub cannot be reached, or the
            repository has no PEFT adapter as safetensors.
    """
    from huggingface_hub import snapshot_download

    with _one_sentence(repo_id, revision):
        folder = Path(snapshot_download(repo_id, revision=revision, allow_patterns=list(WANTED)))
    missing = [name for name in (CONFIG_FILE, WEIGHTS_FILE) if not (folder / name).is_file()]
    if missing:
        msg = (
            f"{repo_id} has no {missing[0]}: only a PEFT adapter saved as safetensors is fetched; "
            "pickles can run code when they are loaded."
        )
        raise InvalidInput(msg)
    return Fetched(folder, folder.name)


def upload(
    repo_id: str,
    files: Mapping[str, Path | bytes],
    message: str,
    *,
    private: bool = False,
    revision: str | None = None,
) -> str:
    """Put files into a repository, made if it is not there, as one commit.

    Args:
        repo_id: `owner/name`.
        files: By their names in the repository.
        message: Of the commit.
        private: Whether a new repository is.
        revision: The branch; None takes the main one.

    Returns:
        The commit's address.

    Raises:
        InvalidInput: The hub cannot be reached or refuses it.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    operations = [
        CommitOperationAdd(name, content if isinstance(content, bytes) else str(content))
        for name, content in files.items()
    ]
    api = HfApi()
    with _one_sentence(repo_id, revision):
        api.create_repo(repo_id, private=private, exist_ok=True)
        if revision:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        commit = api.create_commit(repo_id, operations, commit_message=message, revision=revision)
    return str(commit.commit_url)


@contextlib.contextmanager
def _one_sentence(repo_id: str, revision: str | None) -> Iterator[None]:
    """Turn what the hub's client says into one sentence."""
    from httpx import HTTPError
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalTokenNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    hub = constants.ENDPOINT
    try:
        yield
    except RevisionNotFoundError as error:
        msg = f"{repo_id} at {hub} has no revision {revision!r}: name a branch, tag or commit."
        raise InvalidInput(msg) from error
    except (GatedRepoError, RepositoryNotFoundError) as error:
        msg = f"{hub} has no {repo_id} that you may use: check the id, or `hf auth login`."
        raise InvalidInput(msg) from error
    except LocalTokenNotFoundError as error:
        msg = f"{hub} asks who you are for {repo_id}: `hf auth login`, or set HF_TOKEN."
        raise InvalidInput(msg) from error
    except HFValidationError as error:
        msg = f"{repo_id!r} is no id on the hub ({first_line(error)}): write owner/name."
        raise InvalidInput(msg) from error
    except (HfHubHTTPError, HTTPError, OfflineModeIsEnabled, OSError) as error:
        response = getattr(error, "response", None)
        if response is not None and response.status_code in _NOT_ALLOWED:
            msg = f"{hub} does not let you change {repo_id}: `hf auth login`, or set HF_TOKEN."
            raise InvalidInput(msg) from error
        msg = f"{hub} does not do it for {repo_id} ({first_line(error)}): try again, or go online."
        raise InvalidInput(msg) from error
