"""Whether there is such a folder here or such a repository on the hub, said within seconds and in one sentence."""

import difflib
import functools
from concurrent.futures import Future
from pathlib import Path
from threading import Thread

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils import validate_repo_id

from ..errors import SettingError

SECONDS = 8.0
"""For an answer; transformers and datasets try again for half a minute, and then name neither the id nor the reason."""


def check_on_hub(repo_id: str, repo_type: str = "model", revision: str | None = None) -> None:
    """See that a repository is on the hub. With `HF_HUB_OFFLINE` nothing is asked: what is cached will be used.

    Raises:
        FileNotFoundError: the hub has no such repository or revision, or not for this user, or none can be called so.
        ConnectionError: there was no answer.
    """
    at = f"{repo_id}{f', revision {revision}' if revision else ''}"
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise FileNotFoundError(
            f"{at}: there is no such folder here, and no repository can have this name ({error}) Correct it."
        ) from error
    if not constants.HF_HUB_OFFLINE:
        _ask(repo_id, repo_type, revision, at)


@functools.cache  # a yes, not an error: whatever needs to know asks, and the hub is asked once
def _ask(repo_id: str, repo_type: str, revision: str | None, at: str) -> None:
    answer: Future = Future()

    def ask() -> None:
        try:
            answer.set_result(
                huggingface_hub.HfApi().repo_info(repo_id, repo_type=repo_type, revision=revision, timeout=SECONDS)
            )
        except Exception as error:  # noqa: BLE001 (handed over to the thread that waits)
            answer.set_exception(error)

    # In a thread, since no time-out covers the look-up of the host's name; a daemon, so that nothing waits for it.
    Thread(target=ask, daemon=True).start()
    try:
        answer.result(SECONDS + 1)
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise FileNotFoundError(
            f"{at}: there is no such folder here and no such {repo_type} on the hub, or none that this user may read "
            f"({type(error).__name__}). Correct the name, or log in with `hf auth login`."
        ) from error
    except Exception as error:  # of whichever HTTP library huggingface_hub is made with
        raise ConnectionError(
            f"{at}: there is no such folder here, and {constants.ENDPOINT} cannot be reached "
            f"({str(error) or type(error).__name__}). Connect, or set HF_HUB_OFFLINE=1 to use what is cached."
        ) from error


def check_place(name: str, value: str | None, revision: str | None = None) -> None:
    """See that there is such a model: a folder here, or else, if it does not look like a misspelt one, on the hub.

    Args:
        name: of the setting.
        value: a folder or a hub id, "owner/name"; None is neither.
        revision: on the hub.

    Raises:
        SettingError: there is no such folder; the nearest name is told.
        FileNotFoundError, ConnectionError: the hub has no such model, or cannot be reached.
    """
    if value is None or Path(value).is_dir():
        return
    path = Path(value)
    if path.exists():
        raise SettingError(f"{name}={value!r} is a file. Give a folder, or a hub id, owner/name.")
    if len(path.parts) == 2 and not Path(path.parts[0]).is_dir() and not value.startswith((".", "/", "~")):
        check_on_hub(value, revision=revision)
        return
    raise SettingError(f"{name}={value!r}: there is no such folder, and no hub id, owner/name. {nearest(path)}")


def nearest(path: Path) -> str:
    """What to do about a path that leads nowhere, with the nearest name where the way ends."""
    there = next(folder for folder in path.parents if folder.is_dir())
    missing = path.relative_to(there).parts[0]
    near = difflib.get_close_matches(missing, [entry.name for entry in there.iterdir()], 1)
    return f"Did you mean {there / near[0]}?" if near else f"Correct the path: {there} holds no {missing}."
