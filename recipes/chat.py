"""Ask a speech LLM a question, spoken or written, and read its answer as it comes.

    python recipes/chat.py --model runs/demo --audio runs/demo/question.ogg --system_prompt "Think, then answer."
    python recipes/chat.py --model Qwen/Qwen2.5-Omni-7B --adapter runs/tars-qwen2.5-omni-7b \
        --audio france.wav --text "What is the capital of France? Option A: Lyon. Option B: Paris."

The first asks what the demo leaves; france.wav is a recording of yours. Given both forms it answers twice, once from
each twin's prompt, and prints the answers side by side.
"""

import argparse
import shutil
import textwrap
from itertools import zip_longest

import torch
from transformers import TextStreamer

from tars_trl.data import SYSTEM_PROMPT, build_prompt
from tars_trl.data.audio import load_audio
from tars_trl.data.prompts import spoken_prompt, written_prompt
from tars_trl.models import architecture_of
from tars_trl.models.hooks import placed_audio
from tars_trl.models.loading import load_speech_llm


@torch.no_grad()
def answer(model, processor, conversation: list[dict], waveform, **generation) -> str:
    """One answer, streamed to the terminal.

    Args:
        conversation: in its written form.
        waveform: the spoken question, float32 (samples,) at 16 kHz; None asks in writing.
        generation: settings of `model.generate`.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    architecture = architecture_of(base.config.model_type)
    spoken = waveform is not None
    prompt = architecture.prompt(processor, (spoken_prompt if spoken else written_prompt)(conversation), waveform)
    ids = torch.tensor([prompt.ids], device=base.get_input_embeddings().weight.device)
    clips = architecture.encode(base, [prompt.features]) if prompt.features is not None else [None]
    with placed_audio(base.get_input_embeddings(), architecture.audio_token(base), clips):
        output = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            streamer=TextStreamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True),
            suppress_tokens=architecture.unsampled_tokens(base),
            pad_token_id=processor.tokenizer.pad_token_id,
            eos_token_id=base.generation_config.eos_token_id or processor.tokenizer.eos_token_id,
            **generation,
        )
    return processor.tokenizer.decode(output[0, ids.size(1) :], skip_special_tokens=True)


def side_by_side(answers: dict[str, str], width: int) -> str:
    """The answers as columns of equal width, headed by their names."""
    column = (width - 3) // 2
    cells = []
    for name, text in answers.items():
        lines = [line for part in text.splitlines() or [""] for line in textwrap.wrap(part, column) or [""]]
        cells.append([name, "-" * column, *lines])
    return "\n".join(f"{left:<{column}} | {right}" for left, right in zip_longest(*cells, fillvalue=""))


def main(args: list[str] | None = None) -> dict[str, str]:
    """Load the model, ask, print; the answers by modality."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="hub id or folder; also of an adapter that names its base model")
    parser.add_argument("--adapter", help="hub id or folder of a LoRA adapter")
    parser.add_argument("--revision", help="of the base model on the hub, if not the one that the adapter's run names")
    parser.add_argument("--audio", help="file with the spoken question: wav, flac, ogg, mp3")
    parser.add_argument("--text", help="the written question")
    parser.add_argument("--system_prompt", default=SYSTEM_PROMPT, help="an empty text for none")
    parser.add_argument("--max_new_tokens", type=int, default=1024)
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device", default=None, help="such as cpu or cuda:1; the accelerator if there is one")
    options = parser.parse_args(args)
    if options.audio is None and options.text is None:
        parser.error("neither --audio nor --text is given: there is no question. Give one of them, or both.")

    device = options.device or torch.accelerator.current_accelerator(check_available=True) or "cpu"
    waveform = None if options.audio is None else load_audio(options.audio)
    model, processor = load_speech_llm(
        options.model, options.adapter, revision=options.revision, dtype=options.dtype, device=device
    )
    sampling = (
        {"do_sample": True, "temperature": options.temperature} if options.temperature > 0 else {"do_sample": False}
    )
    conversation = build_prompt(options.text or "(spoken)", options.system_prompt)
    answers = {}
    for modality, clip in (("speech", waveform), ("text", None)):
        if (options.audio if modality == "speech" else options.text) is not None:
            print(f"[{modality}]")
            answers[modality] = answer(
                model, processor, conversation, clip, max_new_tokens=options.max_new_tokens, **sampling
            )
    if len(answers) == 2:
        print("\n" + side_by_side(answers, shutil.get_terminal_size().columns))
    return answers


if __name__ == "__main__":
    main()
