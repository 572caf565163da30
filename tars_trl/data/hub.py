"""Whether a repository can be reached on the hub, said within seconds and in one sentence."""

from concurrent.futures import Future
from threading import Thread

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils import validate_repo_id

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
    if constants.HF_HUB_OFFLINE:
        return
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
