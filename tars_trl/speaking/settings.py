"""What `tars-trl build-dataset` may be told, on its command line or in a YAML file."""

import json
import math
import random
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import SettingError
from ..settings import QuestionSettings, setting
from .clips import CODECS, Augmentation
from .speakable import MAX_CHARACTERS
from .voices import BODY, LOCAL_ENGINES, Engine, HttpEngine, Kokoro, split_voice

# What may change between two starts of one build: nothing that is in a row depends on it.
FREE = (
    *("stage", "output_dir", "processes", "asr_device", "license", "push_to", "public", "overwrite"),
    *("http_rate", "http_timeout", "http_max_megabytes", "http_tries", "http_token_variable"),
)
TEXT = (
    *("dataset", "subset", "dataset_revision", "split", "held_out_split", "held_out_share", "guard", "column_map"),
    *("keep_columns", "limit", "seed", "system_prompt", "instruction", "max_characters", "duplicate_threshold"),
)
"""What decides which questions are spoken."""


@dataclass
class BuildSettings(QuestionSettings):
    """Settings of a build, from written questions to a spoken data set.

    Raises:
        SettingError: a value that cannot work.
        VoiceError: a voice whose name does not say engine and voice.
    """

    subset: str | None = setting(None, "Configuration of the data set, if it has several.")
    dataset_revision: str | None = setting(None, "Commit, tag or branch of the data set on the hub.")
    held_out_split: str | None = setting(None, "Split that becomes the test set.")
    held_out_share: float = setting(0.0, "Or: share of the questions that is drawn for it.", least=0, most=0.99)
    guard: list[str] = setting([], "Further data sets (ID or ID@SPLIT) whose questions must not be trained on.")
    column_map: list[str] = setting([], "Columns under other names, theirs=ours; as choices.text=options (a field).")
    keep_columns: list[str] = setting([], "Further columns to keep, such as category.")
    seed: int = setting(0, "Of draws, voices, paces and augmentation, together with a question's key.", least=0)
    instruction: str | None = setting(None, "Text that stays written in both twins.")

    max_characters: int = setting(MAX_CHARACTERS, "Longest question with options (released scripts: 2,000).", least=1)
    duplicate_threshold: float = setting(
        0.5, "Likeness to a held-out question at which one is not trained on; 1: only the same.", above=0, most=1
    )

    voices: list[str] = setting([], "engine:voice, such as flite:slt hibari:heart (see tars_trl/speaking/voices.py).")
    held_out_voices: float = setting(0.0, "Share of the voices that speak test questions alone.", least=0, most=0.99)
    pace: list[float] = setting([0.9, 1.1], "Slowest and fastest speech, drawn evenly; 1: the voice's own.", above=0)
    tries: int = setting(3, "Tries of one question, each with the next voice, before it is dropped.", least=1)
    kokoro_folder: str = setting("", "Folder with the files of the voices kokoro:….")
    http_url: str | None = setting(None, "Address of the server of the voices http:….")
    http_body: str = setting(json.dumps(BODY), "JSON that the server gets; {text}, {voice} and {pace} are filled in.")
    http_rate: float | None = setting(None, "Most requests a second of all processes; None for no limit.", above=0)
    http_timeout: float = setting(120.0, "Seconds for one request, with its whole answer.", above=0)
    http_max_megabytes: float = setting(50.0, "Largest answer, in megabytes.", above=0)
    http_tries: int = setting(5, "Requests for one text before the run ends.", least=1)
    http_token_variable: str | None = setting(None, "Environment variable with the server's token.")

    asr: str | None = setting(
        None, "Recogniser: transformers:MODEL or faster-whisper:FOLDER. None keeps what nobody has listened to."
    )
    asr_device: str = setting("cpu", "Where the recogniser runs, such as cpu or cuda:0.")
    max_wer: float = setting(0.10, "Highest word error rate of a clip (paper: 10 % with whisper-medium).", least=0)
    min_audio_seconds: float = setting(0.5, "Shortest clip, in seconds; shorter ones are dropped.", above=0)
    max_audio_seconds: float = setting(30.0, "Longest clip, in seconds; longer ones are dropped, never cut.", above=0)
    augment: float = setting(
        0.0, "Share of clips with noise, another speed or a room; the recogniser hears them so.", least=0, most=1
    )
    snr_db: list[float] = setting([10.0, 30.0], "Lowest and highest signal-to-noise ratio of such noise, in decibels.")

    codec: str = setting("opus", "Codec of the clips.", choices=tuple(CODECS))
    shard_size: int = setting(500, "Questions in a parquet file, before any is dropped.", least=1)
    processes: int = setting(1, "Processes that speak side by side.", least=1)
    output_dir: str | None = setting(None, "Folder of the data set; what began there is continued.", required=True)
    stage: str = setting("all", "One, or all in this order.", choices=("all", "text", "speech", "card"))
    license: str | None = setting(None, "Licence of the written questions, for the card; such as apache-2.0.")
    push_to: str | None = setting(None, "Data set id on the hub; nothing is uploaded without it.")
    public: bool = setting(False, "Upload to a public repository instead of a private one.")
    overwrite: bool = setting(False, "Upload although the repository holds other files, which are lost.")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("pace", "snr_db"):
            bounds = getattr(self, name)
            if len(bounds) != 2 or not bounds[0] <= bounds[1]:
                raise SettingError(f"{name}={bounds!r} is not a lowest and a highest value. Give two, such as 0.9 1.1.")
        if self.min_audio_seconds > self.max_audio_seconds:
            raise SettingError(
                f"min_audio_seconds={self.min_audio_seconds} and max_audio_seconds={self.max_audio_seconds}: no clip "
                "could be kept. Give a larger max_audio_seconds."
            )
        if self.held_out_split is not None and self.held_out_share:
            raise SettingError(
                f"held_out_split={self.held_out_split!r} and held_out_share={self.held_out_share} both make the test "
                "set. Give one of them."
            )
        if self.held_out_split == self.split:
            raise SettingError(
                f"split and held_out_split are both {self.split!r}: the test set would be trained on. Name another."
            )
        bad = [entry for entry in self.column_map if not all(entry.partition("="))]
        if bad:
            raise SettingError(f"column_map: {bad} do not say which column is which. Write theirs=ours.")
        if not self.voices and self.stage in ("all", "speech"):
            raise SettingError("voices is empty, so nobody speaks. Pass --voices, such as flite:slt hibari:heart.")
        if len(set(self.voices)) < len(self.voices):
            raise SettingError(f"voices={self.voices}: one is named twice. Name each once.")
        names = {split_voice(voice)[0] for voice in self.voices}
        if "http" in names and not self.http_url:
            raise SettingError("A voice is http:…, and http_url is not given. Pass the server's address as --http_url.")
        if self.held_out_voices and len(self.voices) < 2:
            raise SettingError(
                f"held_out_voices={self.held_out_voices} of {len(self.voices)} voices leaves none for training. Name "
                "more voices, or set held_out_voices to 0."
            )
        try:
            body = json.loads(self.http_body)
        except json.JSONDecodeError as error:
            raise SettingError(
                f"http_body={self.http_body!r} is not JSON ({error}). Write an object such as {json.dumps(BODY)}."
            ) from error
        if not isinstance(body, dict) or "{text}" not in self.http_body:
            raise SettingError(
                f"http_body={self.http_body!r} is no object with {{text}} in it: the server would not know what to "
                f"say. Write one such as {json.dumps(BODY)}."
            )

    @property
    def columns(self) -> dict[str, str]:
        """`column_map` as {theirs: ours}."""
        return {theirs: ours for theirs, _, ours in (entry.partition("=") for entry in self.column_map)}

    @property
    def augmentation(self) -> Augmentation:
        return Augmentation(share=self.augment, snr_db=(self.snr_db[0], self.snr_db[1]))

    def fixed(self, stage: str) -> dict[str, Any]:
        """The settings that the outcome of a stage depends on: it is continued with the same ones only."""
        values = {name: value for name, value in asdict(self).items() if name not in FREE}
        return {name: value for name, value in values.items() if stage == "speech" or name in TEXT}

    def voices_of(self, split: str) -> list[str]:
        """The voices that speak `train` or `test`: drawn by seed, none in both if some are held out."""
        if not self.held_out_voices:
            return list(self.voices)
        drawn = sorted(self.voices, key=lambda voice: random.Random(f"{self.seed}/{voice}").random())
        held_out = set(drawn[: min(len(drawn) - 1, math.ceil(self.held_out_voices * len(drawn)))])
        return [voice for voice in self.voices if (voice in held_out) == (split == "test")]

    def engines(self) -> dict[str, Engine]:
        engines: dict[str, Engine] = {**LOCAL_ENGINES, "kokoro": Kokoro(self.kokoro_folder)}
        if self.http_url:
            engines["http"] = HttpEngine(
                self.http_url,
                json.loads(self.http_body),
                timeout=self.http_timeout,
                max_megabytes=self.http_max_megabytes,
                tries=self.http_tries,
                requests_per_second=None if self.http_rate is None else self.http_rate / self.processes,
                token_variable=self.http_token_variable,
            )
        return engines
