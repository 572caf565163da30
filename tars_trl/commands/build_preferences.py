"""Preference pairs and supervised examples from a model's own spoken and written completions of questions.

    tars-trl build-preferences --model MODEL --dataset my/questions --output_dir runs/preferences --min_margin 1
    accelerate launch -m tars_trl.commands.build_preferences …    # several processes share the questions

Interrupted, it continues where it stopped when it is started again, on any number of processes; with other filters
(min_margin, min_tokens, max_tokens, max_length_ratio) it samples nothing again. `dpo` trains on OUT/preferences,
`sft` on OUT/sft.
"""

from ..sampling.preferences import PreferenceSettings, build_preferences
from ..settings import parse, run


def main(args: list[str] | None = None) -> None:
    """Sample, pair, write; what was kept and dropped is printed and in report.json."""
    (settings,) = parse(PreferenceSettings, args=args, description=__doc__)
    build_preferences(settings)


if __name__ == "__main__":
    run(main)
