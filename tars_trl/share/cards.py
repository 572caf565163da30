"""The cards of a trained model and of a built data set: what it is, how to use it, how well it does, how it was made.

The texts are `model_card.md.jinja` and `dataset_card.md.jinja`. Facts come from files that others may have written: as
text they pass `_plain` or `_code` and stay on their line, and in a card's code they are literals of strings.
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

PAPER = "https://arxiv.org/abs/2601.05543"
METHOD_TAGS = {"TARSGRPOTrainer": ["tars", "grpo"], "SpeechSFTTrainer": ["sft"], "SpeechDPOTrainer": ["dpo"]}
HERE = Path(__file__).parent


# ---- Results -------------------------------------------------------------------------------------------------------


def read_pairs(paths: Sequence[str | Path], checkpoint: str | Path | None = None) -> dict[str, dict[str, Any]]:
    """Paired results (both modalities of the same questions) of results files, by benchmark.

    Args:
        paths: results files of `recipes/evaluate.py`, or folders of evaluations. They name the model that was
            evaluated, an adapter by its own name and not its base's.
        checkpoint: the model that the results have to be of; None for one model, whichever.

    Raises:
        ValueError: a file holds none, is of another model, or has other figures of a benchmark than a file before it.
    """
    pairs: dict[str, dict[str, Any]] = {}
    places: dict[str, Path] = {}
    evaluated = None if checkpoint is None else str(checkpoint)
    for file in map(results_file, paths):
        content = read_results(file)
        of_file = {**content.get("pairs", {}), **content.get("averages", {})}
        if not of_file:
            raise ValueError(
                f"results: {file} holds no result in both modalities. Give results files of an evaluation with "
                "--modality both."
            )
        evaluated = content.get("model_name") if evaluated is None else evaluated
        if content.get("model_name") is not None and not _is_of(content, str(evaluated)):
            raise ValueError(
                f"results: {file} is of {content['model_name']}, and the card of {evaluated}: it would show another "
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
    results = results or {}
    base = str(facts.get("base_model") or "unknown base model")
    on_hub = _is_hub_id(base)
    base_name = base if on_hub else Path(base).name  # a folder's path says nothing to others
    if adapter:
        revision = str(facts["base_revision"]) if on_hub and facts.get("base_revision") else None
        loading = [
            *architecture.card_loading(base_name, revision),
            f"model = PeftModel.from_pretrained(model, {name!r})",
        ]
    else:
        loading = architecture.card_loading(name)
    code = "\n".join(loading)
    settings, _ = telling_settings(facts.get("settings") or {})
    trained_by = facts.get("trainer", "TARSGRPOTrainer")
    card = ModelCard.from_template(
        _model_metadata(name, base if on_hub else None, adapter, METHOD_TAGS.get(trained_by, []), results, license),
        template_path=str(HERE / "model_card.md.jinja"),
        name=_plain(name.split("/")[-1]),
        what="A LoRA adapter" if adapter else "A version",
        base=f"[{_plain(base)}](https://huggingface.co/{base})" if on_hub else _code(base_name),
        base_name=_plain(base_name),
        paper=PAPER,
        trained_by=trained_by,
        adapter=adapter,
        uses_peft=", ".join(name for name in ("LoraConfig", "PeftModel") if name in code),
        class_name=architecture.class_name,
        local_base=ascii(base_name) if adapter and not on_hub else None,
        loading=code,
        repository=repr(name),
        system_prompt=repr(facts["system_prompt"]) if isinstance(facts.get("system_prompt"), str) else None,
        card_audio=architecture.card_audio,
        card_template=architecture.card_template,
        results=[_result_row(benchmark, pair) for benchmark, pair in results.items()],
        data=_plain(_data(facts)),
        hardware=_plain(_hardware(facts)),
        verification=_verification(verification),
        settings=[(_code(key), _code(value)) for key, value in settings.items()],
        commit=_code(facts["git_hash"]) if facts.get("git_hash") else None,
        versions=_plain(", ".join(f"{key} {value}" for key, value in (facts.get("package_versions") or {}).items()))
        or "unknown packages",
        command=_block(facts.get("command") or "unknown"),
        license=_plain(license) if license else None,
    )
    card.save(Path(folder) / "README.md")


def _model_metadata(
    name: str,
    base: str | None,
    adapter: bool,
    method: list[str],
    results: Mapping[str, Mapping[str, Any]],
    license: str | None,
) -> ModelCardData:
    return ModelCardData(
        model_name=_one_line(name.split("/")[-1]),
        base_model=base,
        library_name="peft" if adapter else "transformers",
        license=_one_line(license or "other"),
        license_name=None if license else "base-model",
        license_link=None if license or base is None else f"https://huggingface.co/{base}",
        language="en",
        tags=[*method, "tars-trl", "trl", "speech", "audio", "speech-llm"],
        pipeline_tag="audio-text-to-text",
        eval_results=_evaluations(results) or None,
    )


def _evaluations(results: Mapping[str, Mapping[str, Any]]) -> list[EvalResult]:
    """`model-index` entries; percentages."""
    entries = []
    for name, pair in results.items():
        values = [
            ("accuracy", "accuracy, spoken", 100 * pair["speech_accuracy"]),
            ("accuracy", "accuracy, written", 100 * pair["text_accuracy"]),
            ("gap", "written minus spoken accuracy", 100 * pair["gap"]),
        ]
        rates = (("recovery", "spoken over own written accuracy"), ("mrr", "modality recovery rate"))
        values += [(rate, label, pair[rate]) for rate, label in rates if pair.get(rate) is not None]
        for kind, label, value in values:
            entry = EvalResult(
                task_type="question-answering",
                task_name="Spoken question answering",
                dataset_type=re.sub(r"\W+", "-", name.lower()),
                dataset_name=_one_line(name),
                metric_type=kind,
                metric_name=label,
                metric_value=round(value, 2),
            )
            entries.append(entry)
    return entries


def _result_row(name: str, pair: Mapping[str, Any]) -> list[str]:
    cells = [_with_interval(pair, key, 100) for key in ("speech_accuracy", "text_accuracy", "gap")]
    recovery, mrr = (_with_interval(pair, key, 1) if pair.get(key) is not None else "" for key in ("recovery", "mrr"))
    if mrr:
        mrr += f", of {pair['reference_accuracy']:.2f}"
    return [_plain(name), _plain(pair["questions"]), *cells, recovery, mrr]


def _with_interval(pair: Mapping[str, Any], key: str, scale: float) -> str:
    interval = pair.get(f"{key.removesuffix('_accuracy')}_interval")
    value = f"{scale * pair[key]:.1f}"
    return value if not interval else f"{value} [{scale * interval[0]:.1f}, {scale * interval[1]:.1f}]"


def _data(facts: Mapping[str, Any]) -> str:
    if "questions" not in facts:
        return "unknown"
    source = facts.get("dataset") or ", ".join(facts.get("data", [])) or "named in the command below"
    return f"{facts['questions']:,} questions, spoken and written ({source})"


def _hardware(facts: Mapping[str, Any]) -> str:
    if "processes" not in facts:
        return "unknown"
    device = facts["processor"] if facts["device_name"] == "cpu" else facts["device_name"]
    seconds = facts.get("seconds")
    time = "no end yet"
    if seconds:
        time = f"{seconds / 3600:.1f} hours" if seconds >= 3600 else f"{seconds:.0f} s"
    return f"{facts['processes']} x {device}, {facts['steps']} steps, {time}"


def _verification(verification: Mapping[str, float] | None) -> str:
    if verification is None:
        return "no"
    return (
        "a fresh process gives the trained model's greedy answers to a spoken and a written question; largest logit "
        f"difference {verification['logits']:.1g} of their spread ({verification['tolerance']:g} allowed)"
    )


# ---- The card of a data set ----------------------------------------------------------------------------------------


def write_dataset_card(folder: str | Path, facts: Mapping[str, Any]) -> Path:
    """Write `README.md` with what was kept, dropped and why, and how it was made.

    Args:
        folder: of the data set.
        facts: `source` (where the written questions come from), `counts` (by split: `questions`, `kept`, `dropped` by
            reason; once spoken also `seconds`, `tts_wer` and `voices`, questions by voice), `license` (of the
            questions, or None), `asr` (the recogniser's name, or None), `max_wer` and `augment` (shares), `tries`,
            `codec`, `seed`, and `push_to` (the repository, or None).
    """
    folder, counts = Path(folder), facts["counts"]
    written = [_one_line(split) for split in counts if counts[split]["kept"]]
    splits = [{"split": split, "path": f"data/{split}-*.parquet"} for split in written]
    spoken = [
        (_plain(split), ", ".join(f"{_plain(voice)} ({number})" for voice, number in sorted(voices.items())))
        for split, voices in ((split, count.get("voices") or {}) for split, count in counts.items())
    ]
    card = DatasetCard.from_template(
        DatasetCardData(
            license=_one_line(facts["license"]) if facts.get("license") else None,
            language=["en"],
            task_categories=["question-answering", "automatic-speech-recognition"],
            tags=["audio", "speech", "synthetic", "multiple-choice", "tars-trl"],
            configs=[{"config_name": "default", "data_files": splits}],
        ),
        template_path=str(HERE / "dataset_card.md.jinja"),
        name=_plain(folder.name),
        source=_plain(facts["source"]),
        counts=count_table(counts),
        spoken=[(split, voices or "not spoken") for split, voices in spoken],
        asr=_plain(facts["asr"]) if facts.get("asr") else None,
        max_wer=f"{100 * facts['max_wer']:g}",
        tries=_plain(facts["tries"]),
        augment=f"{100 * facts['augment']:g}" if facts.get("augment") else None,
        codec=_plain(facts["codec"]),
        repository=repr(facts.get("push_to") or folder.name),
        seed=_plain(facts["seed"]),
    )
    card.save(folder / "README.md")
    return folder / "README.md"


def count_table(counts: Mapping[str, Mapping[str, Any]]) -> str:
    """What a build kept and dropped, as a Markdown table."""
    lines = ["| split | questions | kept | hours | mean word error rate | dropped |", "|---|---|---|---|---|---|"]
    for split, count in counts.items():
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
    fence = "`" * (_longest_run(text) + 1)
    space = " " if text[:1] == "`" or text[-1:] == "`" or not text.strip() else ""
    return f"{fence}{space}{text}{space}{fence}"


def _block(value: Any) -> str:
    """A block of one line of code, which is shown and not meant to be run."""
    text = _one_line(value)
    fence = "`" * max(3, _longest_run(text) + 1)
    return f"{fence}text\n{text}\n{fence}"


def _one_line(value: Any) -> str:
    return "".join(c if c.isprintable() else " " if c in "\n\r\t" else "�" for c in str(value))


def _longest_run(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)


def _is_hub_id(name: str) -> bool:
    return re.fullmatch(r"[\w.-]+/[\w.-]+", name, re.ASCII) is not None and not Path(name).exists()
