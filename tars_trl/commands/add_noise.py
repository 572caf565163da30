"""Make spoken questions hard to hear: other clips mixed in as babble, or noise without speech, at a stated level.

    tars-trl add-noise --dataset my/questions --noise babble --snr_db 10 --output_dir runs/data/babble

The same seed makes the same clips. Every column stays, and `noise` says what was mixed in. With `validation` as many
rows of the first split are set apart, so that settings can be chosen on questions that are neither trained on nor
tested. Each split is a parquet file in OUT.
"""

from dataclasses import dataclass
from pathlib import Path

from .. import load_questions
from ..data.questions import draw_numbers
from ..errors import SettingError
from ..settings import Settings, parse, run, setting
from ..speaking.clips import CODECS
from ..speaking.noise import NOISES, with_noise


@dataclass
class NoiseSettings(Settings):
    """Which questions, and what is mixed into them."""

    dataset: str | None = setting(None, "Spoken questions: hub id, folder or file.", required=True)
    splits: list[str] = setting(["train", "test"], "Splits of them, each with noise of its own clips.")
    validation: int = setting(0, "Rows of the first split to set apart as the split `validation`.", least=0)
    noise: str = setting("babble", "babble: other clips of the same split; pink: noise without speech.", choices=NOISES)
    snr_db: float = setting(10.0, "Energy of a clip over that of the noise in it, in decibels.", least=-60, most=100)
    voices: int = setting(4, "Other clips at once, of babble.", least=1)
    seed: int = setting(0, "Of the draws, together with a question's key.", least=0)
    codec: str = setting("flac", "Codec of the clips.", choices=tuple(CODECS))
    audio_anywhere: bool = setting(False, "Also open clips whose path leads out of the data set's folder.")
    output_dir: str | None = setting(None, "Folder of the new data set.", required=True)


def main(args: list[str] | None = None) -> None:
    """Load, set apart, mix, write."""
    (settings,) = parse(NoiseSettings, args=args, description=__doc__)
    folder = Path(str(settings.output_dir))
    questions = {
        split: load_questions(str(settings.dataset), split, audio_anywhere=settings.audio_anywhere)
        for split in settings.splits
    }
    if settings.validation:
        first = settings.splits[0]
        rows = questions[first]
        if settings.validation >= len(rows):
            raise SettingError(
                f"validation={settings.validation} of {len(rows)} rows in {first} leaves none. Set fewer rows apart."
            )
        apart = set(draw_numbers(len(rows), settings.validation, settings.seed))
        questions[first] = rows.select([number for number in range(len(rows)) if number not in apart])
        questions["validation"] = rows.select(sorted(apart))
    for split, rows in questions.items():
        options = {"noise": settings.noise, "snr_db": settings.snr_db, "voices": settings.voices}
        noisy = with_noise(rows, **options, seed=settings.seed, codec=settings.codec)
        noisy.to_parquet(folder / f"{split}-00000-of-00001.parquet")
        print(f"{folder}: {len(noisy)} questions in {split}, {noisy['noise'][0]}")


if __name__ == "__main__":
    run(main)
