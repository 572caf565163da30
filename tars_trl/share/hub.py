"""Pushing a model or a data set to the hub: only when asked, private unless asked, nothing overwritten unless asked."""

import hashlib
import logging
import tempfile
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import EntryNotFoundError
from huggingface_hub.utils.sha import git_hash

from ..errors import SettingError
from ..files import read_json

logger = logging.getLogger(__name__)

# Of no use to others: checkpoints and pickled settings of a run, what a build of a data set works with; nor for them:
# hidden files, such as .env (of .cache and .git the hub refuses the whole push).
NOT_PUSHED = [
    *("checkpoint-*", "training_args.bin", "optimizer*", "scheduler.pt", "rng_state*", "_*"),
    *(".*", "*/.*", "*.part"),
]


def prepare_repository(
    repo_id: str,
    *,
    repo_type: str = "model",
    hub_revision: str | None = None,
    private: bool = True,
    overwrite: bool = False,
    folder: str | Path | None = None,
    run_id: str | None = None,
    token: str | None = None,
) -> str:
    """Create a repository and its branch, or see that nothing in it would be lost or made public unasked.

    Args:
        repo_id: `user/name`, or a name in one's own namespace.
        repo_type: "model" or "dataset".
        hub_revision: branch; None for `main`.
        private: how it is created, and how it must be if it is there.
        overwrite: go on although the branch holds something.
        folder: what is going to be pushed; a branch that holds nothing but files of it is an interrupted push and is
            completed.
        run_id: of the `run.json` of a training run that goes on; a branch with that run's record is its own.
        token: None for the stored one (`hf auth login`, `HF_TOKEN`).

    Returns:
        the repository's full id.

    Raises:
        FileExistsError: the branch holds something else and `overwrite` is false.
        PermissionError: the repository is public and `private` is true.
    """
    api = HfApi(token=token)
    branch = hub_revision or "main"
    if "/" not in repo_id:
        repo_id = f"{api.whoami()['name']}/{repo_id}"
    if api.repo_exists(repo_id, repo_type=repo_type):
        if private and not api.repo_info(repo_id, repo_type=repo_type).private:
            raise PermissionError(
                f"{repo_id} is public, and a private push was asked for. Make it private, name another repository, or "
                "allow it with private=False (--public; in training hub_private_repo=False)."
            )
        known = api.revision_exists(repo_id, branch, repo_type=repo_type)
        foreign = _foreign_files(api, repo_id, repo_type, branch, folder) if known else []
        if foreign and not overwrite and not (run_id and run_id == _run_id(api, repo_id, branch)):
            raise FileExistsError(
                f"Branch {branch!r} of {repo_id} holds {len(foreign)} other files, such as {foreign[0]}; they are "
                "not overwritten. Push to another repository or branch (--hub_revision), or say overwrite=True "
                "(--overwrite)."
            )
    full = api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True).repo_id
    if branch != "main":
        api.create_branch(full, branch=branch, repo_type=repo_type, exist_ok=True)
    return full


def _run_id(api: HfApi, repo_id: str, branch: str) -> Any:
    """Of the run whose `run.json` a branch holds, if it holds one."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            file = api.hf_hub_download(repo_id, "run.json", revision=branch, local_dir=folder)
            return read_json(file)["run_id"]
        except (EntryNotFoundError, ValueError, KeyError, TypeError):
            return None


def _foreign_files(api: HfApi, repo_id: str, repo_type: str, branch: str, folder: str | Path | None) -> list[str]:
    """Files of a branch that are not, byte for byte, files of `folder`."""
    entries = api.list_repo_tree(repo_id, recursive=True, revision=branch, repo_type=repo_type)
    # Not the folders, nor what every repository starts with.
    files = [entry for entry in entries if hasattr(entry, "blob_id") and entry.path != ".gitattributes"]
    return [entry.path for entry in files if folder is None or not _same(Path(folder) / entry.path, entry)]


def _same(local: Path, entry: Any) -> bool:
    if not local.is_file() or local.stat().st_size != entry.size:
        return False
    if entry.lfs is None:
        return bool(git_hash(local.read_bytes()) == entry.blob_id)
    with local.open("rb") as opened:
        return bool(hashlib.file_digest(opened, "sha256").hexdigest() == entry.lfs.sha256)


def push(
    folder: str | Path,
    repo_id: str,
    *,
    repo_type: str = "model",
    hub_revision: str | None = None,
    token: str | None = None,
    **options: Any,
) -> str:
    """Upload a folder to the hub. An interrupted push is resumed by the same call: what is there is not sent again.

    Arguments (`options` are `private` and `overwrite`) and errors are those of `prepare_repository`. Afterwards the
    branch holds the folder and nothing else: what `overwrite` replaces, or a new branch has from main, is deleted.

    Returns:
        the commit's address.

    Raises:
        SettingError: the folder has no card.
    """
    if not (Path(folder) / "README.md").is_file():
        raise SettingError(
            f"push_to={repo_id!r}: {folder} has no card (README.md), so it is not finished. Complete what writes it "
            "(an export; a build of a data set with --stage card), or write one."
        )
    where: dict[str, Any] = {"repo_type": repo_type, "hub_revision": hub_revision, "token": token}
    full = prepare_repository(repo_id, folder=folder, **where, **options)
    logger.info("Uploading %s to %s, branch %s.", folder, full, hub_revision or "main")
    commit = HfApi(token=token).upload_folder(
        repo_id=full,
        repo_type=repo_type,
        folder_path=folder,
        revision=hub_revision,
        commit_message="Upload with tars_trl",
        ignore_patterns=NOT_PUSHED,
        delete_patterns=["*"],
    )
    return str(commit.commit_url)
