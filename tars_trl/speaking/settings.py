"""What `recipes/build_dataset.py` may be told, on its command line or in a YAML file."""

from __future__ import annotations

import json
import math
import random
from dataclasses import asdict, dataclass, field
from typing import Any

from .clips import CODECS, Augmentation
from .http_voices import BODY, HttpEngine
from .speakable import MAX_CHARACTERS
from .voices import LOCAL_ENGINES, Engine, Kokoro, split_voice

STAGES = ("all", "text", "speech", "card")
# What may change between two starts of one build: nothing that is in a row depends on it.
FREE = (
    *("stage", "output", "processes", "asr_device", "license", "push_to", "public"),
    *("http_rate", "http_timeout", "http_tries", "http_token_variable"),
)
TEXT = (
    *(
        "dataset",
        "name",
        "revision",
        "split",
        "held_out_split",
        "held_out_share",
        "guard",
        "column_map",
        "keep_columns",
    ),
    *("limit", "seed", "system_prompt", "instruction", "max_characters", "duplicate_threshold"),
)
"""What decides which questions are spoken."""


def _setting(default: Any, help: str) -> Any:
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": help})
    return field(default=default, metadata={"help": help})


@dataclass
class BuildSettings:
    """Settings of a build, from written questions to a spoken data set.

    Raises:
        ValueError: a value that cannot work; the message says what was given, why it fails and what to do.
    """

    dataset: str = _setting("", "Written questions: hub id, folder or file.")
    name: str | None = _setting(None, "Configuration, if the data set has several.")
    revision: str | None = _setting(None, "Commit, tag or branch on the hub.")
    split: str = _setting("train", "Split that becomes the training set.")
    held_out_split: str | None = _setting(None, "Split that becomes the test set.")
    held_out_share: float = _setting(0.0, "Or: share of the questions, drawn by seed and key, that becomes it.")
    guard: list[str] = _setting([], "Further data sets (ID or ID@SPLIT) whose questions must not be trained on.")
    column_map: list[str] = _setting([], "theirs=ours, such as choices.text=options (a dot reaches into a column).")
    keep_columns: list[str] = _setting([], "Further columns to keep, such as category.")
    limit: int | None = _setting(None, "This many questions a split, drawn by seed.")
    seed: int = _setting(0, "Of draws, voices, paces and augmentation, together with a question's key.")
    system_prompt: str | None = _setting(None, "System prompt of the rows; None for the method's.")
    instruction: str | None = _setting(None, "Text that stays written in both twins.")

    max_characters: int = _setting(MAX_CHARACTERS, "Longer questions are dropped (released scripts: 2,000).")
    duplicate_threshold: float = _setting(0.5, "Likeness at which a training question counts as held out; 1: same.")

    voices: list[str] = _setting([], "engine:voice, such as flite:slt hibari:heart (see tars_trl/data/engines.py).")
    held_out_voices: float = _setting(0.0, "Share of the voices that speak test questions and no others; 0: all speak.")
    pace: list[float] = _setting([0.9, 1.1], "Slowest and fastest speaking rate, drawn evenly; 1 is the voice's own.")
    tries: int = _setting(3, "Of one question, each with the next voice, before it is dropped.")
    kokoro_folder: str = _setting("", "Files of the voices kokoro:….")
    http_url: str | None = _setting(None, "Server of the voices http:….")
    http_body: str = _setting(json.dumps(BODY), "JSON body; {text}, {voice} and {pace} are filled in.")
    http_rate: float | None = _setting(None, "Requests a second of all processes together; None for no limit.")
    http_timeout: float = _setting(120.0, "Seconds for one request.")
    http_tries: int = _setting(5, "Requests for one text before the run ends.")
    http_token_variable: str | None = _setting(None, "Environment variable with the server's token.")

    asr: str | None = _setting(None, "transformers:MODEL or faster-whisper:FOLDER; None keeps what was not heard.")
    asr_device: str = _setting("cpu", "Where it runs, such as cpu or cuda:0.")
    max_wer: float = _setting(0.10, "Highest word error rate of a clip (paper: 10 % with whisper-medium).")
    min_seconds: float = _setting(0.5, "Shorter clips are dropped.")
    max_seconds: float = _setting(30.0, "Longer clips are dropped; audio is never truncated.")
    augment: float = _setting(0.0, "Share of clips with noise, another speed or a room; heard by the ASR as it is.")
    snr_db: list[float] = _setting([10.0, 30.0], "Lowest and highest signal-to-noise ratio of such noise.")

    codec: str = _setting("opus", f"Of the clips: {', '.join(CODECS)}.")
    shard_size: int = _setting(500, "Questions a parquet file, before any is dropped.")
    processes: int = _setting(1, "That speak side by side.")
    output: str = _setting("", "Folder of the data set. A build that was interrupted is continued there.")
    stage: str = _setting("all", "text, speech, card, or all of them one after the other.")
    license: str | None = _setting(None, "Of the written questions, for the card; such as apache-2.0.")
    push_to: str | None = _setting(None, "Data set id on the hub; nothing is uploaded without it.")
    public: bool = _setting(False, "Upload to a public repository instead of a private one.")

    def __post_init__(self) -> None:
        for name in ("dataset", "output"):
            if not getattr(self, name):
                raise ValueError(f"{name} is not given: there is nothing to build or nowhere to put it. Pass --{name}.")
        if self.stage not in STAGES or self.codec not in CODECS:
            raise ValueError(
                f"stage={self.stage!r}, codec={self.codec!r}: stages are {', '.join(STAGES)}, codecs "
                f"{', '.join(CODECS)}. Use one of each."
            )
        for name in ("tries", "shard_size", "processes", "max_characters", "http_tries"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}={value!r} is not a whole number of 1 or more. Give one.")
        for name in ("held_out_share", "held_out_voices", "augment"):
            share = getattr(self, name)
            if not 0 <= share <= 1 or (share == 1 and name != "augment"):
                raise ValueError(f"{name}={share!r} is not a share. Give a number from 0 to below 1.")
        for name in ("pace", "snr_db"):
            bounds = getattr(self, name)
            if len(bounds) != 2 or not bounds[0] <= bounds[1] or (name == "pace" and bounds[0] <= 0):
                raise ValueError(f"{name}={bounds!r} is not a lowest and a highest value. Give two, such as 0.9 1.1.")
        if not 0 < self.min_seconds <= self.max_seconds or self.max_wer < 0:
            raise ValueError(
                f"min_seconds={self.min_seconds}, max_seconds={self.max_seconds}, max_wer={self.max_wer}: no clip "
                "could be kept. Give min_seconds above 0, max_seconds above it and max_wer of 0 or more."
            )
        if self.held_out_split is not None and self.held_out_share:
            raise ValueError(
                f"held_out_split={self.held_out_split!r} and held_out_share={self.held_out_share} both make the test "
                "set. Give one of them."
            )
        if self.held_out_split == self.split:
            raise ValueError(
                f"split and held_out_split are both {self.split!r}: the test set would be trained on. "
                "Give another, or held_out_share."
            )
        self._check_voices()
        self._check_server()
        bad = [entry for entry in self.column_map if not all(entry.partition("="))]
        if bad:
            raise ValueError(f"column_map: {bad} do not say which column is which. Write theirs=ours.")

    def _check_voices(self) -> None:
        if not self.voices and self.stage in ("all", "speech"):
            raise ValueError("voices is empty, so nobody speaks. Pass --voices, such as flite:slt hibari:heart.")
        if len(set(self.voices)) < len(self.voices):
            raise ValueError(f"voices={self.voices}: one is named twice. Name each once.")
        names = {split_voice(voice)[0] for voice in self.voices}
        if "http" in names and not self.http_url:
            raise ValueError("A voice is http:…, and http_url is not given. Pass the server's address as --http_url.")
        if self.held_out_voices and len(self.voices) < 2:
            raise ValueError(
                f"held_out_voices={self.held_out_voices} of {len(self.voices)} voices leaves none for training. Name "
                "more voices, or set held_out_voices to 0."
            )

    def _check_server(self) -> None:
        for name in ("http_rate", "http_timeout"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name}={value!r}: no request could be sent. Give a number above 0.")
        try:
            body = json.loads(self.http_body)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"http_body={self.http_body!r} is not JSON ({error}). Write an object such as {json.dumps(BODY)}."
            ) from error
        if not isinstance(body, dict) or "{text}" not in self.http_body:
            raise ValueError(
                f"http_body={self.http_body!r} is no object with {{text}} in it: the server would not know what to "
                f"say. Write one such as {json.dumps(BODY)}."
            )

    @property
    def columns(self) -> dict[str, str]:
        """`column_map` as {theirs: ours}."""
        return {theirs: ours for theirs, _, ours in (entry.partition("=") for entry in self.column_map)}

    @property
    def augmentation(self) -> Augmentation:
        """What may be done to the clips."""
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
        """The engines of the voices, by name."""
        engines: dict[str, Engine] = {**LOCAL_ENGINES, "kokoro": Kokoro(self.kokoro_folder)}
        if self.http_url:
            engines["http"] = HttpEngine(
                self.http_url,
                json.loads(self.http_body),
                timeout=self.http_timeout,
                tries=self.http_tries,
                requests_per_second=None if self.http_rate is None else self.http_rate / self.processes,
                token_variable=self.http_token_variable,
            )
        return engines
