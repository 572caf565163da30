"""One question said aloud: tried with one voice after the other until a clip passes every check."""

import base64
import random
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import connection, get_context, parent_process
from os import _exit
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import torch

from ..data.audio import TARGET_RATE, audio_problem
from ..errors import RefusedTextError, VoiceError
from .clips import Augmentation, augment, clip_problem, encode, finish
from .recognition import Recognizer, word_error_rate
from .voices import Engine, split_voice

Outcome = dict[str, Any]
ASKED = ("key", "words", "prompt_for_tts", "prompt_for_tts_tn")  # of a row


@dataclass(frozen=True)
class Speaker:
    """All that decides how a question sounds; the same for every question of a split, and picklable."""

    engines: Mapping[str, Engine]
    voices: Sequence[str]
    recognizer: Recognizer | None = None
    """None keeps clips that nobody has listened to."""
    seed: int = 0
    pace: tuple[float, float] = (0.9, 1.1)
    tries: int = 3
    max_wer: float = 0.10
    min_seconds: float = 0.5
    max_seconds: float = 30.0
    augmentation: Augmentation = Augmentation()
    codec: str = "opus"

    def check(self) -> None:
        """See that every voice can speak, or raise a `VoiceError`."""
        for voice in self.voices:
            engine, name = split_voice(voice)
            if engine not in self.engines:
                raise VoiceError(f"{voice}: there is no engine {engine!r}. Use one of {', '.join(self.engines)}.")
            self.engines[engine].check(name)

    def say(self, row: Mapping[str, Any]) -> Outcome:
        """Speak one question.

        Everything that is drawn depends on the seed, the key and the number of the try.

        Args:
            row: `key`, `words` (what is said), `prompt_for_tts` and `prompt_for_tts_tn` (what should be heard).

        Returns:
            `key` with either `audio` (the file in base64), `voice`, `pace`, `seconds`, `transcript`, `tts_wer`,
            `tts_retries`, `augmentation`; or `reason` and `detail` of the last try.

        Raises:
            VoiceError: nothing can be spoken any more.
        """
        key, voices = row["key"], list(self.voices)
        random.Random(f"{self.seed}/{key}").shuffle(voices)
        for number in range(self.tries):
            draw = random.Random(f"{self.seed}/{key}/{number}")
            outcome = {"key": key, **self._try_voice(row, voices[number % len(voices)], draw), "tts_retries": number}
            if "reason" not in outcome:
                break
        return outcome

    def _try_voice(self, row: Mapping[str, Any], voice: str, draw: random.Random) -> Outcome:
        pace = round(draw.uniform(*self.pace), 2)
        engine, name = split_voice(voice)
        try:
            samples, rate = self.engines[engine].speak(row["words"], name, pace)
        except RefusedTextError as error:
            return {"reason": "refused", "detail": f"{voice}: {error}"}
        limits = {"min_seconds": self.min_seconds, "max_seconds": self.max_seconds}
        problem, change = clip_problem(samples, rate, row["words"], **limits), "as spoken"
        if problem is None:
            waveform, change = augment(finish(np.asarray(samples), rate), self.augmentation, draw)
            # Once more: trimming makes a clip shorter, another speed or a room makes it longer.
            problem = audio_problem(waveform, sampling_rate=TARGET_RATE, **limits)
        if problem is not None:
            reason, _, detail = problem.partition(": ")
            return {"reason": reason, "detail": f"{voice}, {change or 'trimmed'}: {detail}"}
        transcript, rate_of_errors = None, None
        if self.recognizer is not None:
            transcript = self.recognizer.transcribe(waveform)
            # A recogniser writes CO2 as the question does, or C O two as it was said: both are right.
            rate_of_errors = min(word_error_rate(row[form], transcript) for form in ASKED[2:])
            if rate_of_errors > self.max_wer:
                return {
                    "reason": "word errors",
                    "detail": f"{voice}, {100 * rate_of_errors:.0f} %: heard {transcript!r}",
                }
        return {
            "audio": base64.b64encode(encode(waveform, self.codec)).decode(),
            "voice": f"{engine}:{Path(name).name}" if Path(name).is_file() else voice,  # no paths of this machine
            "pace": pace,
            "seconds": round(len(waveform) / TARGET_RATE, 3),
            "transcript": transcript,
            "tts_wer": rate_of_errors,
            "augmentation": change,
        }


def say_all(speaker: Speaker, rows: Sequence[Mapping[str, Any]], processes: int = 1) -> Iterator[Outcome]:
    """Speak many questions, side by side, in no order; a `ChildProcessError` if a process was killed."""
    questions = ({name: row[name] for name in ASKED} for row in rows)
    if processes == 1:
        yield from map(speaker.say, questions)
        return
    # Spawned, not forked: torch's threads do not survive a fork, and a forked process would hold our files open.
    with ProcessPoolExecutor(processes, get_context("spawn"), _start, (speaker,)) as pool:
        try:
            for said in as_completed({pool.submit(_say, row) for row in questions}):
                yield said.result()
        except BrokenProcessPool as error:
            raise ChildProcessError(
                f"One of {processes} processes that speak was killed, perhaps for memory. Run the same command again "
                "with fewer --processes: what is finished is kept."
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


_speaker: Speaker  # of this process


def _start(speaker: Speaker) -> None:
    global _speaker
    _speaker = speaker
    torch.set_num_threads(1)  # processes run side by side
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A parent that was killed cannot stop its pool: without this, its processes would speak on for nobody."""
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        _exit(1)


def _say(row: Mapping[str, Any]) -> Outcome:
    return _speaker.say(row)
