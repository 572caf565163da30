"""The cards of a trained model and of a built data set: what it is, how to use it, how well it does, how it was made.

The texts are `model_card.md.jinja` and `dataset_card.md.jinja`. Facts come from files that others may have written: as
text they pass `plain`, `code` or `block` and stay on their line, and in a card's code they are literals of strings.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCard, DatasetCardData, EvalResult, ModelCard, ModelCardData

from ..config import telling_settings
from ..evaluation.results import read_results, results_file
from ..models import SpeechLLM
from ..models.loading import identity
from ..record import check_record

METHOD_TAGS = {"TARSGRPOTrainer": ["tars", "grpo"], "SpeechSFTTrainer": ["sft"], "SpeechDPOTrainer": ["dpo"]}
HERE = Path(__file__).parent
HUB_ID = r"[\w.-]+/[\w.-]+"


# ---- Results -------------------------------------------------------------------------------------------------------


def read_pairs(paths: Sequence[str | Path], checkpoint: str | Path | None = None) -> dict[str, dict[str, Any]]:
    """Paired results (both modalities of the same questions) of results files, by benchmark.

    Args:
        paths: results files of `tars-trl evaluate`, or folders of evaluations. They name the model that was
            evaluated, an adapter by its own name and not its base's.
        checkpoint: the model that the results have to be of; None for one model, whichever.

    Raises:
        ValueError: a file holds none, is of another model, or has other figures of a benchmark than a file before it.
    """
    pairs: dict[str, dict[str, Any]] = {}
    places: dict[str, Path] = {}
    for file in map(results_file, paths):
        content = read_results(file)
        of_file = content["pairs"] | content["averages"]
        if not of_file:
            raise ValueError(
                f"results: {file} holds no result in both modalities. Give results files of an evaluation with "
                "--modality both."
            )
        checkpoint = content.get("model_name") if checkpoint is None else checkpoint
        if content.get("model_name") is not None and not _is_of(content, str(checkpoint)):
            raise ValueError(
                f"results: {file} is of {content['model_name']}, and the card of {checkpoint}: it would show another "
                "model's figures. Give the results files of that one model."
            )
        for benchmark, pair in of_file.items():
            if pairs.get(benchmark, pair) != pair:
                raise ValueError(
                    f"results: {places[benchmark]} and {file} have different figures of {benchmark}, and a card shows "
                    "one. Give one file for each benchmark."
                )
            places[benchmark] = file
        pairs |= of_file
    return pairs


def _is_of(content: dict[str, Any], model: str) -> bool:
    """Whether a results file is of `model`: by the name it was evaluated under, or, where that differs, by weights."""
    if content["model_name"] == model or Path(content["model_name"]).resolve() == Path(model).resolve():
        return True
    return Path(model).is_dir() and identity(model) in (content.get("hashes") or {}).values()


# ---- The card of a model -------------------------------------------------------------------------------------------


def write_card(
    folder: str | Path,
    facts: Mapping[str, Any],
    architecture: SpeechLLM,
    name: str,
    *,
    adapter: bool,
    results: Mapping[str, Mapping[str, Any]] | None = None,
    license: str | None = None,
    verification: Mapping[str, float] | None = None,
) -> None:
    """Write README.md into `folder`.

    Args:
        facts: a `run.json`; what is missing is said to be unknown.
        architecture: of the model.
        name: repository (`user/name`), which the quick start loads; a bare name or folder if it is not pushed.
        adapter: whether the folder holds a LoRA adapter, not a whole model.
        results: from `read_pairs`.
        license: identifier of the hub, such as mit; None for the base model's.
        verification: what `tars_trl.share.verify.verify_folder` returned.
    """
    check_record(facts, "facts")
    results = results or {}
    if str(facts.get("dataset", "")).startswith(("/", "~")):  # a folder's path says nothing to others
        facts = {**facts, "dataset": Path(facts["dataset"]).name}
    base = str(facts.get("base_model") or "unknown base model")
    on_hub = re.fullmatch(HUB_ID, base, re.ASCII) is not None and not Path(base).exists()
    base_name = base if on_hub else Path(base).name  # a folder's path says nothing to others
    if adapter:
        revision = str(facts["base_revision"]) if on_hub and facts.get("base_revision") else None
        lines = architecture.card_loading(base_name, revision)
        loading = "\n".join([*lines, f"model = PeftModel.from_pretrained(model, {name!r})"])
    else:
        loading = "\n".join(architecture.card_loading(name))
    trained_by = facts.get("trainer", "TARSGRPOTrainer")
    title = _one_line(facts.get("model_name") or name.split("/")[-1])
    tags = [_one_line(tag) for tag in facts.get("tags") or []]
    data = ModelCardData(
        model_name=title,
        base_model=base if on_hub else None,
        library_name="peft" if adapter else "transformers",
        license=_one_line(license or "other"),
        license_name=None if license else "base-model",
        license_link=f"https://huggingface.co/{base}" if on_hub and not license else None,
        language="en",
        tags=[*METHOD_TAGS.get(trained_by, []), "tars-trl", "trl", "speech", "audio", "speech-llm", *tags],
        pipeline_tag="audio-text-to-text",
        eval_results=[entry for benchmark, pair in results.items() for entry in _evaluations(benchmark, pair)] or None,
    )
    card = ModelCard.from_template(
        data,
        template_path=str(HERE / "model_card.md.jinja"),
        **IN_TEMPLATES,
        facts=facts,
        name=name,
        title=title,
        base=base,
        base_name=base_name,
        on_hub=on_hub,
        trained_by=trained_by,
        adapter=adapter,
        architecture=architecture,
        loading=loading,
        results=[_result_row(benchmark, pair) for benchmark, pair in results.items()],
        verification=verification,
        settings=telling_settings(facts.get("settings") or {})[0],
        license=license,
    )
    card.save(Path(folder) / "README.md")


def _evaluations(benchmark: str, pair: Mapping[str, Any]) -> list[EvalResult]:
    """`model-index` entries of one benchmark; percentages."""
    figures = (
        ("speech_accuracy", "accuracy", "accuracy, spoken", 100),
        ("text_accuracy", "accuracy", "accuracy, written", 100),
        ("gap", "gap", "written minus spoken accuracy", 100),
        ("recovery", "recovery", "spoken over own written accuracy", 1),
        ("mrr", "mrr", "modality recovery rate", 1),
    )
    return [
        EvalResult(
            task_type="question-answering",
            task_name="Spoken question answering",
            dataset_type=re.sub(r"\W+", "-", benchmark.lower()),
            dataset_name=_one_line(benchmark),
            metric_type=kind,
            metric_name=label,
            metric_value=round(scale * pair[key], 2),
        )
        for key, kind, label, scale in figures
        if pair.get(key) is not None
    ]


def _result_row(benchmark: str, pair: Mapping[str, Any]) -> list[str]:
    cells = [_plain(benchmark), _plain(pair["questions"])]
    for key, scale in (("speech_accuracy", 100), ("text_accuracy", 100), ("gap", 100), ("recovery", 1), ("mrr", 1)):
        cell = f"{scale * pair[key]:.1f}" if pair.get(key) is not None else ""
        interval = pair.get(f"{key.removesuffix('_accuracy')}_interval")
        if cell and interval:
            cell += f" [{scale * interval[0]:.1f}, {scale * interval[1]:.1f}]"
        cells.append(cell)
    if cells[-1]:
        cells[-1] += f", of {pair['reference_accuracy']:.2f}"
    return cells


# ---- The card of a data set ----------------------------------------------------------------------------------------


def write_dataset_card(folder: str | Path, facts: Mapping[str, Any]) -> Path:
    """Write `README.md` with what was kept, dropped and why, and how it was made.

    Args:
        folder: of the data set.
        facts: as `tars_trl.speaking.build.build` returns them.
    """
    folder, splits = Path(folder), facts["counts"]
    with_rows = [_one_line(split) for split, count in splits.items() if count["kept"]]
    data = DatasetCardData(
        license=_one_line(facts["license"]) if facts["license"] else None,
        language=["en"],
        task_categories=["question-answering", "automatic-speech-recognition"],
        tags=["audio", "speech", "synthetic", "multiple-choice", "tars-trl"],
        configs=[
            {
                "config_name": "default",
                "data_files": [{"split": split, "path": f"data/{split}-*.parquet"} for split in with_rows],
            }
        ],
    )
    path = str(HERE / "dataset_card.md.jinja")
    texts = {"table": count_table(splits), "title": folder.name, "repository": facts["push_to"] or folder.name}
    card = DatasetCard.from_template(data, template_path=path, **IN_TEMPLATES, **texts, facts=facts)
    card.save(folder / "README.md")
    return folder / "README.md"


def count_table(splits: Mapping[str, Mapping[str, Any]]) -> str:
    """What a build kept and dropped, as a Markdown table."""
    lines = ["| split | questions | kept | hours | mean word error rate | dropped |", "|---|---|---|---|---|---|"]
    for split, count in splits.items():
        hours = f"{count['seconds'] / 3600:.2f}" if "seconds" in count else "not spoken"
        rate = "not heard" if count.get("tts_wer") is None else f"{100 * count['tts_wer']:.1f} %"
        dropped = ", ".join(f"{number} {reason}" for reason, number in count["dropped"].items()) or "none"
        cells = (split, count["questions"], count["kept"], hours, rate, dropped)
        lines.append(f"| {' | '.join(map(_plain, cells))} |")
    return "\n".join(lines)


# ---- What others wrote, in Markdown --------------------------------------------------------------------------------


def _plain(value: Any) -> str:
    """One line of text that means nothing to Markdown or HTML; control characters are made visible."""
    return re.sub(r"([\\`*_\[\]<>|~&$])", r"\\\1", _one_line(value))


def _code(value: Any) -> str:
    """Inline code, in a table or not."""
    text = _one_line(value).replace("|", "¦")
    fence = _fence(text, 1)
    space = " " if text[:1] == "`" or text[-1:] == "`" or not text.strip() else ""
    return f"{fence}{space}{text}{space}{fence}"


def _block(value: Any) -> str:
    """A block of one line of code, which is shown and not meant to be run."""
    text = _one_line(value)
    fence = _fence(text, 3)
    return f"{fence}text\n{text}\n{fence}"


def _one_line(value: Any) -> str:
    return "".join(c if c.isprintable() else " " if c in "\n\r\t" else "�" for c in str(value))


def _fence(text: str, least: int) -> str:
    return "`" * max([least, *(len(run) + 1 for run in re.findall("`+", text))])


IN_TEMPLATES: dict[str, Any] = {"plain": _plain, "code": _code, "block": _block, "literal": repr}
"""What a template sends every fact through: text, inline code, a block of code, or a literal in the card's code."""
