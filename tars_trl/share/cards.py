"""The card of a trained model: what it is, how to ask it something aloud, how well it does, and how it was made."""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..models.loading import identity
from ..record import run_record

PAPER = "https://arxiv.org/abs/2601.05543"

TEMPLATE = """\
---
{metadata}
---

# {name}

{what} of {base_link}, trained with **TARS** so that it reasons about a spoken question as it does about a written one.
Every question is asked twice, aloud and in writing; the spoken completions are rewarded for thinking (hidden states)
and answering (meaning) like a correct written one. Method: [Closing the Modality Reasoning Gap for Speech Large
Language Models]({paper}) (ACL 2026); trained with `tars-trl`, a GRPO trainer on top of TRL.

## Ask it something

```bash
pip install {packages}
```

```python
{quick_start}```

## Results

{results}

## Training

- Data: {data}
- Hardware and time: {hardware}
- Checked on export: {verification}

| setting | value |
|---|---|
{settings}

Command{commit}:

```bash
{command}
```

Packages: {versions}.

## Limitations

- The training rewards multiple-choice answers. Open questions, other languages, noisy or accented speech and long
  recordings were not trained for and may not have become better.
- Chains of thought are rewarded for their form and for resembling the written ones, not for being right.
- Figures hold for the prompt, decoding and answer extraction of the result files; they are no measure of safety.
- What the base model gets wrong or should not be used for applies here too.

## Licence and citation

{licence_text}

```bibtex
@inproceedings{{tars2026,
  title     = {{Closing the Modality Reasoning Gap for Speech Large Language Models}},
  booktitle = {{Proceedings of ACL}},
  year      = {{2026}},
  url       = {{{paper}}}
}}
```
"""

LOAD_WHOLE = """\
model = {class_name}.from_pretrained("{repo}", dtype="auto", device_map="auto")
processor = AutoProcessor.from_pretrained("{repo}")
"""
LOAD_ADAPTER = """\
model, processor = load_speech_llm("{base}", "{repo}"{revision})
"""
QUICK_START = """\
{imports}

{load}
waveform, rate = soundfile.read("question.wav", dtype="float32")  # one channel
waveform = resample(torch.from_numpy(waveform), rate, 16_000).numpy()
conversation = [{system}
    {{"role": "user", "content": {audio}}},
]
text = {chat}.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
inputs = processor(text=text, audio=[waveform], return_tensors="pt").to(model.device, model.dtype)
answer = model.generate(**inputs, max_new_tokens=1024, do_sample=False)
print(processor.batch_decode(answer[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0])
"""


def write_run(trainer: Any) -> None:
    """`run.json` and a card (README.md) in the output folder: what the trainer writes in place of TRL's card."""
    folder = Path(trainer.args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    facts = run_record(trainer)
    (folder / "run.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    name = trainer.hub_model_id or folder.resolve().name
    write_card(folder, facts, name, "adapter" if facts["adapter"] else "merged")


def read_pairs(files: Sequence[str | Path], checkpoint: str | Path | None = None) -> dict[str, dict[str, Any]]:
    """Paired results (both modalities of the same questions) of result files, by benchmark.

    Args:
        files: of `recipes/evaluate.py`, which name the model that was evaluated, an adapter by its own name and not its
            base's; or any JSON with paired results, which is taken as it is.
        checkpoint: the model that the results have to be of; None for one model, whichever.

    Raises:
        ValueError: a file holds none, is of another model, or has other figures of a benchmark than a file before it.
    """
    pairs: dict[str, dict[str, Any]] = {}
    places: dict[str, str | Path] = {}
    evaluated = None if checkpoint is None else str(checkpoint)
    for file in files:
        content = json.loads(Path(file).read_text(encoding="utf-8"))
        found = dict(_paired(content, Path(file).stem))
        if not found:
            raise ValueError(
                f"results: {file} holds no result in both modalities (speech_accuracy and text_accuracy). "
                "Give result files of an evaluation with --modality both."
            )
        name = content.get("model_name")
        evaluated = name if evaluated is None else evaluated
        if name is not None and evaluated is not None and not _is_of(content, evaluated):
            raise ValueError(
                f"results: {file} is of {name}, and the card of {evaluated}: it would show another model's figures. "
                "Give the result files of that one model."
            )
        for benchmark, pair in found.items():
            if pairs.get(benchmark, pair) != pair:
                raise ValueError(
                    f"results: {places[benchmark]} and {file} have different figures of {benchmark}, and a card shows "
                    "one. Give one file for each benchmark."
                )
            places[benchmark] = file
        pairs |= found
    return pairs


def _is_of(content: dict[str, Any], model: str) -> bool:
    """Whether a results file is of `model`: by the name it was evaluated under, or, where that differs, by weights."""
    if content["model_name"] == model or Path(content["model_name"]).resolve() == Path(model).resolve():
        return True
    return Path(model).is_dir() and identity(model) in (content.get("hashes") or {}).values()


def _paired(value: Any, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(value, dict):
        if {"speech_accuracy", "text_accuracy", "gap", "questions"} <= value.keys():
            yield name, value
            return
        for key, inner in value.items():
            yield from _paired(inner, str(key))


# ---- The card -------------------------------------------------------------------------------------------------------


def write_card(
    folder: str | Path,
    facts: dict[str, Any],
    name: str,
    kind: str,
    *,
    results: dict[str, dict[str, Any]] | None = None,
    licence: str | None = None,
    verification: dict[str, float] | None = None,
) -> None:
    """Write README.md into `folder`.

    Args:
        facts: from `run_record` or a `run.json`; what is missing is said to be unknown.
        name: repository (`user/name`), which the quick start loads; a bare name or folder if it is not pushed.
        kind: one of `tars_trl.share.export.FORMATS`.
        results: from `read_pairs`.
        licence: identifier of the hub, such as mit; None for the base model's.
        verification: what `tars_trl.share.verify.verify_folder` returned.
    """
    text = card_text(facts, name, kind, results=results or {}, licence=licence, verification=verification)
    ModelCard(text).save(Path(folder) / "README.md")


def card_text(
    facts: dict[str, Any],
    name: str,
    kind: str,
    *,
    results: dict[str, dict[str, Any]],
    licence: str | None,
    verification: dict[str, float] | None,
) -> str:
    """The card as text, metadata included; arguments as in `write_card`."""
    base = facts.get("base_model") or "unknown base model"
    on_hub = re.fullmatch(r"[\w.-]+/[\w.-]+", base) is not None and not Path(base).exists()
    shown = base if on_hub else Path(base).name  # a folder's path says nothing to others
    what = {"adapter": "A LoRA adapter", "merged": "A version", "omni": "A version, with its talker,"}[kind]
    data = ModelCardData(
        model_name=name.split("/")[-1],
        base_model=base if on_hub else None,
        library_name="peft" if kind == "adapter" else "transformers",
        license=licence or "other",
        license_name=None if licence else "base-model",
        license_link=None if licence or not on_hub else f"https://huggingface.co/{base}",
        language="en",
        tags=["tars", "tars-trl", "trl", "grpo", "speech", "audio", "speech-llm"],
        pipeline_tag="audio-text-to-text",
        eval_results=_evaluations(results) or None,
    )
    settings = "\n".join(f"| `{key}` | {value} |" for key, value in facts.get("settings", {}).items())
    versions = ", ".join(f"{key} {value}" for key, value in facts.get("package_versions", {}).items())
    return TEMPLATE.format(
        metadata=data.to_yaml(),
        name=name.split("/")[-1],
        what=what,
        base_link=f"[{base}](https://huggingface.co/{base})" if on_hub else f"`{shown}`",
        paper=PAPER,
        packages="tars-trl" if kind == "adapter" else "transformers accelerate soundfile torchaudio torchvision",
        quick_start=quick_start(facts, name, kind),
        results=_table(results),
        data=_data(facts),
        hardware=_hardware(facts),
        verification=_verification(verification),
        settings=settings or "| unknown | |",
        commit=f" (tars-trl at commit `{facts['git_hash']}`)" if facts.get("git_hash") else "",
        command=facts.get("command", "# unknown"),
        versions=versions or "unknown",
        licence_text=f"Licence: {licence}." if licence else f"The licence of the base model ({shown}) applies.",
    )


def quick_start(facts: dict[str, Any], name: str, kind: str) -> str:
    """Python that asks the model the question in `question.wav`; it runs as it stands."""
    imports = ["import soundfile", "import torch", "from torchaudio.functional import resample"]
    if kind == "adapter":
        imports += ["", "from tars_trl.models.loading import load_speech_llm"]
        revision = f', revision="{facts["base_revision"]}"' if facts.get("base_revision") else ""
        load = LOAD_ADAPTER.format(base=facts.get("base_model"), repo=name, revision=revision)
    else:
        class_name = facts.get("model_class") or "AutoModelForCausalLM"
        imports += [f"from transformers import AutoProcessor, {class_name}"]
        load = LOAD_WHOLE.format(class_name=class_name, repo=name)
    said = json.dumps(facts.get("system_prompt"), ensure_ascii=False)
    system = "" if said == "null" else f'\n    {{"role": "system", "content": {said}}},'
    chat, audio = "processor", '[{"type": "audio"}]'
    if facts.get("model_class") == "Phi4MultimodalForCausalLM":  # see Phi4Multimodal.prompt
        chat, audio = "processor.tokenizer", '"<|audio|>"'
    return QUICK_START.format(imports="\n".join(imports), load=load, system=system, chat=chat, audio=audio)


def _evaluations(results: dict[str, dict[str, Any]]) -> list[EvalResult]:
    """`model-index` entries; percentages."""
    metrics = (("speech_accuracy", "accuracy", "accuracy, spoken"), ("text_accuracy", "accuracy", "accuracy, written"))
    entries = []
    for name, pair in results.items():
        values = [(kind, label, 100 * pair[key]) for key, kind, label in metrics]
        values.append(("gap", "written minus spoken accuracy", 100 * pair["gap"]))
        if pair.get("mrr") is not None:
            values.append(("modality_recovery_rate", "modality recovery rate", pair["mrr"]))
        for kind, label, value in values:
            entry = EvalResult(
                task_type="question-answering",
                task_name="Spoken question answering",
                dataset_type=re.sub(r"\W+", "-", name.lower()),
                dataset_name=name,
                metric_type=kind,
                metric_name=label,
                metric_value=round(value, 2),
            )
            entries.append(entry)
    return entries


def _table(results: dict[str, dict[str, Any]]) -> str:
    if not results:
        return "None were given on export."
    lines = ["| benchmark | questions | spoken, % | written, % | gap, points | MRR, % |", "|---|---|---|---|---|---|"]
    for name, pair in results.items():
        cells = [_with_interval(pair, key, 100) for key in ("speech_accuracy", "text_accuracy", "gap")]
        mrr = "undefined" if pair.get("mrr") is None else _with_interval(pair, "mrr", 1)
        denominator = pair.get("mrr_denominator", "own text accuracy")
        lines.append(f"| {name} | {pair['questions']} | {' | '.join(cells)} | {mrr}, of {denominator} |")
    return "\n".join([*lines, "", "Greedy answers; 95 % intervals in brackets. MRR: spoken over written accuracy."])


def _with_interval(pair: dict[str, Any], key: str, scale: float) -> str:
    interval = pair.get(key.replace("_accuracy", "_interval") if "accuracy" in key else f"{key}_interval")
    value = f"{scale * pair[key]:.1f}"
    return value if not interval else f"{value} [{scale * interval[0]:.1f}, {scale * interval[1]:.1f}]"


def _data(facts: dict[str, Any]) -> str:
    if "questions" not in facts:
        return "unknown"
    named = facts.get("dataset") or ", ".join(facts.get("data", [])) or "named in the command below"
    return f"{facts['questions']:,} questions, spoken and written ({named})"


def _hardware(facts: dict[str, Any]) -> str:
    if "processes" not in facts:
        return "unknown"
    device = facts["processor"] if facts["device_name"] == "cpu" else facts["device_name"]
    seconds = facts.get("seconds")
    time = (
        f"{seconds / 3600:.1f} hours"
        if seconds and seconds >= 3600
        else f"{seconds:.0f} s"
        if seconds
        else "no end yet"
    )
    return f"{facts['processes']} x {device}, {facts['steps']} steps, {time}"


def _verification(verification: dict[str, float] | None) -> str:
    if verification is None:
        return "no"
    return (
        "a fresh process gives the trained model's greedy answers to a spoken and a written question; largest logit "
        f"difference {verification['logits']:.1g} of their spread ({verification['tolerance']:g} allowed)"
    )
