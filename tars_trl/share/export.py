"""From a checkpoint to a folder that others can open: written, asked again in a fresh process, carded, pushed.

`verify` checks such a folder, `cards` describes it, `hub` pushes it; what is special to an architecture is in its file
in `tars_trl.models`.
"""

import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import safe_open

from ..data.hub import check_place
from ..data.prompts import Modality
from ..data.questions import load_questions
from ..errors import SettingError
from ..models import architecture_of
from ..models.loading import load_speech_llm
from ..models.prompting import base_of
from ..record import read_run
from ..settings import Settings, setting
from .cards import read_pairs, write_card
from .hub import prepare_repository, push
from .verify import TOLERANCES, greedy_answers, untrained_logits, verify_folder

FORMATS = ("adapter", "merged", "omni")
"""The last one: the whole checkpoint that the trained model is a part of (`SpeechLLM.write_whole`)."""


@dataclass
class ExportSettings(Settings):
    """What is exported, how it is checked, where it goes."""

    checkpoint: str | None = setting(
        None, "Folder of a run or a checkpoint: an adapter or a whole model.", positional=True, required=True
    )
    output_dir: str | None = setting(None, "Folder to write; empty or not there yet.", required=True)
    format: str = setting("adapter", "What the folder becomes.", choices=FORMATS)
    model: str | None = setting(
        None, "Base model, hub id or folder. None: the one that the adapter names. A card names this one."
    )
    model_revision: str | None = setting(None, "Commit, tag or branch of the base on the hub. None: the training's.")
    whole: str | None = setting(
        None, "Format omni: hub id or folder of the whole checkpoint that the trained part belongs to. None: the base."
    )
    dtype: str = setting(
        "float32",
        "Type that weights are stored in; format omni keeps the whole one's.",
        choices=tuple(TOLERANCES),
    )
    verify: bool = setting(True, "Load the result in a fresh process and compare (`--no_verify`: not; forbids a push).")
    dataset: str | None = setting(
        None, "Questions whose first one is asked in both forms: hub id, folder or file. None: those of the run."
    )
    split: str = setting("test", "Split of the questions.")
    max_completion_length: int = setting(32, "Most tokens of the compared answers.", least=1)
    results: list[str] = setting([], "Results files or folders of evaluations of this model, for the card.")
    training_data: str | None = setting(None, "Training data, as the card should name it. None: as `run.json` does.")
    license: str | None = setting(None, "Licence identifier of the hub, such as mit. None: the base model's.")
    push_to: str | None = setting(None, "Repository to push to, user/name. None pushes nothing.")
    hub_revision: str | None = setting(None, "Branch to push to. None: main.")
    public: bool = setting(False, "Push to a public repository instead of a private one.")
    overwrite: bool = setting(False, "Replace what the branch holds.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.push_to and not self.verify:
            raise SettingError("push_to is given with verify off: nothing unchecked is pushed. Leave verify on.")


def export(settings: ExportSettings) -> None:
    """Load, ask, write, verify, card, push; what was done is printed.

    Raises:
        SettingError: a format that the model does not fit, or a folder that holds something.
        ExportError: what was written answers otherwise than what was trained; nothing is pushed then.
    """
    output_dir, checkpoint = Path(str(settings.output_dir)), str(settings.checkpoint)
    check_place("checkpoint", checkpoint)
    adapter = settings.format == "adapter"
    remote: dict[str, Any] = {
        "hub_revision": settings.hub_revision, "private": not settings.public, "overwrite": settings.overwrite,
    }  # fmt: skip
    dataset, split, trained = settings.dataset, settings.split, read_run(checkpoint)
    if dataset is None:
        dataset, split = trained.get("dataset"), trained.get("split", split)
    system_prompt = (trained.get("system_prompt") or "") if settings.dataset is None and trained else None
    if settings.verify and not dataset:
        raise SettingError(
            f"dataset is not given, and {checkpoint} does not say what it was trained on: there is no question to ask "
            "for `verify`. Give --dataset."
        )
    results = read_pairs(settings.results, checkpoint)
    check_empty(output_dir)
    check_place("model", settings.model, settings.model_revision)
    check_place("whole", settings.whole)
    questions: list[tuple[Modality, dict[str, Any]]] = []
    if settings.verify:
        row = load_questions(str(dataset), split, limit=1, system_prompt=system_prompt)[0]
        questions = [("speech", row), ("text", row)]
    if settings.push_to:  # before anything expensive
        prepare_repository(settings.push_to, folder=output_dir, **remote)
    place = (settings.model, checkpoint) if settings.model else (checkpoint, None)
    model, processor = load_speech_llm(*place, model_revision=settings.model_revision, dtype="float32")
    base = base_of(model).config
    facts = {"base_model": base.name_or_path, **trained}
    if settings.training_data:
        facts["dataset"] = settings.training_data
    if settings.model:
        facts |= {"base_model": settings.model, "base_revision": settings.model_revision}
        if isinstance(model, PeftModel):
            model.active_peft_config.base_model_name_or_path = settings.model
    expected = greedy_answers(model, processor, questions, settings.max_completion_length)
    untrained = untrained_logits(model, processor, questions, expected)

    original, revision = settings.whole or facts["base_model"], settings.model_revision or facts.get("base_revision")
    write_export(
        model, processor, output_dir, settings.format, dtype=settings.dtype, original=original, revision=revision
    )
    del model
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    print(f"Wrote {output_dir} ({settings.format}).")

    verification = None
    if settings.verify:
        verification = verify_folder(
            str(output_dir),
            questions,
            expected,
            untrained=untrained,
            dtype=stored_dtype(output_dir),
            max_completion_length=settings.max_completion_length,
            base=settings.model if adapter else None,
            model_revision=settings.model_revision if adapter else None,
        )
        for answer in expected:
            print(f"Verified, {answer.modality}: {answer.text!r}")
    about: dict[str, Any] = {"results": results, "license": settings.license, "verification": verification}
    name, architecture = settings.push_to or output_dir.name, architecture_of(base.model_type)
    write_card(output_dir, facts, architecture, name, adapter=adapter, **about)
    if settings.push_to:
        print("Pushed:", push(output_dir, settings.push_to, **remote))


def check_empty(folder: str | Path) -> None:
    """Raise a SettingError if the folder holds something: nothing is mixed with what is written."""
    if Path(folder).exists() and any(Path(folder).iterdir()):
        raise SettingError(
            f"output_dir={str(folder)!r} holds files already; nothing is mixed with them. Give a new folder."
        )


def write_export(
    model: Any,
    processor: Any,
    folder: str | Path,
    kind: str,
    *,
    dtype: str = "float32",
    original: str | Path | None = None,
    revision: str | None = None,
) -> None:
    """Write a trained model in one of `FORMATS`.

    Args:
        model: from `load_speech_llm`, in float32; merging changes it in place.
        processor: written beside it (of a whole checkpoint the original's files are kept instead).
        folder: empty or not there yet.
        kind: "adapter": as it is; "merged": the model that was trained, adapter added into the weights; "omni": that,
            put back into the whole checkpoint it is a part of.
        dtype: type that a merged model's weights are stored in.
        original: for "omni", folder or hub id of the checkpoint that the training started from; see `write_whole`.
        revision: of `original`, on the hub.

    Raises:
        SettingError: an unknown kind, a folder that holds something, or a model that the kind does not fit.
    """
    folder = Path(folder)
    if kind not in FORMATS:
        raise SettingError(f"format={kind!r} is not known. Use one of {', '.join(FORMATS)}.")
    check_empty(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    adapted = isinstance(model, PeftModel)
    if kind == "adapter" and not adapted:
        raise SettingError("format='adapter' was asked of a whole model: it has no adapter. Use 'merged'.")
    if kind != "adapter":
        model = (model.merge_and_unload(safe_merge=True) if adapted else model).to(getattr(torch, dtype))
    if kind != "omni":
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        return
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as part:
        model.save_pretrained(part)
        architecture_of(model.config.model_type).write_whole(Path(part), processor, folder, original, revision)


def stored_dtype(folder: str | Path) -> str:
    """Type that most of a folder's weights are stored in: float32, float16 or bfloat16."""
    names = {"F16": "float16", "BF16": "bfloat16"}
    counts: Counter[str] = Counter()
    for file in sorted(Path(folder).glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            keys = opened.keys()
            counts.update(names.get(opened.get_slice(key).get_dtype(), "float32") for key in keys)
    return counts.most_common(1)[0][0]
