"""What a run takes, against the released sizes, a run that is counted, and memory that is measured."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel  # the counter leaves out fused kernels for CPUs
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModel

from tars_trl import plan
from tars_trl.data.prompts import spoken_prompt
from tars_trl.errors import SettingError
from tars_trl.models import AUDIO_TOKENS, architecture_of
from tars_trl.models.hooks import last_logits_only
from tars_trl.models.rehearsal import Rehearsal, _Counter
from tars_trl.models.released import configuration
from tars_trl.settings import parse
from tests.conftest import ROOT
from tests.models.tiny import ARCHITECTURES

RECIPES = {  # parameters of the language model (Qwen2.5-7B, Phi-4-mini), and those that LoRA of rank 8 trains
    "qwen2_5_omni/tars_7b.yaml": (7_615_616_512, 20_185_088),
    "phi4_multimodal/tars.yaml": (3_836_021_760, 11_534_336),
}


def planned(*words: object) -> plan.Plan:
    return plan.plan(*parse(plan.PlannedModel, plan.PlannedRun, args=[str(word) for word in words]))


@pytest.fixture
def small(model_folder):
    """Words that name the tiny model, and a step without an embedding model."""
    return ["--model", model_folder, "--behavior_weight", "0", "--bf16", "false", "--per_device_train_batch_size", "8"]


def test_passes_are_counted():
    """A product that is kept for the backward pass, and one that is not."""
    layer = torch.nn.Linear(64, 256, bias=False, device="meta")
    rehearsal = Rehearsal(torch.nn.Sequential(layer))
    forward = rehearsal.run(lambda x: layer(x), torch.zeros(10, 64))
    assert (forward.peak, forward.kept, forward.flops) == (10 * 256 * 4, 10 * 256 * 4, 2 * 10 * 64 * 256)
    both = rehearsal.run(lambda x: layer(x).relu().sum().backward(), torch.zeros(10, 64))
    assert both.flops == 2 * forward.flops and both.kept == 0
    assert both.peak == pytest.approx(forward.peak + layer.weight.nbytes, abs=16)  # a gradient, the weight's new one


@pytest.mark.parametrize(("recipe", "sizes"), RECIPES.items(), ids=str)
def test_released_sizes(recipe, sizes):
    (settings,) = [plan.parse(plan.PlannedModel, plan.PlannedRun, args=["--config", str(ROOT / "recipes" / recipe)])]
    config = configuration(settings[0].model)
    model = architecture_of(config.model_type).empty(config)
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model
    language = {id(p): p.numel() for p in [*decoder.layers.parameters(), *decoder.norm.parameters(),
                                           *model.get_input_embeddings().parameters(),
                                           *model.get_output_embeddings().parameters()]}  # fmt: skip
    assert sum(language.values()) == sizes[0]


def test_the_embedding_model():
    with torch.device("meta"):
        model = AutoModel.from_config(configuration("Qwen/Qwen3-Embedding-0.6B"))
    assert sum(parameter.numel() for parameter in model.parameters()) == 595_776_512


@pytest.mark.parametrize(("model_id", "number"), [
    ("nvidia/audio-flamingo-3-hf", 8_267_215_360),  # as in MTEB's list of models
    ("ibm-granite/granite-4.0-1b-speech", 2_313_141_596),  # its files: 4.63 GB in bfloat16
    # Its file of 10,246,621,918 bytes also has keys and values of layers that read others': 18.9 million parameters.
    ("google/gemma-4-E2B-it", 5_104_297_504),
])  # fmt: skip
def test_whole_models(model_id, number):
    config = configuration(model_id)
    model = architecture_of(config.model_type).empty(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == number


def test_a_model_that_is_not_known():
    with pytest.raises(SettingError, match=r"'nobody/nothing'.*Give a folder"):
        planned("--model", "nobody/nothing")


TAUGHT = {"distillation_weight": 1.0, "distillation_text_weight": 0.5, "beta": 0.1}  # a teacher and a reference


def test_what_no_run_could_take(small, tmp_path):
    for absurd in (["--speech_seconds", 1e6], ["--max_completion_length", 10**9]):
        with pytest.raises(SettingError, match=r"are more than the [\d,]+ that the model has positions for. Lower"):
            planned(*small, *absurd)
    with pytest.raises(SettingError, match="Give a folder that holds its config.json"):
        planned("--model", tmp_path)


@pytest.mark.parametrize("wanted", [{}, {"shared_prefix": "never"}, TAUGHT], ids=str)
def test_tokens_are_those_of_a_run(make_trainer, small, wanted):
    """Through the first decoder layer in a step, as a hook counts them."""
    shape = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "max_completion_length": 8, **wanted}
    trainer = make_trainer(max_steps=1, generation_kwargs={"min_new_tokens": 8}, **shape)
    trainer._sharing.checked = {"policy", "teacher"}
    counted, prompts = [], set()
    layer = trainer._base.get_decoder().layers[0]
    layer.register_forward_hook(lambda _module, args, _output: counted.append(args[0].size(0) * args[0].size(1)))
    generate = trainer._generate_single_turn

    def watched(prompt_ids, *args, **kwargs):
        prompts.update(map(len, prompt_ids))
        return generate(prompt_ids, *args, **kwargs)

    trainer._generate_single_turn = watched
    trainer.train()
    made = planned(*small, "--gpus", 1, *(word for name, value in shape.items() for word in (f"--{name}", value)))
    written = len(trainer._rollout.prompts[-1].ids)
    step = replace(made.step, prompts=tuple(sorted(prompts, reverse=True)), written=written)
    assert made.tokens(step)[1] == sum(counted)
    assert made.tokens(step)[0] > made.tokens(step)[1]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_clips_take_what_they_take(name):
    """Shapes as the processor makes them; operations as torch counts them, memory as a CPU takes it, masks aside."""
    architecture, (model, processor) = architecture_of(name), ARCHITECTURES[name](0)
    conversation = spoken_prompt([{"role": "user", "content": [{"type": "text", "text": "one or two?"}]}])
    prompt = architecture.prompt(processor, conversation, np.random.default_rng(0).standard_normal(32_000, "float32"))
    blank = architecture.blank_features(model.config, 2.0)
    for feature in architecture.features:
        assert blank[feature].shape == pytest.approx(prompt.features[feature].shape, abs=2)
    counter = _Counter()
    with torch.no_grad(), counter:
        embeddings = architecture.encode_alike(model, [blank, blank])
        kept = counter.now
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as by_torch:
        architecture.encode_alike(model, [blank, blank])
    assert len(embeddings) == pytest.approx(2 * prompt.features[AUDIO_TOKENS], abs=2)
    made = Rehearsal(model).run(
        lambda clip: torch.no_grad()(architecture.encode_alike)(model, [clip, clip]), blank, known=True
    )
    assert made.kept == kept and 0.7 * counter.peak <= made.peak <= counter.peak
    assert made.flops == pytest.approx(by_torch.get_total_flops(), rel=1e-3)


def test_operations_are_those_that_torch_counts(small, tiny):
    """Of prompts and of a token behind them, with every layer's products and the head's."""
    model, made = tiny[0], planned(*small, "--lora_r", 0)
    ids = torch.zeros(2, 40, dtype=torch.long)
    counts = []
    for tokens in (ids, ids[:, :1]):
        cache = None if tokens is ids else model(input_ids=ids, use_cache=True).past_key_values
        whole_attention, counter = sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False)
        with torch.no_grad(), last_logits_only(model), whole_attention, counter as by_torch:
            model(input_ids=tokens, past_key_values=cache)
        counts.append(by_torch.get_total_flops())
    assert [made.prefill(40, 2).flops, made.decode(2, 40)] == pytest.approx(counts, rel=1e-3)


def test_a_share_for_vllm(small):
    """Beside which all else has to fit, unless it sleeps; a server takes nothing here."""
    words = [*small, "--gpus", 1, "--use_vllm", "true", "--vllm_gpu_memory_utilization", 0.25]
    words += ["--vllm_max_model_length", 512, "--vllm_mode"]
    server, awake = planned(*words, "server"), planned(*words, "colocate")
    asleep = planned(*words, "colocate", "--vllm_enable_sleep_mode", "true")
    phases = server.phases(server.step)
    assert phases == awake.phases(awake.step) and phases["sampling"] < phases["scoring"] < phases["update"]
    alone = server.needed(server.step)
    assert awake.needed(awake.step) == pytest.approx(alone / 0.75)
    sampling = (1 + plan.FRAGMENTED) * phases["sampling"] + plan.CONTEXT
    assert asleep.needed(asleep.step) == pytest.approx(max(alone, sampling / 0.75 / plan.GIB))
    weights, cache = awake.engine(awake.step)
    assert weights == 4 * sum(n for part, n in awake.parts().items() if "LoRA" not in part)
    assert cache == 512 * awake.cache(awake.step)
    whole = planned(*words, "colocate", "--vllm_gpu_memory_utilization", 1)
    assert "--vllm_mode server, on GPUs of its own" in "".join(whole.verdict())
    with pytest.raises(SettingError, match="use_vllm=True"):
        planned("--model", "microsoft/Phi-4-multimodal-instruct", "--use_vllm", "true")


def test_what_does_not_fit_is_said_with_what_to_change(small, capsys):
    words = [*small, "--gpus", "2", "--gradient_checkpointing", "false", "--spread", "ddp", "--memory", "1"]
    plan.main(words)
    said = capsys.readouterr().out
    assert "It does not fit 1 GiB." in said
    (line,) = [line for line in said.splitlines() if line.startswith("  --gradient_checkpointing true: ")]
    changed = planned(*words, "--gradient_checkpointing", "true")
    assert float(line.split(": ")[1]) == pytest.approx(changed.needed(changed.step), abs=0.06)
    plan.main([*words, "--memory", "80"])
    assert "It fits 80 GiB." in capsys.readouterr().out


def test_more_is_more(small):
    """Longer clips, longer completions and kept activations take more; what is spread takes less."""
    made = planned(*small, "--gpus", 8)
    usual = made.phases(made.step)["update"]
    for change in ({"prompts": (2000, 200)}, {"completion": 2048}, {"checkpointing": False}, {"gpus": 1}):
        assert made.phases(replace(made.step, **change))["update"] > usual, change
    whole = planned(*small, "--gpus", 8, "--lora_r", 0)
    states = [whole.state(replace(whole.step, spread=spread)) for spread in plan.SPREADS]
    assert states[0]["optimizer"] > 4 * states[1]["optimizer"]
    assert states[1]["optimizer"] == states[2]["optimizer"]


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "sizes"), RECIPES.items(), ids=str)
def test_the_recipes(recipe, sizes, capsys):
    """From the configuration alone: whole, in seconds, and with the trained parameters that the trainer shows."""
    plan.main(["--config", str(ROOT / "recipes" / recipe)])
    said = capsys.readouterr().out
    assert f"of which {sizes[1]:,} are trained" in said and f"{sizes[0]:,}" in said and "It fits" in said


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        "",
        "--gradient_checkpointing false",
        "--shared_prefix never --speech_seconds 12",
        "--lora_r 0 --freeze_audio false",
        "--distillation_weight 1 --distillation_mode full_logits",
    ],
)
def test_memory_is_as_measured(tmp_path, words):
    """Within a fifth of what the process takes: shared and plain prompts, LoRA and whole, checkpointing and not."""
    command = [sys.executable, str(ROOT / "tests" / "planned_step.py"), str(tmp_path / "step.json"), *words.split()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads((tmp_path / "step.json").read_text())
    assert report["prompts"] == ("repeated" if "never" in words else "shared")
    planned_and_measured = {
        phase: (noted["planned_gib"], noted["peak_gib"])
        for phase, noted in report["phases"].items()
        if "planned_gib" in noted and (report["prompts"] == "shared" or phase != "sampling")
    }
    # What the process loads meanwhile, 0.02 to 0.07 GiB, is as much as these two: one is counted exactly elsewhere.
    tower, scoring = planned_and_measured.pop("audio tower"), planned_and_measured.pop("scoring", None)
    if scoring is not None:
        assert scoring[1] - tower[1] == pytest.approx(scoring[0] - tower[0], rel=0.2)
    for phase, (expected, measured) in planned_and_measured.items():
        assert measured == pytest.approx(expected, rel=0.2), phase
