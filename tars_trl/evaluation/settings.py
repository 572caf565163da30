"""What an evaluation may be told, on the command line of `tars-trl evaluate` or in a YAML file."""

from dataclasses import dataclass

from ..errors import SettingError
from ..settings import AskedModelSettings, AudioSettings, BackendSettings, DecodingSettings, setting
from .tasks import MODALITIES, Task, task_named


@dataclass
class EvaluationSettings(AskedModelSettings, BackendSettings, DecodingSettings, AudioSettings):
    """Settings of an evaluation. Names follow lm-evaluation-harness where the package has none for the same thing.

    Raises:
        SettingError: a value that cannot work; the message says what was given, why it fails and what to do.
    """

    model: str | None = setting(None, "Speech LLM, or an adapter that names its base model: hub id or folder.")
    tasks: list[str] = setting(
        [],
        "What to measure, comma separated: names (`list` prints them), NAME=SOURCE for a task's rows from a folder or "
        "another hub id (ID@REVISION for one commit), paths of your own questions, or NAME=PATH.",
    )
    modality: list[str] = setting(
        ["both"],
        "How questions are asked, comma separated. both: speech and text. cascade: in writing, from transcripts. "
        "self_cascade: the model transcribes, then answers.",
        choices=("both", *MODALITIES),
    )
    split: list[str] = setting(
        [], "Splits to read, comma separated. None: the tasks' own; of a path test, or the only one it has."
    )
    domain: str | None = setting(None, "Column by which figures of your own questions (paths) are broken down.")
    limit: float | None = setting(
        None,
        "Use this many questions of a task only, drawn with `seed`; a number below 1 is a share of them. None: all.",
        above=0,
    )
    system_prompt: str | None = setting(
        None, "System prompt, the same in all modalities. None: the tasks' own; '': none."
    )
    instruction: str | None = setting(None, "Text that is written after the question, the same in all modalities.")
    max_audio_seconds: float | None = setting(  # type: ignore[assignment]  # benchmarks are asked as they are
        None, "Longest clip, in seconds; a longer one is refused before anything runs. None: no limit.", above=0
    )

    transcripts: str | None = setting(
        None, "File of transcripts for `cascade`: lines {key, transcript}, or one object {key: transcript}."
    )
    asr_model: str | None = setting(None, "Speech recognition model of transformers for `cascade`: hub id or folder.")

    extractors: list[str] = setting(
        ["strict"],
        "What reads choices out of completions, comma separated; the first one decides `acc,none`.",
        choices=("strict", "voicebench", "xfinder"),
    )
    xfinder_model: str = setting("IAAR-Shanghai/xFinder-qwen1505", "Model of the extractor xfinder: hub id or folder.")
    voicebench_guess: bool = setting(
        False, "Let the extractor voicebench guess, from the seed, where it finds nothing, as VoiceBench does."
    )
    reference_accuracy: float | None = setting(
        None,
        "Text accuracy of the untrained base model in percent, the denominator of the MRR. Of several tasks it is that "
        "of their average (77.70 on MMSU and OpenBookQA for the paper's 7B model) and gives the average's MRR alone.",
        above=1,
        most=100,
    )

    output_dir: str = setting("results", "Folder of the result files; each model has its own folder there.")
    log_samples: bool = setting(False, "Write the samples files too: every question with its completion and scores.")
    predict_only: bool = setting(False, "Only complete, and write the samples; score nothing.")
    overwrite: bool = setting(False, "Complete and score again what is finished already.")
    compare: list[str] = setting([], "Two results files or folders to compare, instead of asking a model anything.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.compare and len(self.compare) != 2:
            raise SettingError(f"compare={self.compare}: a comparison is between two. Give two files or folders.")
        if self.compare or self.tasks == ["list"]:
            return
        for name in ("model", "tasks"):
            if not getattr(self, name):
                raise SettingError(f"{name} is not given: nothing to evaluate. Pass --{name}, or --compare A B.")
        if not self.extractors or not self.modality:
            raise SettingError("extractors or modality is empty: nothing could be scored. Name at least one of each.")
        if self.limit is not None and self.limit >= 1 and self.limit != int(self.limit):
            raise SettingError(f"limit={self.limit} is neither a share below 1 nor a whole number. Give one of them.")
        for task in self.named_tasks():
            missing = [modality for modality in self.modalities if modality not in task.modalities]
            if missing:
                raise SettingError(
                    f"tasks={task.name!r} with modality={missing}: this task has {', '.join(task.modalities)} only, "
                    "since what it asks about is the recording. Run it by itself with --modality speech."
                )
        if "cascade" in self.modalities and (self.transcripts is None) == (self.asr_model is None):
            given = f"transcripts={self.transcripts!r} with asr_model={self.asr_model!r}"
            raise SettingError(f"{given}: modality cascade takes its transcripts from exactly one of them. Give one.")

    def named_tasks(self) -> list[Task]:
        """The tasks that `tasks` names, each one's data still unread."""
        tasks = [task_named(text, self.domain) for text in self.tasks]
        names = [task.name for task in tasks]
        if len(set(names)) != len(names):
            raise SettingError(
                f"tasks={self.tasks}: two of them would both be called and written as one of {sorted(set(names))}. "
                "Name them apart (NAME=PATH), or evaluate them one by one."
            )
        return tasks

    @property
    def modalities(self) -> list[str]:
        """The modalities to run, `both` spelled out, in the order they were asked for."""
        spelled = [part for name in self.modality for part in (("speech", "text") if name == "both" else (name,))]
        return list(dict.fromkeys(spelled))
