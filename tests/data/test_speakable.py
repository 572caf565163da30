"""Questions in words, and what cannot be said."""

import pytest

from tars_trl.data.speakable import name_blanks, spoken_form, without_labels
from tars_trl.data.words import Unspeakable, in_words, plain

pytest.importorskip("num2words", reason="the extra `data` is not installed")


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("It is $5.50, $3 million or $1.", "It is five dollars and fifty cents, three million dollars or one dollar."),
        ("Heat 2 kg to 25°C.", "Heat two kilograms to twenty-five degrees Celsius."),
        ("It moves at 3 m/s² for 1 km.", "It moves at three meters per second squared for one kilometer."),
        ("A bar of 21 m and 1.5 cm.", "A bar of twenty-one meters and one point five centimeters."),
        ("In 1995, the 1990s", "In nineteen ninety-five, the nineteen nineties"),
        ("The war of 1914–1918", "The war of nineteen fourteen to nineteen eighteen"),
        ("x² + 3x − 4 = 0", "x squared plus three x minus four equals zero"),
        ("10^-5 and x^3", "ten to the power of minus five and x cubed"),
        (r"$\frac{1}{2}x$ and \(\pi \times 2\)", "one over two x and pi times two"),
        ("1/2 of it, 3/4 of it, 5/8 of it", "one half of it, three quarters of it, five over eight of it"),
        ("50% at 3:05 or 4:00", "fifty percent at three oh five or four o'clock"),
        ("The 21st of 1,234,000", "The twenty-first of one million two hundred and thirty-four thousand"),
        ("e.g. Dr. No vs. the U.S.", "for example Doctor No versus the U S"),
        ("World War II, Type I", "World War two, Type one"),
        ("H2O and C6H12O6, not NaCl", "H two O and C six H twelve O six, not NaCl"),
        ("λ = 5 nm; Δ", "lambda equals five nanometers; delta"),
        ("-5 or 3 - 2, a well-known X-ray", "minus five or three minus two, a well-known X-ray"),
        ("his/her and/or f(x)", "his or her and or f of x"),
        ("“Quoted” (aside) **bold**", "Quoted, aside, bold"),
        ("5 in total, 007, .5", "five in total, zero zero seven, zero point five"),
        ("$6$ of $a + b$ for $5 and $7", "six of a plus b for five dollars and seven dollars"),
        ("test\u2013retest, x-4, ~5, ~Bje \u2228 -i", "test-retest, x minus four, about five, not Bje or minus i"),
        ("one\x80\x99s 2 x 10^8 words\x80\x94said", "one's two times ten to the power of eight words, said"),
        ("the 5\u2032 end of \u2013Q", "the five prime end of minus Q"),
    ],
)  # fmt: skip
def test_in_words(written, said):
    assert in_words(written) == said


def test_blanks_are_named():
    assert name_blanks("Hume calls __ slow") == "Hume calls what slow"
    assert name_blanks("_____can fly? A ___.") == "first blank can fly? A second blank."
    assert name_blanks("___ is to ____ as") == "first blank is to second blank as"


def test_labels_go_only_if_every_option_has_its_own():
    assert without_labels(["A. red", "(B) green", "C: blue"]) == ["red", "green", "blue"]
    assert without_labels(["A. red", "green"]) == ["A. red", "green"]
    assert without_labels(["A. Lincoln", "A. Smith"]) == ["A. Lincoln", "A. Smith"]


def test_spoken_form_in_the_published_shape():
    form = spoken_form("Hume describes reason as:", ["cool and disengaged", "100 % hot"])
    assert form.prompt_for_tts == "Hume describes reason as:\n\nOption A: cool and disengaged\nOption B: 100 % hot"
    assert form.words == "Hume describes reason as.\nOption A: cool and disengaged.\nOption B: one hundred percent hot."
    heard = "hume describes reason as option a cool and disengaged option b one hundred percent hot"
    assert form.prompt_for_tts_tn == heard == plain(form.words)


@pytest.mark.parametrize(
    ("question", "options", "reason"),
    [
        ("Look at the figure below. What is it?", ["a", "b"], "reference"),
        ("As shown in Figure 3, what is it?", ["a", "b"], "reference"),
        ("| a | b |\n|---|---|\n| 1 | 2 |", ["a", "b"], "table"),
        ("What does ```print(1)``` do?", ["a", "b"], "code"),
        ("int x = 1;\nprint(x);\n", ["a", "b"], "code"),
        (r"What is \int x dx?", ["a", "b"], "formula"),
        (r"What is $\weird{x}$?", ["a", "b"], "formula"),
        ("a = b + c * d - e / f + g = h", ["a", "b"], "formula"),
        ("What does 日本 mean?", ["a", "b"], "script"),
        ("word " * 500, ["a", "b"], "too long"),
        ("Which?", [f"number {n}" for n in range(27)], "too long"),
        ("Which?", ["2", "two"], "same options"),
        ("Which?", ["red", " "], "no text"),
        ("...", ["red", "blue"], "no text"),
    ],
)
def test_what_cannot_be_said(question, options, reason):
    with pytest.raises(Unspeakable) as error:
        spoken_form(question, options)
    assert error.value.reason == reason


@pytest.mark.parametrize(
    "innocent", ["Who painted the picture?", "What is a table made of?", "She maps the graph of y."]
)
def test_a_word_alone_is_no_figure(innocent):
    assert spoken_form(innocent, ["wood", "stone"]).words
