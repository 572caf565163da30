"""The card of a built data set, and its upload, which happens only when it is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import HfApi

from .settings import BuildSettings


def write_dataset_card(output: Path, settings: BuildSettings, counts: Mapping[str, Mapping[str, Any]]) -> Path:
    """Write `README.md` with what was kept, dropped and why, and how to build it again.

    Args:
        output: folder of the data set.
        settings: of its build.
        counts: by split, as `tars_trl.speaking.build.summary` returns them.
    """
    splits = [{"split": split, "path": f"data/{split}-*.parquet"} for split in counts if counts[split]["kept"]]
    header = {
        **({"license": settings.license} if settings.license else {}),
        "language": ["en"],
        "task_categories": ["question-answering", "automatic-speech-recognition"],
        "tags": ["audio", "speech", "synthetic", "multiple-choice", "tars-trl"],
        "configs": [{"config_name": "default", "data_files": splits}],
    }
    place = output / "README.md"
    front = yaml.safe_dump(header, sort_keys=False, allow_unicode=True)
    place.write_text(f"---\n{front}---\n\n{_text(output.name, settings, counts)}", encoding="utf-8")
    return place


def count_table(counts: Mapping[str, Mapping[str, Any]]) -> str:
    """What a build kept and dropped, as a Markdown table."""
    lines = ["| split | questions | kept | hours | mean word error rate | dropped |", "|---|---|---|---|---|---|"]
    for split, count in counts.items():
        hours = f"{count['seconds'] / 3600:.2f}" if "seconds" in count else "not spoken"
        rate = "not heard" if count.get("tts_wer") is None else f"{100 * count['tts_wer']:.1f} %"
        dropped = ", ".join(f"{number} {reason}" for reason, number in count["dropped"].items()) or "none"
        lines.append(f"| {split} | {count['questions']} | {count['kept']} | {hours} | {rate} | {dropped} |")
    return "\n".join(lines)


def push_dataset(output: Path, repo_id: str, *, public: bool = False, token: str | None = None) -> str:
    """Upload a finished build, without its `.work` folder. The repository is private unless `public`.

    Returns:
        the commit's address.

    Raises:
        ValueError: the build has no card yet.
        PermissionError: the repository is public and `public` is not.
    """
    if not (output / "README.md").is_file():
        raise ValueError(f"{output} has no card, so its build is not finished. Run --stage all, or --stage card.")
    api = HfApi(token=token)
    known = api.repo_exists(repo_id, repo_type="dataset")
    if known and not public and not api.repo_info(repo_id, repo_type="dataset").private:
        raise PermissionError(
            f"push_to={repo_id!r} is public, and a private upload was asked for. Make it private, name another, or "
            "say --public true."
        )
    if not known:
        api.create_repo(repo_id, repo_type="dataset", private=not public)
    commit = api.upload_folder(
        repo_id=repo_id,
        repo_type="dataset",
        folder_path=output,
        ignore_patterns=[".work/*", ".work/**", "**/*.part"],
        commit_message="Upload with tars_trl",
    )
    return str(commit.commit_url)


def _text(title: str, settings: BuildSettings, counts: Mapping[str, Mapping[str, Any]]) -> str:
    source = settings.dataset if settings.revision is None else f"{settings.dataset}, revision {settings.revision}"
    if Path(settings.dataset).exists():
        source = f"a local copy, {Path(settings.dataset).name}"  # no paths of the machine that built it
    voices: dict[str, list[str]] = {}
    for split, count in counts.items():
        voices[split] = [f"{Path(name).name} ({number})" for name, number in sorted(count.get("voices", {}).items())]
    spoken = "\n".join(f"- {split}: {', '.join(names) or 'not spoken'}" for split, names in voices.items())
    heard = "Nobody has checked what the clips say."
    if settings.asr is not None:
        heard = (
            f"Clips were transcribed with {Path(settings.asr).name} and kept at a word error rate of at most "
            f"{100 * settings.max_wer:g} %, both texts normalised; a question had {settings.tries} tries."
        )
    change = f"{100 * settings.augment:g} % of the clips have noise, another speed or a room (column `augmentation`)."
    return f"""\
# {title}

Multiple-choice questions, spoken and written, for post-training speech LLMs. The speech is **synthetic**.
Source: {source}.

{count_table(counts)}

## Voices

{spoken}

{heard} {change if settings.augment else ""}

## Columns

`audio` (16 kHz, {settings.codec}), `prompt` (the written conversation; its last user turn is what the audio says),
`question`, `options`, `answer_index`, `key`; `question_for_tts`, `prompt_for_tts` and `prompt_for_tts_tn` (as written,
and in plain words); `voice`, `pace`, `seconds`, `transcript`, `tts_wer`, `tts_retries`, `augmentation`.

```python
from tars_trl.data import load_questions

train = load_questions("{settings.push_to or title}", "train")
```

Made with `recipes/build_dataset.py` of tars-trl, seed {settings.seed}.
"""
