"""Checkpoints as a training leaves them, with random adapters, and an Omni around the tiny thinker."""

import torch
from peft import get_peft_model
from transformers import Qwen2_5OmniConfig, Qwen2_5OmniForConditionalGeneration

from tars_trl.models import architecture_of


def with_adapter(model):
    """`model` with our LoRA, its weights random."""
    adapted = get_peft_model(model, architecture_of(model.config.model_type).lora(r=4, lora_alpha=8))
    generator = torch.Generator().manual_seed(1)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.05 * torch.randn(parameter.shape, generator=generator)
    return adapted.eval()


def checkpoint(model, processor, folder):
    """A trained run in `folder`/run, on a base in `folder`/base."""
    model.save_pretrained(folder / "base")
    processor.save_pretrained(folder / "base")
    with_adapter(type(model).from_pretrained(folder / "base")).save_pretrained(folder / "run")
    processor.save_pretrained(folder / "run")
    return folder / "run"


def logits(model):
    ids = torch.arange(3, 40).unsqueeze(0).to(model.get_input_embeddings().weight.device)
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.float().cpu()


def tiny_omni_folder(model, processor, folder):
    """Folder of a whole Omni, talker and vocoder included, in several shards, around the tiny thinker."""
    config = Qwen2_5OmniConfig(
        thinker_config=model.config.to_dict(),
        talker_config={
            "vocab_size": 64,
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 16,
            "embedding_size": 128,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]},
        },
        token2wav_config={
            "dit_config": {
                "hidden_size": 32,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "ff_mult": 1,
                "emb_dim": 16,
                "head_dim": 16,
                "num_embeds": 32,
                "mel_dim": 16,
                "enc_dim": 16,
                "enc_emb_dim": 16,
                "enc_channels": [16, 16, 16, 16, 48],
                "enc_attention_channels": 8,
                "enc_se_channels": 8,
            },
            "bigvgan_config": {"mel_dim": 16, "upsample_initial_channel": 64},
        },
    )
    whole = Qwen2_5OmniForConditionalGeneration(config)
    whole.thinker.load_state_dict(model.state_dict())
    whole.save_pretrained(folder, max_shard_size="1MB")
    processor.save_pretrained(folder)
    torch.save({"Chelsie": {"bos_token": 1}}, folder / "spk_dict.pt")
    (folder / "README.md").write_text("The original's card.")
    (folder / "LICENSE").write_text("The original's licence.")
    return folder
