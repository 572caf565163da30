"""The row schema of questions: how a question is written down, and the check that rows follow it.

A row is one multiple-choice question, spoken and written:

    audio         the spoken question, a `datasets.Audio(decode=False)` column (see `tars_trl.data.audio`)
    prompt        the conversation in its written form: [{"role", "content"}, …]
    question      the question alone, without its options
    options       the options in order, without letters
    answer_index  index of the right one, from 0
    key           names the row in every report; unique
    …             further columns as the user likes; reward functions see them

The content of a turn is a string, or a list of parts [{"type": "text", "text": …}, …], the same kind in every turn of a
data set (Arrow has no mixed lists). What is spoken is the content of the last user turn: the string as a whole, or the
first text part, in which case later parts are an instruction that stays written in both twins. The speech twin is made
by the trainer, which puts the audio in the place of that text.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import QuestionError

if TYPE_CHECKING:
    from datasets import Dataset

COLUMNS = ("audio", "prompt", "question", "options", "answer_index", "key")
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
PROBLEMS_SHOWN = 20
CONTROL = re.compile(r"<\|[\w-]{1,40}\|>")
"""How tokenizers write what is no text: <|im_end|>, a clip's placeholder."""

# The method's format (TARS, "System prompt"): think, then one sentence in which the choice can be found.
SYSTEM_PROMPT = (
    "You are asked a multiple-choice question. First think it through, step by step, inside <think> </think>. "
    "Then give your choice inside <answer> </answer>, in exactly this form: "
    "<answer>The answer is [CHOICE].</answer>, where [CHOICE] is the letter of one option."
)


def written_question(question: str, options: Iterable[str]) -> str:
    """The question as one text, the way the TARS training set has it read aloud.

    The question, a blank line, then a line `Option A: …` for each option.

    Raises:
        QuestionError: there are no options, or more than there are letters.
    """
    options = list(options)
    if not 1 <= len(options) <= len(LETTERS):
        raise QuestionError(f"{len(options)} options for {question!r}: letters run from A to Z. Give 1 to 26 options.")
    lines = [f"Option {letter}: {option.strip()}" for letter, option in zip(LETTERS, options, strict=False)]
    return "\n".join([question.strip(), "", *lines])


def build_prompt(text: str, system_prompt: str | None = SYSTEM_PROMPT, instruction: str | None = None) -> list[dict]:
    """The conversation that asks `text`, in written form.

    Args:
        text: what is spoken in the speech twin, as a whole.
        system_prompt: the same in both twins; None or "" for no system turn.
        instruction: stays written in both twins, after the question. With one, the content of every turn is a list of
            text parts; without, a string.
    """
    user: str | list[dict] = text if not instruction else [text_part(text), text_part(instruction)]
    messages = [{"role": "system", "content": system_prompt}] if system_prompt else []
    return unify_content([*messages, {"role": "user", "content": user}])


def spoken_text(prompt: Sequence[Mapping]) -> str:
    """The part of a written prompt that is spoken: the first text of the last user turn.

    Raises:
        QuestionError: no user turn, or no text in the last one.
    """
    content = next((message["content"] for message in reversed(prompt) if message["role"] == "user"), None)
    if content is None:
        roles = [message["role"] for message in prompt]
        raise QuestionError(f"a prompt with the roles {roles}: there is no user turn to speak. Add one.")
    parts = [content] if isinstance(content, str) else [p["text"] for p in content if p.get("type", "text") == "text"]
    if not parts or not (parts[0] or "").strip():
        raise QuestionError("the last user turn holds no text: there is nothing to speak. Write the question there.")
    return parts[0]


def check_rows(
    dataset: "Dataset",
    *,
    required: Sequence[str] = COLUMNS,
    strict: bool = True,
    unique: bool = True,
    placeholders: Collection[str] = (),
) -> None:
    """Check the rows against the schema, without looking at the audio (`tars_trl.data.audio.check_audio` does).

    Args:
        dataset: rows, as they are given to a trainer.
        required: columns that have to be there; the others of the schema are checked where they are.
        strict: also refuse a single option and two equal ones, of which no right one can be chosen.
        unique: also refuse a key that two rows have.
        placeholders: what stands for media in the prompts of the model in use. Text such as `<|im_end|>` is refused
            in any case: a tokenizer takes it for the end of a turn, a clip, …

    Raises:
        QuestionError: columns are missing, or fields are wrong: the first 20, by row key and field.
    """
    missing = [name for name in required if name not in dataset.column_names]
    if missing:
        raise QuestionError(
            f"The data set has the columns {dataset.column_names}: {missing} of the question schema are missing. "
            "Rename columns with column_map={'theirs': 'ours'}, or convert the rows with tars_trl.load_questions."
        )
    problems: list[str] = []
    seen: set[str] = set()
    names = [name for name in COLUMNS[1:] if name in dataset.column_names]
    for index, row in enumerate(dataset.select_columns(names).with_format(None)):
        key = row.get("key")
        label = f"row {key!r}" if key else f"row number {index}"
        problems += [f"{label}, {problem}" for problem in row_problems(row, strict, placeholders)]
        if unique and isinstance(key, str) and key in seen:
            problems.append(f"{label}, key: another row has the same. Keys must be unique")
        seen.add(str(key))
    if problems:
        listed = "".join(f"\n  {problem}" for problem in problems[:PROBLEMS_SHOWN])
        more = f"\n  and {len(problems) - PROBLEMS_SHOWN} more" if len(problems) > PROBLEMS_SHOWN else ""
        raise QuestionError(
            f"{len(problems)} fields of {len(dataset)} rows cannot be used:{listed}{more}\nCorrect or remove them."
        )


def row_problems(row: Mapping, strict: bool = True, placeholders: Collection[str] = ()) -> list[str]:
    """What is wrong in the fields of the schema that a row has, as `"field: why"`; see `check_rows`."""
    problems = [
        f"{name}: {row[name]!r:.100} is no text. Give a non-empty string"
        for name in ("key", "question")
        if name in row and (not isinstance(row[name], str) or not row[name].strip())
    ]
    options = row.get("options")
    texts = options if isinstance(options, list) and all(isinstance(option, str) for option in options) else []
    if "options" in row:
        if not texts or not all(option.strip() for option in texts):
            problems.append(f"options: {options!r:.200} is no list of non-empty texts")
        elif len(texts) > len(LETTERS):
            problems.append(f"options: there are {len(texts)}, and letters run from A to Z")
        elif strict and len(texts) == 1:
            problems.append(f"options: {texts[0]!r:.100} is the only one, so there is nothing to choose")
        elif strict and len({option.strip() for option in texts}) < len(texts):
            problems.append(f"options: two of {texts!r:.200} are the same")
    if "answer_index" in row:
        index = row["answer_index"]
        whole = isinstance(index, int) and not isinstance(index, bool)
        if not whole or index < 0 or ("options" in row and index >= len(texts)):
            problems.append(f"answer_index: {index!r} is not from 0 to {len(texts) - 1}, the {len(texts)} options")
    if "prompt" in row:
        problems += [f"prompt: {problem}" for problem in _prompt_problems(row["prompt"], placeholders)]
    return problems


def _prompt_problems(prompt: Any, placeholders: Collection[str]) -> list[str]:
    """What keeps a conversation from being asked: the first thing of its form, or a text that is no text to a model."""
    if not isinstance(prompt, list) or not all(isinstance(turn, Mapping) and turn.get("role") for turn in prompt):
        return [f"{prompt!r:.200} is no list of messages with role and content"]
    for turn in prompt:
        content = turn.get("content")
        parts = [text_part(content)] if isinstance(content, str) else content
        if not isinstance(parts, list) or not all(isinstance(part, Mapping) for part in parts):
            return [f"the content {content!r:.200} of the {turn['role']} turn is neither a text nor a list of parts"]
        for part in parts:
            if part.get("type", "text") != "text" or not isinstance(part.get("text"), str):
                return [
                    f"{part!r:.200} is no part with text. The clip belongs into the audio column, and the trainer puts "
                    "it in its place"
                ]
            control = CONTROL.search(part["text"])
            media = control[0] if control else next((text for text in placeholders if text in part["text"]), None)
            if media is not None:
                return [f"{media!r} in the {turn['role']} turn is no text to the model. Write it in other words"]
    try:
        spoken_text(prompt)
    except QuestionError as error:
        return [str(error)]
    if prompt[-1]["role"] != "user":
        return [f"its last turn is the {prompt[-1]['role']}'s, so nothing is asked. Let it end with the user's"]
    return []


def text_part(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def unify_content(messages: list[dict], parts_used: bool | None = None) -> list[dict]:
    """Every content as a list of parts if one of them is (or others of the data set are: `parts_used`)."""
    if parts_used is None:
        parts_used = any(isinstance(message.get("content"), list) for message in messages)
    if not parts_used:
        return messages
    return [
        {**message, "content": [text_part(message["content"])]} if isinstance(message.get("content"), str) else message
        for message in messages
    ]


def override_prompt(prompt: list[dict], system_prompt: str | None, instruction: str | None) -> list[dict]:
    """`prompt` with another system turn and instruction; None keeps its own, "" removes it."""
    messages = [dict(message) for message in prompt]
    if system_prompt is not None:
        messages = [message for message in messages if message["role"] != "system"]
        messages = [{"role": "system", "content": system_prompt}] * bool(system_prompt) + messages
    if instruction is not None:
        user = max(index for index, message in enumerate(messages) if message["role"] == "user")
        messages[user]["content"] = [text_part(spoken_text(prompt))] + [text_part(instruction)] * bool(instruction)
    return unify_content(messages)
