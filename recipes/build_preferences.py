"""Preference pairs and supervised examples from a model's own spoken and written completions of questions.

    accelerate launch recipes/build_preferences.py --config recipes/qwen2_5_omni/arms/demo/preferences.yaml
    accelerate launch recipes/build_preferences.py --model Qwen/Qwen2.5-Omni-7B --dataset my/questions \
        --output_dir runs/preferences/mine --min_margin 1

Interrupted, it continues where it stopped when it is started again, on any number of processes; with other filters
(min_margin, min_tokens, max_tokens, max_length_ratio) it samples nothing again. recipes/dpo.py trains on
OUT/preferences, recipes/sft.py on OUT/sft.
"""

from tars_trl.sampling.preferences import PreferenceSettings, build_preferences
from tars_trl.settings import parse, run


def main(args: list[str] | None = None) -> None:
    """Sample, pair, write; what was kept and dropped is printed and in report.json."""
    (settings,) = parse(PreferenceSettings, args=args, description=__doc__)
    build_preferences(settings)


if __name__ == "__main__":
    run(main)
