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

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from datasets import Dataset

from ..errors import QuestionError

COLUMNS = ("audio", "prompt", "question", "options", "answer_index", "key")
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
PROBLEMS_SHOWN = 20

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
    return one_kind_of_content([*messages, {"role": "user", "content": user}])


def spoken_text(prompt: Sequence[Mapping]) -> str:
    """The part of a written prompt that is spoken: the first text of the last user turn.

    Raises:
        QuestionError: no user turn, or no text in the last one.
    """
    content = next((message["content"] for message in reversed(prompt) if message["role"] == "user"), None)
    if content is None:
        roles = [message["role"] for message in prompt]
        raise QuestionError(f"a prompt with the roles {roles}: there is no user turn to speak. Add one.")
    parts = [content] if isinstance(content, str) else [part["text"] for part in content if part["type"] == "text"]
    if not parts or not (parts[0] or "").strip():
        raise QuestionError("the last user turn holds no text: there is nothing to speak. Write the question there.")
    return parts[0]


def check_questions(dataset: Dataset) -> None:
    """Check the rows against the schema, without looking at the audio (`tars_trl.data.audio.check_audio` does).

    Raises:
        QuestionError: columns are missing, or fields are wrong: the first 20, by row key and field.
    """
    missing = [name for name in COLUMNS if name not in dataset.column_names]
    if missing:
        raise QuestionError(
            f"The data set has the columns {dataset.column_names}: {missing} of the question schema are missing. "
            "Rename columns with column_map={'theirs': 'ours'}, or convert the rows with tars_trl.data.load_questions."
        )
    problems, seen = [], set()
    for index, row in enumerate(dataset.select_columns(list(COLUMNS[1:])).with_format(None)):
        label = f"row {row['key']!r}" if row["key"] else f"row number {index}"
        problems += [f"{label}, {problem}" for problem in _row_problems(row)]
        if row["key"] in seen:
            problems.append(f"{label}, key: another row has the same. Keys must be unique")
        seen.add(row["key"])
    if problems:
        shown = "".join(f"\n  {problem}" for problem in problems[:PROBLEMS_SHOWN])
        more = f"\n  and {len(problems) - PROBLEMS_SHOWN} more" if len(problems) > PROBLEMS_SHOWN else ""
        raise QuestionError(
            f"{len(problems)} fields of {len(dataset)} rows cannot be used:{shown}{more}\nCorrect them."
        )


def _row_problems(row: Mapping) -> list[str]:
    """What is wrong in one row, field by field."""
    problems = []
    if not isinstance(row["key"], str) or not row["key"].strip():
        problems.append(f"key: {row['key']!r} is no name. Give a non-empty string")
    if not isinstance(row["question"], str) or not row["question"].strip():
        problems.append("question: it is empty")
    options = row["options"] if isinstance(row["options"], list) else []
    if not options or not all(isinstance(option, str) and option.strip() for option in options):
        problems.append(f"options: {row['options']!r} is no list of non-empty texts")
    index = row["answer_index"]
    if not isinstance(index, int) or not 0 <= index < len(options):
        problems.append(f"answer_index: {index!r} is not from 0 to {len(options) - 1}, the {len(options)} options")
    try:
        spoken_text(row["prompt"])
    except QuestionError as error:
        problems.append(f"prompt: {error}")
    except (KeyError, TypeError):
        problems.append(f"prompt: {row['prompt']!r} is no list of messages with role and content")
    return problems


def text_part(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def one_kind_of_content(messages: list[dict], parts_used: bool | None = None) -> list[dict]:
    """Every content as a list of parts if one of them is (or others of the data set are: `parts_used`)."""
    if parts_used is None:
        parts_used = any(isinstance(message.get("content"), list) for message in messages)
    if not parts_used:
        return messages
    return [
        {**message, "content": [text_part(message["content"])]} if isinstance(message.get("content"), str) else message
        for message in messages
    ]


def overridden(prompt: list[dict], system_prompt: str | None, instruction: str | None) -> list[dict]:
    """`prompt` with another system turn and instruction; None keeps its own, "" removes it."""
    messages = [dict(message) for message in prompt]
    if system_prompt is not None:
        messages = [message for message in messages if message["role"] != "system"]
        messages = [{"role": "system", "content": system_prompt}] * bool(system_prompt) + messages
    if instruction is not None:
        user = max(index for index, message in enumerate(messages) if message["role"] == "user")
        messages[user]["content"] = [text_part(spoken_text(prompt))] + [text_part(instruction)] * bool(instruction)
    return one_kind_of_content(messages)
