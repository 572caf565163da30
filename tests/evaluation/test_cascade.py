"""Transcripts that take the place of speech."""

import json

import numpy as np
import pytest
import torch

from tars_trl.data import SYSTEM_PROMPT, build_prompt
from tars_trl.errors import SettingError
from tars_trl.evaluation.cascade import from_itself, read_transcripts, with_transcript
from tars_trl.models.loading import load_speech_llm
from tars_trl.speaking.recognition import from_asr
from tests.conftest import question, questions


def test_only_the_spoken_part_is_replaced():
    row = {"key": "a", "prompt": build_prompt("What is it? Option A: x", SYSTEM_PROMPT, "Answer with a letter.")}
    heard = with_transcript(row, "what is it option a eggs")
    assert [part["text"] for part in heard["prompt"][1]["content"]] == [
        "what is it option a eggs",
        "Answer with a letter.",
    ]
    assert heard["prompt"][0]["content"][0]["text"] == SYSTEM_PROMPT
    assert row["prompt"][1]["content"][0]["text"] == "What is it? Option A: x"  # the row itself is left alone


def test_transcripts_from_files(tmp_path):
    lines = tmp_path / "heard.jsonl"
    lines.write_text('{"key": "a", "transcript": "one\u2028two"}\n\n{"key": "b", "transcript": ""}\n', encoding="utf-8")
    assert read_transcripts(str(lines), ["a", "b"]) == {"a": "one\u2028two", "b": ""}
    whole = tmp_path / "heard.json"
    whole.write_text(json.dumps({"a": "one"}))
    assert read_transcripts(str(whole), ["a"]) == {"a": "one"}
    whole.write_text(json.dumps({"a": 1}))
    with pytest.raises(SettingError, match="it cannot be read, No such file.*Correct the path"):
        read_transcripts(str(tmp_path / "herd.json"), ["a"])
    with pytest.raises(SettingError, match="a transcript is no text"):
        read_transcripts(str(whole), ["a"])


def test_a_transformers_model_transcribes(tmp_path):
    """A random CTC recogniser through the real pipeline: each clip has its own transcript, whatever the batch."""
    from transformers import Wav2Vec2Config, Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor, Wav2Vec2ForCTC

    letters = ["<pad>", "<s>", "</s>", "<unk>", "|", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ"]
    (tmp_path / "vocab.json").write_text(json.dumps({letter: number for number, letter in enumerate(letters)}))
    Wav2Vec2CTCTokenizer(str(tmp_path / "vocab.json")).save_pretrained(tmp_path)
    Wav2Vec2FeatureExtractor(return_attention_mask=True, do_normalize=True).save_pretrained(tmp_path)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    convolutions = {"conv_dim": (16, 16), "conv_kernel": (10, 8), "conv_stride": (5, 64), "num_feat_extract_layers": 2}
    positions = {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2, "feat_extract_norm": "layer"}
    config = Wav2Vec2Config(vocab_size=len(letters), pad_token_id=0, **sizes, **convolutions, **positions)
    Wav2Vec2ForCTC(config).save_pretrained(tmp_path)
    rows = list(questions(3))
    together = from_asr(str(tmp_path), batch_size=2)(rows)
    assert together == [from_asr(str(tmp_path))([row])[0] for row in rows]
    assert all(isinstance(text, str) for text in together) and len(set(together)) > 1


def test_the_model_itself_transcribes(model_folder):
    """Asked for a transcript of the clip: the question's text is nowhere in what it is given."""
    model, processor = load_speech_llm(model_folder)
    transcribe = from_itself(model, processor, max_completion_length=5, batch_size=2)
    row = question(0)
    reworded = {**row, "prompt": build_prompt("Something else entirely", None)}
    louder = {**row, "audio": {"bytes": question(3)["audio"]["bytes"], "path": None}}
    first, same, other = transcribe([row, reworded, louder])
    assert first == same != other
    assert np.char.str_len(first) > 0
