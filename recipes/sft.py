"""SFT of a speech LLM on spoken questions, from the completions that recipes/build_preferences.py writes.

The demo, two CPU cores:
    accelerate launch recipes/build_preferences.py --config recipes/qwen2_5_omni/arms/demo/preferences.yaml
    accelerate launch recipes/sft.py --config recipes/qwen2_5_omni/arms/demo/sft.yaml
7B, GPUs (one line each):
    accelerate launch recipes/build_preferences.py --config recipes/qwen2_5_omni/arms/7b/preferences.yaml
    accelerate launch --config_file recipes/accelerate/zero2.yaml
        recipes/sft.py --config recipes/qwen2_5_omni/arms/7b/sft.yaml
Model, LoRA targets, prompts and audio are those of TARS; the loss is TRL's.
"""

from transformers import AutoProcessor

from tars_trl import load_questions
from tars_trl.grpo.resuming import last_checkpoint
from tars_trl.settings import ModelAndData, parse
from tars_trl.supervised import SpeechSFTConfig, SpeechSFTTrainer


def main() -> None:
    """Load, train, save the adapter and the processor; push them if asked."""
    run, config = parse(ModelAndData, SpeechSFTConfig)
    config.model_init_kwargs = {
        "dtype": run.dtype,
        "revision": run.model_revision,
        "attn_implementation": run.attn_implementation,
        **(config.model_init_kwargs or {}),
    }
    options = {"seed": config.seed, "system_prompt": run.system_prompt}
    train = load_questions(run.dataset, run.split, limit=run.limit, **options)
    evaluate = None
    if run.eval_dataset:
        evaluate = load_questions(run.eval_dataset, run.eval_split, limit=run.eval_limit, **options)

    trainer = SpeechSFTTrainer(
        run.model,
        config,
        train_dataset=train,
        eval_dataset=evaluate,
        processing_class=AutoProcessor.from_pretrained(run.model, revision=run.model_revision, padding_side="left"),
    )
    resume = config.resume_from_checkpoint
    if resume == "last":
        resume = last_checkpoint(config.output_dir)
    trainer.train(resume_from_checkpoint=resume)
    trainer.save_model()
    trainer.save_state()
    if config.push_to_hub:
        trainer.push_to_hub()


if __name__ == "__main__":
    main()
