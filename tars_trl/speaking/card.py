"""The card of a built data set, from the facts that `tars_trl.speaking.build.build` returns."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCard, DatasetCardData

TEMPLATE = """\
---
{{ card_data }}
---

# {{ title }}

Multiple-choice questions, spoken and written, for post-training speech LLMs. The speech is **synthetic**.
Source: {{ source }}.

{{ table }}

## Voices

{% for split, count in splits.items() -%}
- {{ split }}: {% for voice, clips in (count.voices or {}).items() | sort -%}
{{ voice }} ({{ clips }}){{ ", " if not loop.last }}{% else %}not spoken{% endfor %}
{% endfor %}
{% if recognizer -%}
Clips were transcribed with {{ recognizer }} and kept at a word error rate of at most \
{{ "%g" | format(100 * max_wer) }} %, both texts normalised; a question had {{ tries }} tries.
{%- else -%}
Nobody has checked what the clips say.
{%- endif %}
{%- if augment %} {{ "%g" | format(100 * augment) }} % of the clips have noise, another speed or a room (column \
`augmentation`).{% endif %}

## Columns

`audio` (16 kHz, {{ codec }}), `prompt` (the written conversation; its last user turn is what the audio says),
`question`, `options`, `answer_index`, `key`; `question_for_tts`, `prompt_for_tts` and `prompt_for_tts_tn` (as written,
and in plain words); `voice`, `pace`, `seconds`, `transcript`, `tts_wer`, `tts_retries`, `augmentation`.

```python
from tars_trl.data import load_questions

train = load_questions({{ repository | tojson }}, "train")
```

Made with `recipes/build_dataset.py` of tars-trl, seed {{ seed }}.
"""


def write_dataset_card(folder: Path, facts: Mapping[str, Any]) -> Path:
    """Write the `README.md` of a data set's folder from what `tars_trl.speaking.build.build` returns."""
    splits = [
        {"split": name, "path": f"data/{name}-*.parquet"} for name in facts["splits"] if facts["splits"][name]["kept"]
    ]
    header = DatasetCardData(
        license=facts["license"],
        language=["en"],
        task_categories=["question-answering", "automatic-speech-recognition"],
        tags=["audio", "speech", "synthetic", "multiple-choice", "tars-trl"],
        configs=[{"config_name": "default", "data_files": splits}],
    )
    card = DatasetCard.from_template(header, template_str=TEMPLATE, table=count_table(facts["splits"]), **facts)
    place = folder / "README.md"
    place.write_text(str(card), encoding="utf-8")
    return place


def count_table(splits: Mapping[str, Mapping[str, Any]]) -> str:
    """What a build kept and dropped, as a Markdown table."""
    lines = ["| split | questions | kept | hours | mean word error rate | dropped |", "|---|---|---|---|---|---|"]
    for split, count in splits.items():
        hours = f"{count['seconds'] / 3600:.2f}" if "seconds" in count else "not spoken"
        rate = "not heard" if count.get("tts_wer") is None else f"{100 * count['tts_wer']:.1f} %"
        dropped = ", ".join(f"{number} {reason}" for reason, number in count["dropped"].items()) or "none"
        lines.append(f"| {split} | {count['questions']} | {count['kept']} | {hours} | {rate} | {dropped} |")
    return "\n".join(lines)
