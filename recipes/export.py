r"""From a checkpoint to a folder that others can open, checked, carded and, if asked, pushed.

    python recipes/export.py --checkpoint runs/demo --output runs/demo-merged --format merged
    python recipes/export.py --checkpoint runs/tars-qwen2.5-omni-7b --output runs/tars-omni --format omni \
        --results runs/results/*tars-qwen2.5-omni-7b/results_*.json --push_to user/TARS-Omni

Formats: adapter; merged (whole model, the thinker of a Qwen2.5-Omni); omni (the whole Omni with the thinker put back).
Every export is loaded again in a fresh process, whose greedy answers and logits to a spoken and a written question must
be the trained model's; if not, nothing is pushed. A push is private unless `--public`, and overwrites nothing unless
`--overwrite`. The token is the one of `hf auth login` or HF_TOKEN. Memory: the model in float32.
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch

from tars_trl import load_questions
from tars_trl.record import read_run
from tars_trl.settings import parse, setting
from tars_trl.share.cards import read_pairs, write_card
from tars_trl.share.export import FORMATS, load_trained, stored_dtype, write_export
from tars_trl.share.hub import prepare_repository, push
from tars_trl.share.verify import greedy_answers, untrained_logits, verify_folder


@dataclass
class Export:
    """What is exported, how it is checked, where it goes."""

    checkpoint: str = setting("runs/demo", "Folder of a run or checkpoint: an adapter or a whole model.")
    output: str = setting("runs/export", "Folder to write; empty or not there yet.")
    format: str = setting("adapter", f"One of {', '.join(FORMATS)}.")
    base: str | None = setting(None, "Base model, id or folder, if it is not the one that the adapter names.")
    base_revision: str | None = setting(None, "Revision of the base on the hub.")
    omni: str | None = setting(None, "Format omni: the whole checkpoint, id or folder, if it is not the base.")
    dtype: str = setting("float32", "Type a merged model's weights are stored in: float32, bfloat16 or float16.")
    verify: bool = setting(True, "Load the result in a fresh process and compare (`--no_verify`: not; forbids a push).")
    questions: str = setting("recipes/demo/questions", "Data set of which the first question is asked in both forms.")
    questions_split: str = setting("test", "Its split.")
    max_new_tokens: int = setting(32, "Most tokens of the compared answers.")
    results: list[str] = field(default_factory=list, metadata={"help": "Result files for the card."})
    dataset: str | None = setting(None, "Training data, as the card should name it.")
    licence: str | None = setting(None, "Licence identifier, such as mit; None for the base model's.")
    push_to: str | None = setting(None, "Repository to push to, user/name; None pushes nothing.")
    revision: str | None = setting(None, "Branch to push to; None for main.")
    public: bool = setting(False, "Push to a public repository.")
    overwrite: bool = setting(False, "Replace what the revision holds.")

    def __post_init__(self) -> None:
        if self.push_to and not self.verify:
            raise ValueError("push_to is given with verify off: nothing unchecked is pushed. Leave verify on.")
        if self.dtype not in ("float32", "bfloat16", "float16"):
            raise ValueError(f"dtype={self.dtype!r} is not a choice. Use float32, bfloat16 or float16.")


def main() -> None:
    """Load, answer, write, verify, card, push."""
    (run,) = parse(Export)
    results = read_pairs(run.results, run.checkpoint)
    if run.push_to:  # before anything expensive
        prepare_repository(
            run.push_to, revision=run.revision, private=not run.public, overwrite=run.overwrite, folder=run.output
        )
    facts = read_run(run.checkpoint)
    facts |= {"dataset": run.dataset} if run.dataset else {}
    model, processor = load_trained(run.checkpoint, base=run.base, revision=run.base_revision)
    facts.setdefault("base_model", model.config.name_or_path)
    whole = model.get_base_model() if hasattr(model, "get_base_model") else model
    facts.setdefault("model_class", type(whole).__name__)
    omni = run.omni or run.base or facts["base_model"]
    revision = run.base_revision or facts.get("base_revision")

    if run.verify:
        question = load_questions(run.questions, run.questions_split, limit=1)[0]
        questions = [("speech", question), ("text", question)]
        expected = greedy_answers(model, processor, questions, run.max_new_tokens)
        untrained = untrained_logits(model, processor, questions, expected)
    write_export(model, processor, run.output, run.format, dtype=run.dtype, omni=omni, revision=revision)
    del model, whole
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    print(f"Wrote {run.output} ({run.format}).")

    verification = None
    if run.verify:
        base = {"base": run.base, "revision": run.base_revision} if run.format == "adapter" else {}
        verification = verify_folder(
            run.output,
            questions,
            expected,
            untrained=untrained,
            dtype=stored_dtype(run.output),
            max_new_tokens=run.max_new_tokens,
            **base,
        )
        for answer in expected:
            print(f"Verified, {answer.modality}: {answer.text!r}")
    name = run.push_to or Path(run.output).name
    write_card(run.output, facts, name, run.format, results=results, licence=run.licence, verification=verification)
    if run.push_to:
        private, folder = not run.public, run.output
        print("Pushed:", push(folder, run.push_to, revision=run.revision, private=private, overwrite=run.overwrite))


if __name__ == "__main__":
    main()
