"""Listen to your own recordings with a recogniser: does each clip say its question, and its options?

    tars-trl check-recordings --dataset my/questions --asr faster-whisper:FOLDER
    tars-trl check-recordings --dataset my/questions --asr transformers:openai/whisper-medium

The spoken twin of a question hears nothing but its clip: where the options are not said, it cannot know them. Every
clip that seems to leave something out is listed with what was heard; recognisers err, so listen to those. The exit
status is 1 if there is one.
"""

import sys
from dataclasses import dataclass

from tqdm import tqdm

from ..data.checking import check_audio
from ..data.questions import load_questions
from ..settings import AudioSettings, QuestionSettings, parse, run, setting
from ..speaking.recognition import recognizer
from ..speaking.recordings import check_recordings


@dataclass
class RecordingSettings(AudioSettings, QuestionSettings):
    """Who listens to which recordings."""

    asr: str | None = setting(
        None, "Recogniser, as kind:model: transformers:HUB_ID_OR_FOLDER or faster-whisper:FOLDER.", required=True
    )
    asr_device: str = setting("cpu", "Where it runs, such as cpu or cuda:0.")
    seed: int = setting(0, "Draws the questions of `limit`.", least=0)


def main(args: list[str] | None = None) -> None:
    """Listen, list what is missing, and end with status 1 if something is."""
    (settings,) = parse(RecordingSettings, args=args, description=__doc__)
    options = {"limit": settings.limit, "seed": settings.seed, "audio_anywhere": settings.audio_anywhere}
    rows = load_questions(settings.dataset, settings.split, **options)
    limits = {"max_seconds": settings.max_audio_seconds, "max_megabytes": settings.max_audio_megabytes}
    rows = check_audio(rows, **limits, on_error=settings.on_bad_audio)
    heard = list(tqdm(check_recordings(rows, recognizer(settings.asr, settings.asr_device)), "heard", len(rows)))
    lacking = [clip for clip in heard if not clip.complete]
    for clip in lacking:
        left_out = ["the question"] * (not clip.question) + [f"option {text!r}" for text in clip.missing]
        print(f"{clip.key}: {', '.join(left_out)} not heard in: {clip.transcript!r}")
    print(f"{len(heard) - len(lacking)} of {len(heard)} clips say question and options.")
    if lacking:
        sys.exit(1)


if __name__ == "__main__":
    run(main)
