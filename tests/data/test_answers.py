"""From completions to choices: what each extractor forgives, over generated completions."""

import re
import string
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tars_trl.data.answers import answer_text, extract_strict, extract_voicebench, is_well_formed, voicebench_guess
from tars_trl.evaluation.xfinder import XFinder, xfinder_choice, xfinder_prompt

OPTIONS = ["red", "a blue one", "the sea", "green"]
LETTERS = "ABCD"

# Text of any script, without tags.
prose = st.text(st.characters(exclude_characters="<>", exclude_categories=["Cs"]), max_size=80)
thoughts = prose.map(lambda text: f"<think>{text}</think>")
index = st.integers(0, 3)
wording = st.sampled_from(
    ["The answer is {}.", "the answer is: {}", "{}", "({})", "[{}].", "  {}! ", "The answer is\n{}."]
)
wide = settings(max_examples=200, deadline=None)


@wide
@given(thoughts, index, wording, st.booleans())
def test_strict_reads_letter_and_text_whatever_was_thought(thought, right, form, by_text):
    said = OPTIONS[right] if by_text else LETTERS[right]
    if by_text and any(mark in form for mark in "()[]"):
        form = "The answer is {}."
    completion = f"{thought}<answer>{form.format(said)}</answer>"
    assert extract_strict(completion, OPTIONS) == right
    assert by_text or extract_strict(completion) == right


@wide
@given(prose, index)
def test_strict_needs_the_element(text, right):
    """No tags, a tag left open, a tag inside the thoughts: no choice."""
    said = f"The answer is {LETTERS[right]}."
    for completion in (
        f"{text}{said}",
        f"{text}<answer>{said}",
        f"{said}</answer>",
        f"<think><answer>{said}</answer>{text}</think>",
    ):
        assert extract_strict(completion, OPTIONS) is None


@wide
@given(index, index, prose)
def test_strict_several_answers_must_agree(first, second, between):
    completion = f"<answer>{LETTERS[first]}</answer>{between}<answer>The answer is {LETTERS[second]}.</answer>"
    assert extract_strict(completion, OPTIONS) == (first if first == second else None)


@wide
@given(index, index, st.sampled_from(["{}, no, {}", "{} or {}", "not {} but {}", "{}. Wait: {}", "{}{}"]))
def test_strict_takes_no_correction_inside_an_answer(first, second, form):
    assert extract_strict(f"<answer>{form.format(LETTERS[first], LETTERS[second])}</answer>", OPTIONS) is None


@wide
@given(st.text(string.ascii_letters, min_size=2, max_size=12).filter(lambda word: word.lower() not in OPTIONS))
def test_strict_takes_no_letter_inside_a_word(word):
    assert extract_strict(f"<answer>{word}</answer>", OPTIONS) is None
    assert extract_strict(f"<answer>The answer is {word}.</answer>", OPTIONS) is None


@wide
@given(st.text(max_size=200))
def test_extractors_never_fail_and_never_leave_the_options(completion):
    for options in (["x"], ["x", "y", "z"], OPTIONS, None):
        for extract in (extract_strict, extract_voicebench):
            found = extract(completion, options)
            assert found is None or 0 <= found < (26 if options is None else len(options))


@pytest.mark.parametrize(
    ("answer", "options"),
    [
        ("", ["...", "x"]),  # an option of punctuation alone is not what an empty answer means
        ("The answer is .", ["!", "x"]),
        ("Ａ", OPTIONS),  # full-width, not the letter
        ("А", OPTIONS),  # Cyrillic
        (
            "\u212a",
            [f"number {n}" for n in range(13)],
        ),  # the Kelvin sign is a k for a regular expression that ignores case
        ("E", OPTIONS),
        ("red", ["red", "RED "]),  # two options share the text
    ],
)
def test_strict_reads_nothing(answer, options):
    assert extract_strict(f"<answer>{answer}</answer>", options) is None


def test_strict_knows_no_case_in_texts():
    assert extract_strict("<answer>THE SEA</answer>", OPTIONS) == 2
    assert extract_strict("<answer>STRASSE</answer>", ["Straße", "Weg"]) == 0


M = 1_000_000
LONG = {
    "answers left open": "<answer>" * (M // 8),
    "left open in thoughts": "<think>" + "<answer>The answer is A. " * (M // 25) + "</think><answer>C.</answer>",
    "answers that end only": "</answer>" * (M // 9),
    "answers that differ": "".join(f"<answer>{number}</answer>" for number in range(M // 22)),
    "answers that agree": "<answer>The answer is C.</answer>" * (M // 34),
    "thoughts left open": "<think>" * (M // 7),
    "a thought": f"<think>{'x ' * (M // 2)}</think><answer>The answer is C.</answer>",
    "a wide answer": f"<answer>The answer is{' ' * M}C and D</answer>",
    "a wide well formed answer": f"<think>x</think>{' ' * M}<answer>The answer is{' ' * M}</answer>",
    "blanks": " " * M,
}


@pytest.mark.parametrize("name", LONG)
def test_a_megabyte_is_read_in_under_a_second(name):
    """Measured: 0.05 s and less; a regular expression for the element took over five minutes for the first one."""
    completion = LONG[name]
    start = time.process_time()
    for read in (lambda text: extract_strict(text, OPTIONS), answer_text, is_well_formed):
        read(completion)
    assert time.process_time() - start < 1


def test_very_long_completions():
    long = LONG["left open in thoughts"]
    assert extract_strict(long, OPTIONS) == extract_voicebench(long, OPTIONS) == 2 and answer_text(long) == "C."
    assert extract_strict(LONG["answers that agree"], OPTIONS) == 2
    assert is_well_formed(LONG["a thought"]) and not is_well_formed(LONG["a wide well formed answer"])
    assert extract_voicebench("is: " * 250_000, OPTIONS) is None


# Whatever a model may say: tags in any order, sentences, blanks of every kind, letters that only look like letters.
pieces = st.sampled_from(
    ["<think>", "</think>", "<answer>", "</answer>", "The answer is ", "the  answer\nis", "A", "b", " C", "Z", "red"]
    + ["a blue one", ".", "!", "(", "[", "]", ")", ":", " ", "\n", "\x1c", "\u2003", "\u212a", "Ａ", "<", "x"]
)
said = st.lists(pieces, max_size=14).map("".join)
completions = st.one_of(said, said.map(lambda text: f"<think>x</think><answer>{text}</answer>"), st.text(max_size=60))

ELEMENT = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
FORM = re.compile(
    r"\s*<think>(?:(?!</?think>|</?answer>).)+</think>\s*"
    r"<answer>\s*The answer is [\(\[]?[A-Z][\)\]]?\.?\s*</answer>\s*",
    re.DOTALL,
)


@pytest.mark.slow
@settings(max_examples=3000, deadline=None)
@given(completions, st.sampled_from([None, ["x"], OPTIONS, ["A", "b", "the answer is", "z"], [".", " "]]))
def test_readers_do_what_the_short_slow_expressions_say(completion, options):
    """The format and the element as regular expressions, which are easy to read and quadratic."""
    behind = completion.rpartition("</think>")[2]
    elements = ELEMENT.findall(behind)
    assert answer_text(completion) == (elements[-1] if elements else behind).strip()
    assert is_well_formed(completion) == (FORM.fullmatch(completion) is not None)
    alone = {extract_strict(f"<answer>{element}</answer>", options) for element in elements}
    assert extract_strict(completion, options) == (alone.pop() if len(alone) == 1 else None)


# ---- VoiceBench ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("completion", "chosen"),
    [
        # Each was run through VoiceBench's own evaluator (src/evaluator/mcq.py at 5338154).
        ("The answer is C.", 2),
        ("B", 1),
        ("D. green", 3),
        ("The correct answer is **B. a blue one**", 1),
        ("I would choose option D, it fits", 3),
        ("I'd say C. the others are wrong", 2),
        ("So the answer is \\( \\boxed{A} \\)", 0),
        ("The answer is because it is wet", 1),  # "the answer is b": the benchmark is that forgiving
        ("Option C is wrong, but the answer is A", 0),
        ("(b) or (a)", 0),  # letters are tried in order
        ("red", None),
        ("", None),
        ("Choice C", None),
    ],
)
def test_voicebench_rule(completion, chosen):
    assert extract_voicebench(completion, OPTIONS) == chosen


def test_voicebench_is_fed_the_answer_text():
    """Letters that were only thought about do not count."""
    completion = "<think>Is it A. or (B)? The answer is A.</think><answer>The answer is D.</answer>"
    assert answer_text(completion) == "The answer is D."
    assert extract_voicebench(completion, OPTIONS) == 3
    assert answer_text("<think>A.</think> Surely B.") == "Surely B."
    assert answer_text("<answer>A</answer> no, <answer>B</answer>") == "B"


def test_voicebench_guess_depends_on_seed_and_question_alone():
    guesses = [voicebench_guess(f"q{number}", OPTIONS, 0) for number in range(400)]
    assert guesses == [voicebench_guess(f"q{number}", OPTIONS, 0) for number in range(400)]
    assert guesses != [voicebench_guess(f"q{number}", OPTIONS, 1) for number in range(400)]
    assert all(60 <= guesses.count(option) <= 140 for option in range(4))  # 100 +- 40, over four standard deviations
    assert {voicebench_guess(f"q{number}", OPTIONS[:2], 0) for number in range(50)} == {0, 1}


# ---- xFinder -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "chosen"),
    [
        ("B", 1),
        (" b.\n", 1),
        ("A Blue One", 1),
        ("green\nQuestion: another", 3),
        ("[No valid answer]", None),
        ("E", None),
        ("", None),
        ("B and C", None),
    ],
)
def test_xfinder_reply(reply, chosen):
    assert xfinder_choice(reply, OPTIONS) == chosen


def test_xfinder_prompt_holds_question_completion_and_range():
    prompt = xfinder_prompt("Which?", "The answer is C.", ["x", 'y "z"'])
    assert prompt.startswith("<|System|>:") and prompt.endswith("<|Bot|>:")
    assert 'Question: """Which?"""' in prompt and 'Output sentences: """The answer is C."""' in prompt
    assert '[["A", "x"], ["B", "y \\"z\\""]]' in prompt


def test_xfinder_runs_batched_through_transformers(tmp_path, monkeypatch):
    """A random extractor of the real kind: a padded batch replies as single rows do."""
    import torch
    from tiny_omni import TEST_CORPUS, build_tokenizer
    from transformers import Qwen2Config, Qwen2ForCausalLM

    tokenizer = build_tokenizer(TEST_CORPUS)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    Qwen2ForCausalLM(Qwen2Config(vocab_size=len(tokenizer), **sizes, **heads, **ends)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    finder = XFinder(str(tmp_path), batch_size=3)
    prompts = [xfinder_prompt("Which?" * count, "B." * count, OPTIONS) for count in (1, 5, 2)]
    together = finder._replies(prompts)
    assert together == [finder._replies([prompt])[0] for prompt in prompts] and len(set(together)) > 1

    done = []

    def replies(batch):
        done.append(len(batch))
        return ["B" if "one?" in prompt else "nonsense" for prompt in batch]

    monkeypatch.setattr(finder, "_replies", replies)
    found = finder(["one?", "two?", "one?", "one?"], ["x"] * 4, [OPTIONS] * 4)
    assert found == [1, None, 1, 1] and done == [3, 1]
