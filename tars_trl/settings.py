"""One vocabulary of settings: fields that check themselves, and YAML files and command lines parsed into them.

A command's settings are a dataclass of `setting` fields; what several commands have is in the base classes at the end,
with one name, one default and one help text. `check` runs when an instance is made, wherever its values come from.
"""

import argparse
import dataclasses
import difflib
import math
import os
import re
import sys
import types
import typing
import warnings
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from .errors import EngineError, SettingError, VoiceError
from .files import json_object

SHOWN_ERRORS = (ValueError, OSError, ImportError, VoiceError, EngineError)
"""What `run` shows as a sentence; anything else is a fault of the program and keeps its traceback."""


# ---- Fields --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rule:
    """What a value must be beside of its field's type. None values of optional fields are not looked at."""

    least: float | None = None
    """Smallest number allowed."""
    above: float | None = None
    """Numbers have to be larger than this one."""
    most: float | None = None
    """Largest number allowed."""
    below: float | None = None
    """Numbers have to be smaller than this one."""
    choices: tuple[str, ...] = ()
    """The texts that are allowed; of a list, as its items."""
    required: bool = False
    """Whether None or nothing at all is refused."""


def setting(default: Any, help: str, *, positional: bool = False, **rule: Any) -> Any:
    """A dataclass field with its help text and what its value must be.

    Args:
        default: the field's default; a list is copied for each instance.
        help: whole sentences: what it is, its unit, its scope (per device, per process, per step), its source.
        positional: it may be given on the command line without its name, as the first word.
        rule: arguments of `Rule`.
    """
    metadata = {"help": help.replace("%", "%%"), "rule": Rule(**rule), "positional": positional}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def check(settings: Any, inherited: dict[str, Rule] | None = None) -> None:
    """Refuse what a field of a dataclass instance cannot hold; split lists that are written as `a,b`.

    Args:
        settings: an instance whose `setting` fields are checked. Other fields (of TRL and transformers) must not hold
            NaN or infinity, and are JSON objects where they are texts named `…_kwargs`.
        inherited: rules for such other fields, by name.

    Raises:
        SettingError: the first field that cannot work: its name and value, why, and what to give instead.
    """
    hints = typing.get_type_hints(type(settings))
    for described in dataclasses.fields(settings):
        name, value = described.name, getattr(settings, described.name, None)
        if name.endswith("_kwargs") and isinstance(value, str):  # on a command line; of a YAML file they are mappings
            value = json_object(value, f"{name}={value!r}")
            setattr(settings, name, value)
        if not _is_finite(value):
            raise SettingError(f"{name}={value!r} is not a finite number. Give one, or leave it out.")
        rule = described.metadata.get("rule", (inherited or {}).get(name))
        if rule is None:
            continue
        if fits([], hints[name]) and isinstance(value, str | list):
            value = _listed(value)
            setattr(settings, name, value)
        if rule.required and (value is None or value in ("", [])):
            raise SettingError(f"{name} is not given, and nothing can be done without it. Pass --{name}.")
        if not fits(value, hints[name]):
            raise SettingError(f"{name}={value!r} is a {type(value).__name__}. Give {_in_words(hints[name])}.")
        if value is not None:
            _check_value(name, value, rule)


def _check_value(name: str, value: Any, rule: Rule) -> None:
    for item in value if isinstance(value, list) else [value]:
        if rule.choices and isinstance(item, str) and item not in rule.choices:
            raise SettingError(f"{name}={item!r} is not a choice. Use one of {', '.join(rule.choices)}.")
        if isinstance(item, bool) or not isinstance(item, int | float):
            continue
        limits = [f"{rule.least:g} or more"] if rule.least is not None else []
        limits += [f"more than {rule.above:g}"] if rule.above is not None else []
        limits += [f"at most {rule.most:g}"] if rule.most is not None else []
        limits += [f"less than {rule.below:g}"] if rule.below is not None else []
        low = (rule.least is not None and item < rule.least) or (rule.above is not None and item <= rule.above)
        high = (rule.most is not None and item > rule.most) or (rule.below is not None and item >= rule.below)
        if low or high:
            raise SettingError(f"{name}={item!r} is out of range. Give {' and '.join(limits)}.")


def _is_finite(value: Any) -> bool:
    """Whether no number is NaN or infinite, in lists and dicts neither."""
    if isinstance(value, dict | list | tuple):
        return all(map(_is_finite, value.values() if isinstance(value, dict) else value))
    return not isinstance(value, float) or math.isfinite(value)


def _listed(value: str | list) -> list:
    parts = [value] if isinstance(value, str) else value
    split = [part.split(",") if isinstance(part, str) else [part] for part in parts]
    return [item.strip() if isinstance(item, str) else item for items in split for item in items if item != ""]


def _in_words(hint: Any) -> str:
    words = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", types.NoneType: "nothing"}
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(_in_words(option) for option in typing.get_args(hint))
    if typing.get_origin(hint) is list:
        return f"a list, each item {_in_words(typing.get_args(hint)[0])}"
    return words.get(hint, str(hint).replace("typing.", ""))


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a type hint; a whole number is a number, True is none."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return any(fits(value, option) for option in typing.get_args(hint))
    if typing.get_origin(hint) is typing.Literal:
        return value in typing.get_args(hint)
    if typing.get_origin(hint) is list:
        return isinstance(value, list) and all(fits(item, typing.get_args(hint)[0]) for item in value)
    if typing.get_origin(hint) is tuple:  # of JSON it is a list
        kinds = typing.get_args(hint)
        return isinstance(value, list | tuple) and len(value) == len(kinds) and all(map(fits, value, kinds))
    if typing.get_origin(hint) is dict:
        return isinstance(value, dict) and all(fits(item, typing.get_args(hint)[1]) for item in value.values())
    if hint is Any:
        return True
    if hint is float and isinstance(value, int) and abs(value) > sys.float_info.max:
        return False
    if hint in (int, float):
        return isinstance(value, (int, float)[: 1 + (hint is float)]) and not isinstance(value, bool)
    plain = typing.get_origin(hint) or hint
    if isinstance(plain, type) and issubclass(plain, str):  # also enumerations of strings
        return isinstance(value, str)
    return not isinstance(plain, type) or isinstance(value, plain)


# ---- Files and command lines ---------------------------------------------------------------------------------------


def run(main: Callable[[], Any]) -> None:
    """Run a command's `main`; what it refuses is shown as a sentence, and with `--debug` as a traceback."""
    import torch  # a second to import, of which parsing needs nothing

    words = sys.argv
    debug = [n for n, w in enumerate(words) if w == "--debug" and (n + 1 == len(words) or words[n + 1][:2] == "--")]
    for place in debug:  # transformers has a setting of this name, which takes a value
        del words[place]
    # Of transformers 5.23 about TRL 1.16's own settings and calls; can go with TRL's next release.
    warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*", category=FutureWarning)
    if not torch.accelerator.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed else warns in each process that it found none
    try:
        main()
    except SHOWN_ERRORS as error:
        if debug:
            raise
        print(f"{Path(words[0]).name}: {error}\n(--debug shows where this comes from.)", file=sys.stderr)
        sys.exit(2)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()  # whose threads may abort an exit


def parse(*classes: type, args: Sequence[str] | None = None, description: str | None = None) -> tuple[Any, ...]:
    """Instances of the dataclasses, from `--config FILE.yaml` and overrides such as `--learning_rate 1e-5`.

    A file may name another one as its `base` (see `read_settings`). The first word is the value of the field that is
    `positional`, where a class has one.

    Args:
        classes: dataclasses whose fields are the arguments.
        args: the command line; None for the program's own.
        description: what `--help` says first, usually the module's `__doc__`.

    Raises:
        SettingError: a name that no dataclass knows (the nearest one is named), a value of another type than its
            field's, or one that its field refuses.
    """
    from trl import TrlParser

    class Parser(TrlParser):
        groups: dict[str, Any]

        def add_argument(self, *names: str, rule: Any = None, positional: bool = False, **kwargs: Any) -> Any:
            # What a field's metadata holds for us is not argparse's; what belongs together stands together in --help.
            title = titles.get(names[0].removeprefix("--").removeprefix("no_"))
            if title is None:
                return super().add_argument(*names, **kwargs)
            self.groups = vars(self).get("groups") or {name: self.add_argument_group(name) for name in order}
            return self.groups[title].add_argument(*names, **kwargs)

        def error(self, message: str) -> typing.NoReturn:
            raise SettingError(
                f"{message[0].upper()}{message[1:]}. Correct the command line; --help lists what it takes."
            )

    titles, order = _help_groups(classes)
    parser = Parser(
        list(classes),
        allow_abbrev=False,
        usage="%(prog)s [--config FILE.yaml] [--name value …]",
        description=description,
        formatter_class=_HelpFormatter,
        conflict_handler="resolve",
    )
    words, values = check_names(classes, sys.argv[1:] if args is None else args)
    parser.set_defaults_with_config(**values)
    *instances, remaining = parser.parse_args_into_dataclasses(args=words, return_remaining_strings=True)
    if remaining:
        raise SettingError(f"{remaining[0]!r} belongs to no setting. Write --name value; --help lists the names.")
    return tuple(instances)


def check_names(classes: Sequence[type], args: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """See that the settings of a command line, and of the files behind its `--config`, are those of the dataclasses.

    Returns:
        the words without the files, and the files' settings, of which those of a later one count.

    Raises:
        SettingError: a name that no dataclass knows (the nearest one is named), a value of another type than its
            field's in a file.
    """
    words = [part for arg in args for part in arg.split("=", arg.startswith("--"))]
    fields = [described for cls in classes for described in dataclasses.fields(cls) if described.init]
    names = [described.name for described in fields]
    values: dict[str, Any] = {}
    positional = [described.name for described in fields if described.metadata.get("positional")]
    if positional and words and not words[0].startswith("-"):
        words.insert(0, f"--{positional[0]}")
    while "--config" in words[:-1]:
        place = words.index("--config")
        given = read_settings(words[place + 1])
        _check_types(given, classes, words[place + 1])
        values |= given
        del words[place : place + 2]
    for word in words:
        name = word[2:].replace("-", "_")
        # A word with a space in it is a value, such as the arguments of another command.
        if (
            word.startswith("--")
            and " " not in word
            and not {name, name.removeprefix("no_")} & {*names, "help", "config"}
        ):
            raise SettingError(f"{word}: there is no such setting here. {_nearest(name, names)}")
    return words, values


def _help_groups(classes: Sequence[type]) -> tuple[dict[str, str], list[str]]:
    """Title of the group of `--help` for each field, and the titles in order: our own classes before those of others.

    A field belongs to the class that names it last; a class of ours is titled by its docstring's first sentence.
    """
    titles: dict[str, str] = {}
    ours: list[str] = []
    others: list[str] = []
    for base in (base for cls in classes for base in cls.__mro__ if dataclasses.is_dataclass(base)):
        own = base.__module__.partition(".")[0] not in ("trl", "transformers")
        first = re.split(r"[.:]\s", f"{base.__doc__} ".strip() + " ")[0]
        title = " ".join(first.split()) if own else f"Of {base.__module__.partition('.')[0]}'s {base.__name__}"
        (ours if own else others).append(title)
        for name in base.__annotations__:
            titles.setdefault(name, title)
    return titles, list(dict.fromkeys([*ours, *others]))


class _HelpFormatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """The description as it is written, and every default."""


class _NamesOnce(yaml.SafeLoader):
    """YAML in which no name is written twice: of two values one would be lost."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for name in names:
            if names.count(name) > 1 and name != "<<":
                raise yaml.constructor.ConstructorError(None, None, f"{name} is written twice", node.start_mark)
        return super().construct_mapping(node, deep)


def read_settings(path: str | Path) -> dict[str, Any]:
    """Settings of a YAML file, over those of the file that it names as its `base`, relative to itself, if it does.

    Raises:
        SettingError: there is no such file, it holds no settings, or it is its own base.
    """
    values: dict[str, Any] = {}
    below, seen = Path(path), set()
    while True:
        seen.add(below.resolve())
        if not below.is_file():
            raise SettingError(f"{below}: there is no such file of settings. Correct the path.")
        try:
            content = yaml.load(below.read_text(encoding="utf-8"), _NamesOnce) or {}
        except (yaml.YAMLError, ValueError, AttributeError, RecursionError) as error:  # PyYAML's of odd dates, numbers
            raise SettingError(f"{below} is no YAML, {' '.join(str(error).split())}. Correct that line.") from error
        if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
            names = f" with the names {list(content)}" if isinstance(content, dict) else ""
            raise SettingError(
                f"{below}: it holds a {type(content).__name__}{names}, no settings. Write lines like `seed: 0`."
            )
        base = content.pop("base", None)
        if not isinstance(base, str | None):
            raise SettingError(f"{below}: base: {base!r} is a {type(base).__name__}. Give the path of a file.")
        values = content | values
        if base is None:
            return values
        below = below.parent / base
        if below.resolve() in seen:
            raise SettingError(f"{path}: its base {base} leads back to itself. Name a file that ends the chain.")


def _nearest(name: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, names, 1)
    return f"Did you mean {near[0]}?" if near else "Remove it, or correct its name."


def _check_types(values: dict[str, Any], classes: Sequence[type], path: str) -> None:
    hints: dict[str, Any] = {}
    for cls in classes:
        hints |= {field.name: typing.get_type_hints(cls).get(field.name, Any) for field in dataclasses.fields(cls)}
    for name, value in values.items():
        if name not in hints:
            raise SettingError(f"{path}: {name} is no setting of this recipe. {_nearest(name, list(hints))}")
        if not fits(value, hints[name]):
            raise SettingError(
                f"{path}: {name}: {value!r} is a {type(value).__name__} where {_in_words(hints[name])} belongs. "
                "Correct it (YAML reads a bare no, off or yes as true or false, and 1e-5 as text: write 'no', 1.0e-5)."
            )


def defaults_of(cls: type) -> dict[str, Any]:
    """The fields of a dataclass that have a plain default, with it."""
    return {d.name: d.default for d in dataclasses.fields(cls) if d.default is not MISSING}


# ---- What several commands have ------------------------------------------------------------------------------------


@dataclass
class Settings:
    """Base of a command's settings: checked when made."""

    def __post_init__(self) -> None:
        check(self)


@dataclass
class ModelSettings(Settings):
    """Which model."""

    model: str | None = setting(None, "Speech LLM: hub id or folder.", required=True)
    model_revision: str | None = setting(
        None, "Commit, tag or branch of the model on the hub. None: the run's own for an adapter, else its native one."
    )
    dtype: str = setting(
        "auto",
        "Type the weights are loaded in. auto: as saved; float32 on a CPU, and where the whole model is trained.",
        choices=("auto", "bfloat16", "float16", "float32"),
    )
    attn_implementation: str | None = setting(
        None, "Attention of transformers: sdpa, flash_attention_2, eager. None: the class's default."
    )


@dataclass
class AskedModelSettings(ModelSettings):
    """Which model is asked: `model` may itself be an adapter, which then names its base."""

    adapter: str | None = setting(None, "LoRA adapter for `model`: hub id or folder.")
    use_cpu: bool = setting(False, "Run on the CPU although there is an accelerator.")


@dataclass
class BackendSettings(Settings):
    """What samples completions."""

    backend: str = setting(
        "transformers",
        "What samples: transformers, or vllm: an engine a process.",
        choices=("transformers", "vllm"),
    )
    vllm_max_model_length: int | None = setting(
        None,
        "Most tokens of prompt and completion that vLLM has room for. None: the model's own limit.",
        least=1,
    )
    vllm_gpu_memory_utilization: float = setting(
        0.9, "Share of the accelerator's memory that vLLM takes (vLLM: 0.9).", above=0, most=1
    )


@dataclass
class QuestionSettings(Settings):
    """Which questions."""

    dataset: str | None = setting(None, "Questions: hub id, folder or file.", required=True)
    split: str = setting("train", "Split of the questions.")
    limit: float | None = setting(
        None,
        "Use this many questions only, drawn with `seed`; a number below 1 is a share of them. None: all.",
        above=0,
    )
    system_prompt: str | None = setting(
        None, "System prompt of questions that bring none, the same in both twins. None: the method's; '': none."
    )


@dataclass
class TrainingSettings(ModelSettings, QuestionSettings):
    """Which model is trained on which questions. Everything else is in the trainer's own configuration."""

    column_map: list[str] = setting(
        [], "Columns of the training data under other names, theirs=ours; as question_audio=audio text=transcript."
    )
    eval_dataset: str | None = setting(None, "Questions for `eval_strategy`: hub id, folder or file.")
    eval_split: str = setting("test", "Split of the questions to evaluate on.")
    eval_limit: float | None = setting(None, "Evaluate on this many questions only, as `limit`.", above=0)


@dataclass
class AudioSettings(Settings):
    """Which clips are usable."""

    max_audio_seconds: float = setting(
        30.0,
        "Longest clip, in seconds. A longer one is refused before anything runs; audio is never truncated.",
        above=0,
    )
    max_audio_megabytes: float = setting(
        100.0,
        "Largest clip as a file, in megabytes. A larger one is not read, and treated as `on_bad_audio` says.",
        above=0,
    )
    audio_anywhere: bool = setting(
        False, "Also open clips whose path leads out of the data set's folder. Only for data sets that you trust."
    )
    on_bad_audio: str = setting(
        "refuse",
        "What to do about clips that cannot be used: `refuse` to start, naming them, or `skip` and count them.",
        choices=("refuse", "skip"),
    )


@dataclass
class DecodingSettings(Settings):
    """How completions are sampled."""

    batch_size: int = setting(
        8,
        "Questions in a forward pass, per process. With backend=vllm, given to it at a time: hundreds.",
        least=1,
    )
    max_completion_length: int = setting(1024, "Most tokens of a completion (paper, table 5: 1024).", least=1)
    temperature: float = setting(0.0, "Of sampling; 0 is greedy decoding.", least=0)
    top_p: float = setting(
        1.0, "Nucleus of sampling: the smallest set of tokens with this probability.", above=0, most=1
    )
    top_k: int = setting(0, "Most likely tokens to sample from; 0: all.", least=0)
    repetition_penalty: float = setting(1.0, "Penalty on tokens that occurred before; 1: none.", above=0)
    seed: int = setting(0, "Of every draw: questions, samples, resamples.", least=0)

    @property
    def generation(self) -> dict[str, Any]:
        """How completions are decoded, under transformers' names."""
        decoding = {"do_sample": self.temperature > 0, "repetition_penalty": self.repetition_penalty}
        if self.temperature > 0:
            decoding |= {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}
        return decoding
