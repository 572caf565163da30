"""One step of a small model, phase by phase, with the memory that was planned for it; the figures go to a file.

Not a test by itself: `test_plan.py` launches it, as memory is measured in a fresh process.
    python tests/planned_step.py OUT [--gradient_checkpointing false …]
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
sys.path.insert(0, str(Path(__file__).parents[1]))

import step_7b
import tiny_omni
import torch

from tars_trl.plan import PlannedRun
from tars_trl.settings import parse

SECONDS, COMPLETION = 48, 64


def main() -> None:
    out, *words = sys.argv[1:]
    (run,) = parse(PlannedRun, args=[
        "--gpus", "1", "--spread", "ddp", "--output_dir", f"{out}.run", "--max_steps", "2",
        "--speech_seconds", str(SECONDS),
        "--max_audio_seconds", str(SECONDS + 1), "--max_completion_length", str(COMPLETION), "--question_tokens", "40",
        "--per_device_train_batch_size", "8", "--bf16", "false", "--use_cpu", "true", "--behavior_weight", "0",
        "--reference_reward", "accuracy_by_row", "--mask_truncated_completions", "false", "--logging_steps", "1",
        "--save_strategy", "no", "--report_to", "none", "--health_steps", "0", "--dataloader_pin_memory", "false",
        *words,
    ])  # fmt: skip
    run.generation_kwargs = {"min_new_tokens": COMPLETION}
    tokenizer = tiny_omni.build_tokenizer(tiny_omni.TEST_CORPUS)
    sizes = {"hidden": 512, "layers": 6, "heads": 8, "intermediate": 1376}
    config = tiny_omni.build_model(tokenizer, **sizes).config
    # TRL's head has buffers of 32,768 logits a token, of which a CPU takes no more than what is written.
    config.text_config.vocab_size = 32_768
    processor = tiny_omni.build_processor(tokenizer, window_seconds=SECONDS)
    report = step_7b.take_step(config, processor, run, torch.float32, plain=run.shared_prefix == "never")
    Path(out).write_text(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
