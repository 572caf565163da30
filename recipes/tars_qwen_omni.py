"""TARS on a Qwen2.5-Omni thinker: GRPO with spoken and written twins and alignment rewards.

The demo, two CPU cores:
    accelerate launch recipes/tars_qwen_omni.py --config recipes/qwen2_5_omni/demo.yaml
The paper's setting, GPUs (one line):
    accelerate launch --config_file recipes/accelerate/zero2.yaml
        recipes/tars_qwen_omni.py --config recipes/qwen2_5_omni/tars_7b.yaml
Any setting can be overridden behind the file, for example `--learning_rate 1e-5 --representation_weight 0`.
"""

from transformers import AutoProcessor

from tars_trl import TARSGRPOConfig, TARSGRPOTrainer, accuracy_reward, format_reward, load_questions
from tars_trl.grpo.resuming import last_checkpoint
from tars_trl.settings import ModelAndData, parse


def main() -> None:
    """Load, train, save the adapter and the processor; push them if asked."""
    run, config = parse(ModelAndData, TARSGRPOConfig)
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

    trainer = TARSGRPOTrainer(
        run.model,
        [accuracy_reward, format_reward],
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
    trainer.create_model_card()
    if config.push_to_hub:
        trainer.push_to_hub()


if __name__ == "__main__":
    main()
