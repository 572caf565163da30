import pytest

from tars_trl import TARSGRPOConfig
from tars_trl.commands.train import TrainingSettings
from tars_trl.errors import SettingError
from tars_trl.settings import parse
from tars_trl.supervised import SpeechDPOConfig


def config(**settings):
    return TARSGRPOConfig("out", **{"per_device_train_batch_size": 8, "report_to": [], "bf16": False} | settings)


def test_defaults_are_the_methods():
    """Paper, table 5, and released code; see the help of each field."""
    made = config()
    expected = {
        "num_generations": 8, "temperature": 1.0, "max_completion_length": 1024, "loss_type": "dapo",
        "epsilon_high": 0.28, "scale_rewards": "none", "beta": 0.0, "mask_truncated_completions": True,
        "representation_weight": 1.0, "behavior_weight": 1.0, "format_weight": 0.5, "rep_layers": "all",
        "reference": "random", "behavior_model": "Qwen/Qwen3-Embedding-0.6B", "lora_r": 8, "lora_alpha": 32,
        "freeze_audio": True, "learning_rate": 2e-5, "weight_decay": 0.01, "max_grad_norm": 1.0,
        "vllm_importance_sampling_mode": "token_truncate", "vllm_importance_sampling_clip_max": 2.0,
    }  # fmt: skip
    assert {name: getattr(made, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_generations": 2}, "num_generations=2 cannot be halved"),
        ({"num_generations": 7, "per_device_train_batch_size": 7}, "num_generations=7 cannot be halved"),
        ({"num_generations_eval": 3}, "num_generations_eval=3"),
        ({"modalities": "audio"}, "modalities='audio'"),
        ({"reference": "worst"}, "reference='worst'"),
        ({"representation_weight": float("nan")}, "representation_weight=nan"),
        ({"behavior_weight": -1}, "behavior_weight=-1"),
        ({"rep_layers": "top"}, "rep_layers='top'"),
        ({"lora_r": 1.5}, "lora_r=1.5"),
        ({"reference": "best", "representation_weight": 0}, "reference='best'"),
        ({"scale_rewards": "batch"}, "scale_rewards='batch'"),
        ({"multi_objective_aggregation": "normalize_then_sum"}, "multi_objective_aggregation"),
        ({"steps_per_generation": 4, "save_strategy": "steps", "save_steps": 3}, "save_steps=3 falls inside"),
        ({"num_iterations": 2, "save_strategy": "steps", "save_steps": 0.1}, "save_steps=0.1 falls inside"),
        # Of TRL and transformers, which would train with them or fail once a model is loaded.
        ({"reward_weights": [1, float("nan")]}, "reward_weights=.* is not a finite number"),
        ({"generation_kwargs": {"temperature": float("nan")}}, "generation_kwargs=.* is not a finite number"),
        ({"generation_kwargs": '{"typical_p": NaN}'}, "generation_kwargs=.* is not a finite number"),
        ({"reward_weights": [1e30, 1]}, "reward_weights=1e+30 is out of range"),
        ({"loss_type": "sapo", "sapo_temperature_pos": 0.0}, "sapo_temperature_pos=0.0 is out of range"),
        ({"lora_dropout": 1.0}, "lora_dropout=1.0 is out of range. Give 0 or more and less than 1"),
        ({"rep_layers": [-1]}, "rep_layers='-1' is neither"),
        ({"top_entropy_quantile": 5.0}, "top_entropy_quantile=5.0"),
        ({"delta": -1.0}, "delta=-1.0"),
        ({"min_p": 5.0}, "min_p=5.0"),
        ({"top_k": -5}, "top_k=-5"),
        ({"temperature": 1e-300}, "temperature=1e-300"),
        ({"temperature": None}, "temperature=None is a NoneType"),
        ({"loss_type": 5}, "loss_type=5 is a int"),
        ({"adam_beta1": 1.0}, "adam_beta1=1.0, .* cannot be made of these, Invalid beta parameter"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "lr_scheduler_type='cosine_with_min_lr', .* min_lr"),
        ({"lr_scheduler_kwargs": {"bogus": 1}}, "lr_scheduler_kwargs={'bogus': 1}.* cannot be made"),
        ({"optim_args": "foo"}, "optim_args='foo'"),
        ({"generation_kwargs": "x"}, "generation_kwargs='x' holds no JSON object"),
        ({"generation_kwargs": "{bad"}, "generation_kwargs='{bad' holds no JSON object"),
        ({"generation_kwargs": {"num_beams": 4}}, "generation_kwargs: num_beams makes other completions"),
        ({"behavior_model": ""}, "behavior_model is not given"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(SettingError, match=message.replace("(", r"\(").replace("+", r"\+")):
        config(**settings)


@pytest.mark.parametrize(
    ("name", "value"), [("beta", -1.0), ("loss_type", "foo"), ("loss_weights", [float("nan")]), ("label_smoothing", 2)]
)
def test_settings_of_dpo_that_cannot_work_are_refused(name, value):
    with pytest.raises(SettingError, match=f"^{name}="):
        SpeechDPOConfig("out", report_to=[], **{name: value})


def test_what_trl_takes_is_taken():
    """Its optimizers and schedules, dictionaries as a command line has them, a text for a list of one."""
    made = config(optim="sgd", lr_scheduler_type="cosine_with_min_lr", lr_scheduler_kwargs='{"min_lr": 1e-6}')
    assert made.lr_scheduler_kwargs == {"min_lr": 1e-6}
    assert SpeechDPOConfig("out", report_to=[], loss_type="hinge").loss_type == ["hinge"]


def test_single_modalities_need_no_twins():
    assert config(modalities="text", num_generations=2).num_generations == 2
    assert not config(modalities="speech").aligned


def test_windows_that_fit():
    config(steps_per_generation=4, gradient_accumulation_steps=2, save_strategy="steps", save_steps=4)
    config(steps_per_generation=4, gradient_accumulation_steps=4, save_strategy="steps", save_steps=3)


def yaml(tmp_path, text):
    path = tmp_path / "run.yaml"
    path.write_text(
        f"output_dir: {tmp_path}\nmodel: some\ndataset: rows\nper_device_train_batch_size: 8\nreport_to: none\n{text}"
    )
    return str(path)


def test_command_line_overrides_yaml(tmp_path):
    path = yaml(tmp_path, "learning_rate: 1.0e-4\nrep_layers: '0, 2'\nlimit: 5\n")
    run, made = parse(TrainingSettings, TARSGRPOConfig, args=[f"--config={path}", "--limit", "7"])
    assert (run.limit, made.learning_rate, made.rep_layers) == (7, 1e-4, [0, 2])
    _, made = parse(TrainingSettings, TARSGRPOConfig, args=["--config", path, "--rep_layers=deep", "--bf16=false"])
    assert made.rep_layers == "deep" and made.bf16 is False


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("learning_rte: 1.0e-4", "learning_rte is no setting"),
        ("learning_rate: 1e-4", "learning_rate: '1e-4' is a str where a number"),
        ("num_generations: 8.5", "num_generations: 8.5 is a float"),
        ("save_strategy: no", "save_strategy: False is a bool"),
        ("reward_weights: 1.0", "reward_weights: 1.0 is a float"),
        ("model_revision: 7", "model_revision: 7 is a int where a text"),
    ],
)
def test_yaml_is_parsed_strictly(tmp_path, line, message):
    with pytest.raises(ValueError, match=message):
        parse(TrainingSettings, TARSGRPOConfig, args=["--config", yaml(tmp_path, line)])
