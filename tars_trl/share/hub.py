"""Pushing a folder or a run to the hub: only when asked, private unless asked, nothing overwritten unless asked."""

import hashlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi

logger = logging.getLogger(__name__)

# A run's training arguments may hold a token; its checkpoints and optimiser are of no use to others.
NOT_PUSHED = ["checkpoint-*", "training_args.bin", "optimizer*", "scheduler.pt", "rng_state*", "_*"]


def prepare_repository(
    repo_id: str,
    *,
    revision: str | None = None,
    private: bool = True,
    overwrite: bool = False,
    folder: str | Path | None = None,
    token: str | None = None,
) -> str:
    """Create a repository and its branch, or see that nothing in them would be lost or made public unasked.

    Args:
        repo_id: `user/name`, or a name in one's own namespace.
        revision: branch; None for `main`.
        private: how it is created, and how it must be if it is there.
        overwrite: go on although the revision holds something.
        folder: what is going to be pushed; a revision that holds nothing but files of it is an interrupted push and is
            completed.
        token: None for the stored one (`hf auth login`, `HF_TOKEN`).

    Returns:
        the repository's full id.

    Raises:
        FileExistsError: the revision holds something else and `overwrite` is false.
        PermissionError: the repository is public and `private` is true.
    """
    api = HfApi(token=token)
    branch = revision or "main"
    if "/" not in repo_id:
        repo_id = f"{api.whoami()['name']}/{repo_id}"
    if api.repo_exists(repo_id):
        if private and not api.repo_info(repo_id).private:
            raise PermissionError(
                f"{repo_id} is public, and a private push was asked for. Make it private, name another repository, or "
                "allow it with private=False (--public; in training hub_private_repo=False)."
            )
        foreign = _foreign_files(api, repo_id, branch, folder) if api.revision_exists(repo_id, branch) else []
        if foreign and not overwrite:
            raise FileExistsError(
                f"Revision {branch!r} of {repo_id} holds {len(foreign)} other files, such as {foreign[0]}; they are "
                "not overwritten. Push to another repository or revision, or say overwrite=True (--overwrite)."
            )
    full = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    if revision not in (None, "main"):
        api.create_branch(full, branch=branch, exist_ok=True)
    return full


def _foreign_files(api: HfApi, repo_id: str, revision: str, folder: str | Path | None) -> list[str]:
    """Files of a revision that are not, byte for byte, files of `folder`."""
    foreign = []
    for entry in api.list_repo_tree(repo_id, recursive=True, revision=revision):
        path = getattr(entry, "path", "")
        if not hasattr(entry, "blob_id") or path == ".gitattributes":  # a folder, or what every repository starts with
            continue
        local = Path(folder) / path if folder is not None else None
        if local is None or not local.is_file() or not _same(local, entry):
            foreign.append(path)
    return foreign


def _same(local: Path, entry: Any) -> bool:
    if local.stat().st_size != entry.size:
        return False
    large = entry.lfs is not None
    digest = hashlib.sha256() if large else hashlib.sha1(f"blob {entry.size}\0".encode())  # as git names a blob
    for block in _blocks(local):
        digest.update(block)
    return bool(digest.hexdigest() == (entry.lfs.sha256 if large else entry.blob_id))


def _blocks(file: Path) -> Iterator[bytes]:
    with file.open("rb") as opened:
        while block := opened.read(1 << 20):
            yield block


def push(
    folder: str | Path,
    repo_id: str,
    *,
    revision: str | None = None,
    private: bool = True,
    overwrite: bool = False,
    token: str | None = None,
    message: str = "Upload with tars_trl",
) -> str:
    """Upload a folder to the hub. An interrupted push is resumed by the same call: what is there is not sent again.

    Arguments and errors are those of `prepare_repository`. Afterwards the revision holds the folder and nothing else:
    what `overwrite` replaces, or a new branch has from main, is deleted from it.

    Returns:
        the commit's address.
    """
    full = prepare_repository(
        repo_id, revision=revision, private=private, overwrite=overwrite, folder=folder, token=token
    )
    logger.info("Uploading %s to %s, revision %s.", folder, full, revision or "main")
    commit = HfApi(token=token).upload_folder(
        repo_id=full,
        folder_path=folder,
        revision=revision,
        commit_message=message,
        ignore_patterns=list(NOT_PUSHED),
        delete_patterns=["*"],
    )
    return str(commit.commit_url)


def prepare_run(trainer: Any, token: str | None = None, private: bool | None = None) -> bool:
    """What a trainer does before it creates its repository: see that it may, and take the token out of its settings.

    `hub_private_repo=False` asks for a public repository. A run that resumes goes on in the repository it began.
    (transformers writes the settings, `hub_token` among them, into `training_args.bin`, which it pushes.)

    Returns:
        whether the repository is private.
    """
    args = trainer.args
    if args.hub_token:
        os.environ["HF_TOKEN"], args.hub_token = args.hub_token, None
    private = args.hub_private_repo is not False if private is None else private
    resumes = bool(args.resume_from_checkpoint) and any(Path(args.output_dir).glob("checkpoint-*"))
    if trainer.is_world_process_zero():
        prepare_repository(
            args.hub_model_id or Path(args.output_dir).absolute().name,
            revision=args.hub_revision,
            private=private,
            overwrite=resumes,
            token=token,
        )
    return private
