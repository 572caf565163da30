"""A push is private, refuses to overwrite, resumes, leaks no token; from the trainer, from the recipe."""

import copy
import json
import logging
import os
import subprocess
import sys

import huggingface_hub
import pytest
import torch
import wandb
from safetensors.torch import save_file

from tars_trl.errors import SettingError
from tars_trl.evaluation.metrics import paired_result
from tars_trl.record import read_run
from tars_trl.share.hub import push
from tars_trl.share.publishing import PublishCallback
from tests.conftest import ROOT
from tests.share.hub_server import TOKEN, Hub
from tests.trained import checkpoint, tiny_omni_folder


@pytest.fixture
def hub(monkeypatch):
    """A hub on loopback that the real client talks to, and nothing else."""
    constants = huggingface_hub.constants
    server = Hub()
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants._HF_DEFAULT_ENDPOINT, server.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # the server speaks git-lfs
    monkeypatch.setattr("transformers.utils.hub._hf_api", None)  # made with the address of the first call
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield server
    server.stop()


@pytest.fixture
def folder(tmp_path):
    """Something to push: a card, two large files and what must stay at home."""
    folder = tmp_path / "export"
    folder.mkdir()
    (folder / "README.md").write_text("---\nlanguage: en\n---\n# A model\n")
    for number in (1, 2):
        save_file({"w": torch.full((4,), float(number))}, folder / f"model-0000{number}-of-00002.safetensors")
    (folder / "training_args.bin").write_bytes(b"secrets")
    (folder / "checkpoint-1").mkdir()
    (folder / "checkpoint-1" / "optimizer.pt").write_bytes(b"large")
    return folder


SENT = {".gitattributes", "README.md", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"}


def test_push_is_private_and_complete(hub, folder):
    address = push(folder, "me/model")
    assert hub.repositories["me/model"]["private"] and address.startswith(f"{hub.url}/me/model/commit/")
    files = hub.files("me/model")
    assert files.keys() == SENT
    assert all(files[name] == (folder / name).read_bytes() for name in SENT - {".gitattributes"})


def test_push_to_a_branch_of_ones_own_namespace(hub, folder):
    """A new branch starts with main's files; the push leaves them on main and not on the branch."""
    hub.create("me/model", private=True)
    hub.files("me/model")["old.safetensors"] = b"old"
    push(folder, "model", hub_revision="v2")
    assert hub.files("me/model").keys() == {".gitattributes", "old.safetensors"}
    assert hub.files("me/model", "v2").keys() == SENT


@pytest.mark.parametrize("name", ["me/model", "model"])
def test_push_overwrites_only_when_told_to(hub, folder, name):
    hub.create("me/model", private=True)
    hub.files("me/model")["old.safetensors"] = b"old"
    with pytest.raises(FileExistsError, match="'main' of me/model holds 1 other files, such as old.safetensors"):
        push(folder, name)
    assert not hub.commits and hub.files("me/model")["old.safetensors"] == b"old"
    push(folder, name, overwrite=True)
    assert hub.files("me/model").keys() == SENT


def test_changed_file_is_not_overwritten(hub, folder):
    """Same names and sizes are not enough: contents are compared."""
    push(folder, "me/model")
    save_file({"w": torch.full((4,), 3.0)}, folder / "model-00001-of-00002.safetensors")
    with pytest.raises(FileExistsError, match="1 other files, such as model-00001"):
        push(folder, "me/model")


def test_public_repository_gets_no_private_push(hub, folder):
    hub.create("me/model", private=False)
    with pytest.raises(PermissionError, match="me/model is public"):
        push(folder, "me/model")
    push(folder, "me/model", private=False)
    assert hub.files("me/model").keys() == SENT


def test_data_sets_are_protected_as_models_are(hub, tmp_path):
    """Private, nothing overwritten or made public unasked, resumed; what a build works with stays at home."""
    folder = tmp_path / "built"
    at_home = (
        ".work/rows.jsonl",
        ".work/train/0.json",
        "data/x.part",
        ".env",
        ".cache/a",
        "data/.cache/a",
        "data/.env",
    )
    for name in ("README.md", "data/train-00000.parquet", *at_home):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("---\nlanguage: en\n---\n")
    sent = {".gitattributes", "README.md", "data/train-00000.parquet"}
    hub.create("me/it", private=False)  # a model of the same name
    assert push(folder, "me/it", repo_type="dataset").startswith(f"{hub.url}/datasets/me/it/commit/")
    assert hub.files("datasets/me/it").keys() == sent and hub.repositories["datasets/me/it"]["private"]
    assert hub.files("me/it").keys() == {".gitattributes"}
    push(folder, "me/it", repo_type="dataset")

    hub.files("datasets/me/it")["data/test-00000.parquet"] = b"somebody's"
    with pytest.raises(FileExistsError, match="'main' of me/it holds 1 other files, such as data/test-00000"):
        push(folder, "me/it", repo_type="dataset")
    assert hub.files("datasets/me/it")["data/test-00000.parquet"] == b"somebody's"
    push(folder, "me/it", repo_type="dataset", overwrite=True)
    assert hub.files("datasets/me/it").keys() == sent

    hub.create("datasets/me/public", private=False)
    with pytest.raises(PermissionError, match="me/public is public"):
        push(folder, "me/public", repo_type="dataset")
    push(folder, "me/public", repo_type="dataset", private=False)
    assert hub.files("datasets/me/public").keys() == sent


def test_nothing_without_a_card_is_pushed(hub, folder):
    (folder / "README.md").unlink()
    with pytest.raises(SettingError, match="has no card"):
        push(folder, "me/model")
    assert not hub.repositories


def test_interrupted_push_is_resumed(hub, folder):
    """Nothing is committed before all is there; the same call then sends only what is missing."""
    hub.refused_uploads = 1
    with pytest.raises(RuntimeError, match="Error while uploading"):
        push(folder, "me/model")
    assert hub.files("me/model").keys() == {".gitattributes"} and len(hub.uploads) == 1
    push(folder, "me/model")
    assert hub.files("me/model").keys() == SENT and len(hub.uploads) == len(set(hub.uploads)) == 2
    hub.files("me/model").pop("model-00002-of-00002.safetensors")  # as if only a first commit had been made
    push(folder, "me/model")
    assert hub.files("me/model").keys() == SENT and len(hub.uploads) == 2


def test_token_is_not_logged(hub, folder, caplog, capfd, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    caplog.set_level(logging.DEBUG)
    hub.refused_uploads = 2
    with pytest.raises(RuntimeError) as error:
        push(folder, "me/model", token=TOKEN)
    hub.refused_uploads = 0  # the client may have given up after the first of two
    push(folder, "me/model", token=TOKEN)
    hub.files("me/model")["other"] = b""
    with pytest.raises(FileExistsError) as refusal:
        push(folder, "me/model", token=TOKEN)
    captured = capfd.readouterr()
    assert "me/model" in caplog.text
    for text in (caplog.text, captured.out, captured.err, str(error.value), str(refusal.value)):
        assert TOKEN not in text


def test_wrong_token_is_the_clients_error(hub, folder):
    with pytest.raises(huggingface_hub.errors.HfHubHTTPError, match="401"):
        push(folder, "me/model", token="hf_wrong")


# ---- From the trainer -----------------------------------------------------------------------------------------------


def test_trainer_pushes_its_adapter_with_our_card(hub, make_trainer, tiny, tmp_path, monkeypatch):
    """`push_to_hub=True`: private, adapter, processor, our card, no token; a second run does not overwrite it."""
    monkeypatch.delenv("HF_TOKEN")
    settings = {
        "push_to_hub": True,
        "hub_model_id": "me/run",
        "hub_token": TOKEN,
        "max_steps": 1,
        "save_strategy": "steps",
        "save_steps": 1,
    }
    model, processor = tiny
    model.save_pretrained(tmp_path / "base")
    model = type(model).from_pretrained(tmp_path / "base")
    trainer = make_trainer(build_model=copy.deepcopy(model), callbacks=[PublishCallback()], **settings)
    trainer.train()
    trainer.push_to_hub()
    files = hub.files("me/run")
    assert hub.repositories["me/run"]["private"]
    assert {"adapter_model.safetensors", "adapter_config.json", "processor_config.json", "run.json"} <= files.keys()
    card = files["README.md"].decode()
    assert "soundfile.read" in card and "TARS" in card and "library_name: peft" in card
    assert read_run(tmp_path / "out")["questions"] == 4 and read_run(tmp_path / "out" / "checkpoint-1")["steps"] == 1
    assert not any(TOKEN.encode() in content for content in files.values())
    with pytest.raises(FileExistsError, match="me/run holds"):
        make_trainer(build_model=copy.deepcopy(model), callbacks=[PublishCallback()], **settings)

    hub.create("me/precious", private=True)
    hub.files("me/precious")["adapter_model.safetensors"] = b"another's"
    settings |= {"resume_from_checkpoint": "last", "max_steps": 2}
    with pytest.raises(FileExistsError, match="me/precious holds 1 other files"):
        make_trainer(build_model=copy.deepcopy(model), callbacks=[PublishCallback()],
                     **settings | {"hub_model_id": "me/precious"})  # fmt: skip
    trainer = make_trainer(build_model=copy.deepcopy(model), callbacks=[PublishCallback()], **settings)
    trainer.train("last")
    trainer.push_to_hub(dataset_name="my/questions", tags="mine")
    assert json.loads(hub.files("me/run")["run.json"])["steps"] == 2, "its own repository goes on"
    card = hub.files("me/run")["README.md"].decode()
    assert "(my/questions)" in card and "- mine" in card


@pytest.mark.parametrize("published", [False, True])
def test_no_saved_file_holds_the_token(hub, make_trainer, tmp_path, monkeypatch, published):
    """Neither checkpoints (transformers pickles all settings), nor run.json and card, nor what trackers write."""
    monkeypatch.setattr(sys, "argv", ["train.py", "--hub_token", TOKEN])
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "out" / "logs"))
    for name in ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "out"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    settings = {"max_steps": 1, "save_strategy": "steps", "save_steps": 1, "report_to": ["tensorboard", "wandb"]}
    settings |= {"push_to_hub": published, "hub_model_id": "me/run", "hub_token": TOKEN}
    trainer = make_trainer(callbacks=[PublishCallback()], **settings)
    trainer.train()
    trainer.save_model()
    trainer.create_model_card()
    if published:
        trainer.push_to_hub()
    wandb.finish()
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    names = {file.name for file in files}
    assert {"training_args.bin", "run.json", "README.md"} <= names
    assert [str(file) for file in files if TOKEN.encode() in file.read_bytes()] == []
    assert ("me/run" in hub.repositories) == published


# ---- The recipe -----------------------------------------------------------------------------------------------------


def export(*arguments, endpoint, offline="1"):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_XET": "1"}
    environment |= {"HF_HUB_OFFLINE": offline, "HF_TOKEN": TOKEN}
    command = [sys.executable, str(ROOT / "recipes" / "export.py"), *map(str, arguments)]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_recipe_verifies_and_pushes(tiny, hub, tmp_path):
    """One command: merged, loaded in a fresh process, compared, carded with results, pushed; no token shown."""
    run = checkpoint(*tiny, tmp_path)
    pair = paired_result([True, True, False, False], [True, True, True, False])
    (tmp_path / "results_1.json").write_text(json.dumps({"results": {}, "pairs": {"sums": pair}}))
    arguments = [run, "--output_dir", tmp_path / "out", "--format", "merged", "--max_completion_length", "6"]
    arguments += ["--dataset", ROOT / "recipes" / "demo" / "questions"]
    arguments += ["--results", tmp_path / "results_1.json", "--push_to", "me/tars"]
    done = export(*arguments, endpoint=hub.url, offline="0")
    assert done.returncode == 0, done.stderr
    assert "Verified, speech" in done.stdout and "Pushed:" in done.stdout
    assert TOKEN not in done.stdout + done.stderr
    files = hub.files("me/tars")
    assert files["model.safetensors"] == (tmp_path / "out" / "model.safetensors").read_bytes()
    assert b"| sums | 4 | 50.0 [" in files["README.md"] and b"model-index" in files["README.md"]


@pytest.mark.slow
def test_recipe_pushes_nothing_that_answers_otherwise(tiny, hub, tmp_path):
    """An Omni with another configuration makes the thinker another model: an error, and the repository stays empty."""
    run, omni = checkpoint(*tiny, tmp_path), tiny_omni_folder(*tiny, tmp_path / "omni")
    config = json.loads((omni / "config.json").read_text())
    config["thinker_config"]["text_config"]["rms_norm_eps"] = 1.0  # the weights fit, the model is another one
    (omni / "config.json").write_text(json.dumps(config))
    arguments = [run, "--output_dir", tmp_path / "out", "--format", "omni", "--max_completion_length", "6"]
    arguments += ["--dataset", ROOT / "recipes" / "demo" / "questions"]
    done = export(*arguments, "--whole", omni, "--push_to", "me/tars", endpoint=hub.url, offline="0")
    assert done.returncode == 2 and "It would not be the model that was trained" in done.stderr, done.stderr
    assert hub.files("me/tars").keys() == {".gitattributes"}
