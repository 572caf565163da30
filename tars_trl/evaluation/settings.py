"""What `recipes/evaluate.py` may be told, on its command line or in a YAML file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .tasks import ALL_MODALITIES, task_named

EXTRACTORS = ("strict", "voicebench", "xfinder")


def _setting(default: Any, help: str) -> Any:
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": help})
    return field(default=default, metadata={"help": help})


@dataclass
class EvaluationSettings:
    """Settings of an evaluation. Names follow lm-evaluation-harness where it has them.

    Raises:
        ValueError: a value that cannot work; the message says what was given, why it fails and what to do.
    """

    model: str | None = _setting(None, "Hub id or folder of a speech LLM, or of an adapter that names its base model.")
    adapter: str | None = _setting(None, "Hub id or folder of a LoRA adapter for `model`.")
    revision: str | None = _setting(
        None, "Of the base model on the hub. None: the adapter's run's own, else main (Phi-4: refs/pr/70)."
    )
    dtype: str = _setting("auto", "auto (as saved; float32 on a CPU), float32, bfloat16 or float16.")
    use_cpu: bool = _setting(False, "Run on the CPU although there is a GPU.")

    tasks: list[str] = _setting([], "Names, comma separated; NAME=FOLDER for a local copy; or paths of questions.")
    modality: list[str] = _setting(["both"], "speech, text, both, cascade, self_cascade; comma separated.")
    split: list[str] = _setting(
        [], "Splits to read, comma separated. None: the tasks' own; of a path test, or its only one."
    )
    limit: float | None = _setting(None, "Questions a task, drawn with `seed`; below 1 a share of them. None: all.")
    seed: int = _setting(0, "Of the draw, of sampling, of guesses and of bootstrap intervals.")

    batch_size: int = _setting(8, "Questions in a forward pass, per process.")
    max_new_tokens: int = _setting(1024, "Most tokens of a completion (paper: 1024).")
    temperature: float = _setting(0.0, "0 is greedy decoding; above, completions are sampled.")
    top_p: float = _setting(1.0, "Nucleus of sampling.")
    top_k: int = _setting(0, "Tokens to sample from; 0 for all.")
    repetition_penalty: float = _setting(1.0, "1 for none.")
    system_prompt: str | None = _setting(None, "Instead of the tasks' own; an empty text for none.")
    instruction: str | None = _setting(None, "Written text after the question, the same in all modalities.")
    max_audio_seconds: float | None = _setting(None, "Longer clips are refused. None for no limit.")
    on_bad_audio: str = _setting("refuse", "`refuse` to start with unusable clips, or `skip` and count them.")

    transcripts: str | None = _setting(
        None, "cascade: file of transcripts, lines {key, transcript} or one {key: text}."
    )
    asr_model: str | None = _setting(None, "cascade: hub id or folder of a transformers speech recognition model.")

    extractors: list[str] = _setting(["strict"], "strict, voicebench, xfinder; the first one gives `acc,none`.")
    xfinder_model: str = _setting("IAAR-Shanghai/xFinder-qwen1505", "Hub id or folder of the xfinder extractor.")
    voicebench_guess: bool = _setting(False, "voicebench: guess, from the seed, where nothing is found, as it does.")
    reference_accuracy: float | None = _setting(
        None,
        "Denominator of the MRR in percent. Of several tasks that of their average alone (77.70 for Qwen2.5-Omni on "
        "MMSU and OpenBookQA is one), each task's MRR being of its own text accuracy. None: own text accuracy.",
    )

    output_path: str = _setting("results", "Folder of the result files.")
    log_samples: bool = _setting(False, "Write the samples files too.")
    predict_only: bool = _setting(False, "Only complete and write the samples; score nothing.")
    overwrite: bool = _setting(False, "Repeat what is finished already.")
    compare: list[str] = _setting([], "Two results files or folders to compare, instead of running anything.")

    def __post_init__(self) -> None:
        for name in ("tasks", "modality", "split", "extractors", "compare"):
            setattr(self, name, _listed(name, getattr(self, name)))
        self._check_numbers()
        if self.compare:
            if len(self.compare) != 2:
                raise ValueError(f"compare={self.compare}: a comparison is between two. Give two files or folders.")
            return
        self._check_choices()
        for name in ("model", "tasks"):
            if not getattr(self, name):
                raise ValueError(f"{name} is not given: nothing to evaluate. Pass --{name}, or --compare A B.")
        for name in self.tasks:
            self._check_modalities(name)
        if "cascade" in self.modalities and (self.transcripts is None) == (self.asr_model is None):
            given = f"transcripts={self.transcripts!r} with asr_model={self.asr_model!r}"
            raise ValueError(f"{given}: modality cascade takes its transcripts from exactly one of them. Give one.")

    @property
    def modalities(self) -> list[str]:
        """The modalities to run, `both` spelled out, in the order they were asked for."""
        spelled = [part for name in self.modality for part in (("speech", "text") if name == "both" else (name,))]
        return list(dict.fromkeys(spelled))

    @property
    def generation(self) -> dict[str, Any]:
        """Decoding settings as `GenerationConfig` takes them."""
        settings = {"do_sample": self.temperature > 0, "repetition_penalty": self.repetition_penalty}
        if self.temperature > 0:
            settings |= {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}
        return settings

    def _check_numbers(self) -> None:
        for name, least in (("batch_size", 1), ("max_new_tokens", 1), ("top_k", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name}={value!r} is not a whole number of {least} or more. Give one.")
        for name, low, high in (
            ("temperature", 0.0, float("inf")),
            ("top_p", 1e-9, 1.0),
            ("repetition_penalty", 1e-9, float("inf")),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
                raise ValueError(f"{name}={value!r} is outside {low:g} to {high:g}. Give a number within.")
        for name in ("limit", "reference_accuracy", "max_audio_seconds"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int | float) or not value > 0):
                raise ValueError(f"{name}={value!r} is not above 0. Give a number above 0, or leave it out.")
        if self.limit is not None and self.limit >= 1 and self.limit != int(self.limit):
            raise ValueError(f"limit={self.limit} is neither a share below 1 nor a whole number. Give one of them.")
        if self.reference_accuracy is not None and not 1 < self.reference_accuracy <= 100:
            raise ValueError(
                f"reference_accuracy={self.reference_accuracy}: it is an accuracy in percent. Give 77.70, not 0.777."
            )

    def _check_choices(self) -> None:
        choices: dict[str, tuple[str, ...]] = {
            "modality": ("both", *ALL_MODALITIES),
            "extractors": EXTRACTORS,
            "dtype": ("auto", "float32", "bfloat16", "float16"),
            "on_bad_audio": ("refuse", "skip"),
        }
        for name, allowed in choices.items():
            given = getattr(self, name)
            for value in given if isinstance(given, list) else [given]:
                if value not in allowed:
                    raise ValueError(f"{name}={value!r} is not a choice. Use one of {', '.join(allowed)}.")
        if not self.extractors or not self.modality:
            raise ValueError("extractors or modality is empty: nothing could be scored. Name at least one of each.")

    def _check_modalities(self, name: str) -> None:
        task, _ = task_named(name)
        missing = [modality for modality in self.modalities if modality not in task.modalities]
        if missing:
            raise ValueError(
                f"tasks={name!r} with modality={missing}: this task has {', '.join(task.modalities)} only, since what "
                "it asks about is the recording. Run it by itself with --modality speech."
            )


def _listed(name: str, value: Any) -> list[str]:
    """A list of names from a list, or from comma separated texts."""
    texts = value.split(",") if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{name}={value!r} is no list of texts. Give names separated by commas, or a YAML list.")
    return [part.strip() for text in texts for part in text.split(",") if part.strip()]
