"""Questions in words, and what cannot be said."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tars_trl.errors import UnspeakableError
from tars_trl.speaking.speakable import name_blanks, spoken_form, strip_labels
from tars_trl.speaking.words import bare_words, put_into_words


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
        ("1/2 of it, 3/4 of it, 5/8 of it", "one half of it, three quarters of it, five eighths of it"),
        ("50% at 3:05 or 4:00", "fifty percent at three oh five or four o'clock"),
        ("The 21st of 1,234,000", "The twenty-first of one million two hundred and thirty-four thousand"),
        ("e.g. Dr. No vs. the U.S.", "for example Doctor No versus the U S"),
        ("World War II, Type I", "World War two, Type one"),
        ("H2O and C6H12O6, not NaCl", "H two O and C six H twelve O six, not NaCl"),
        ("λ = 5 nm; Δ", "lambda equals five nanometers; delta"),
        ("-5 or 3 - 2, a well-known X-ray", "minus five or three minus two, a well-known X-ray"),
        ("his/her and/or f(x)", "his or her and or f of x"),
        ("pulse 70/min, 90mmol/l", "pulse seventy per minute, ninety millimoles per liter"),
        ("who uses I/me/my or a/an", "who uses I or me or my or a or an"),
        ("“Quoted” (aside) **bold**", "Quoted, aside, bold"),
        ("5 in total, 007, .5", "five in total, zero zero seven, zero point five"),
        ("$6$ of $a + b$ for $5 and $7", "six of a plus b for five dollars and seven dollars"),
        ("test\u2013retest, x-4, ~5, ~Bje \u2228 -i", "test-retest, x minus four, about five, not Bje or minus i"),
        ("one\x80\x99s 2 x 10^8 words\x80\x94said", "one's two times ten to the power of eight words, said"),
        ("the 5\u2032 end of \u2013Q", "the five prime end of minus Q"),
    ],
)  # fmt: skip
def test_in_words(written, said):
    assert put_into_words(written) == said


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("What is 7-4? What is 5 – 3?", "What is seven minus four? What is five minus three?"),
        ("20-4*3", "twenty minus four times three"),
        ("What is 9-4-2?", "What is nine minus four minus two?"),
        ("f(x) = 2x-3, n-1, 2-x", "f of x equals two x minus three, n minus one, two minus x"),
        ("solve x^2-3=0 and y = x-z", "solve x squared minus three equals zero and y equals x minus z"),
        ("x-(y+1)", "x minus, y plus one"),
        ("100-37 = ?", "one hundred minus thirty-seven equals?"),
        ("in 1914-1918 and 1914-18", "in nineteen fourteen to nineteen eighteen and nineteen fourteen to eighteen"),
        ("pages 10-12, a range of 1-5", "pages ten to twelve, a range of one to five"),
        ("10-12 years, 10 - 12 months", "ten to twelve years, ten to twelve months"),
        ("10%–20%, 5-10 kg, 10-15%", "ten percent to twenty percent, five to ten kilograms, ten to fifteen percent"),
        ("$10-$20, $10-20 million", "ten dollars to twenty dollars, ten to twenty million dollars"),
        ("a 5-4 decision", "a five to four decision"),
        ("the 5'-3' strand", "the five prime to three prime strand"),
        ("C-14 is a 3-D, 4-year-old p-value", "C-fourteen is a three-D, four-year-old p-value"),
        ("Freud - the father, vitamin C - a nutrient", "Freud, the father, vitamin C, a nutrient"),
        ("profit = revenue - cost", "profit equals revenue minus cost"),
        ("10⁻⁵ and SO₄²⁻", "ten to the power of minus five and SO four two minus"),
        ("x/y, 3x/4, dy/dx, (a+b)/2", "x over y, three x over four, dy over dx, a plus b, over two"),
        ("3 / 4 of 2 1/2 and 2½", "three quarters of two and one half and two and one half"),
        ("5 g/mol at 9.8 m/s2", "five grams per mole at nine point eight meters per second squared"),
        ("in g/cm3 or m/s", "in grams per centimeter cubed or meters per second"),
        ("60 miles/hour, 10 mg/day, $3/kg",
         "sixty miles per hour, ten milligrams per day, three dollars per kilogram"),
        ("he/she, month/year, TCP/IP", "he or she, month or year, TCP or IP"),
        ("In 1924, J. Edgar Hoover", "In nineteen twenty-four, J. Edgar Hoover"),
        ("In 1924 J. Edgar Hoover", "In nineteen twenty-four J. Edgar Hoover"),
        ("In 2000, W. Bush", "In two thousand, W. Bush"),
        ("Section 4 K, 1,000 J and 5.5 V", "Section four K, one thousand joules and five point five volts"),
    ],
)  # fmt: skip
def test_a_hyphen_and_a_slash_say_what_they_mean(written, said):
    assert put_into_words(written) == said


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("0.5 mg/kg/day, 5 mL/kg/h",
         "zero point five milligrams per kilogram per day, five milliliters per kilogram per hour"),
        ("πr², 2πr and Nα/Nβ = 1", "pi r squared, two pi r and N alpha over N beta equals one"),
        ("SO4^2-, SO42-, NO3- ions, Se2- and Ca^2+",
         "S O four two minus, S O four two minus, N O three minus ions, Se two minus and Ca two plus"),
        ("3:2, a ratio of 3:10, a 9:3:3:1 ratio",
         "three to two, a ratio of three to ten, a nine to three to three to one ratio"),
        ("at 3:10 or 9:00 a.m., John 3:16", "at three ten or nine a.m., John three sixteen"),
        ("$1.00, $1.50, $0.05 and $25,000. 00",
         "one dollar, one dollar and fifty cents, five cents and twenty-five thousand dollars"),
        ("a $20,000 loan, his $5 bill", "a twenty thousand dollar loan, his five dollar bill"),
        ("2019 meters in 2019, 1512 + 12", "two thousand and nineteen meters in twenty nineteen, "
         "one thousand five hundred and twelve plus twelve"),
        ("In 1945 scientists", "In nineteen forty-five scientists"),
        ("I/O, open 24/7, the 9/11 attacks", "I O, open twenty-four seven, the nine eleven attacks"),
        ("V = I/R and = 24/7", "V equals I over R and equals twenty-four over seven"),
        ("5'10\", 5\u201910\u201d, 5 ft 4 in tall",
         "five feet ten inches, five feet ten inches, five feet four inches tall"),
        ("the 5' end, 6' tall", "the five prime end, six feet tall"),
        ("8.49 J mol-1 K-1, 0.1 M s^-1",
         "eight point four nine joules per mole per kelvin, zero point one M per second"),
        ("4 x 10^-4 s-1", "four times ten to the power of minus four per second"),
        ("30 cells/mcL, 5,000/mm3, 120 mg/dL",
         "thirty cells per microliter, five thousand per millimeter cubed, "
         "one hundred and twenty milligrams per deciliter"),
        ("115/75 mm Hg, 90/min", "one hundred and fifteen over seventy-five millimeters of mercury, ninety per minute"),
        ("a 12-cm mass, a 4 x 3-cm mass", "a twelve-centimeter mass, a four by three-centimeter mass"),
        ("2 μF, 5 µg, 3 J s, 2 L atm, 4 h",
         "two microfarads, five micrograms, three joule seconds, two liter atmospheres, four hours"),
        ("2h + 3m = 5 and the 1s orbital", "two h plus three m equals five and the one s orbital"),
        ("Lm \u2022 ~(Lj \u2022 Ll), 8 \u2022 (\u22127)", "Lm and not, Lj and Ll, eight times, minus seven"),
        ("f(g(x)) + f(8), f(x + 1)", "f of g of x plus f of eight, f of, x plus one"),
        ("v(t) = t cos(t) - ln (t + 2), 0 <= t <= 10",
         "v of t equals t cosine of t minus natural log of, t plus two, zero is at most t is at most ten"),
        ("f : (0, 1) → (0, 1)", "f from, zero, one, to, zero, one"),
        ("E(X) = 3, P(A|B)", "E of X equals three, P of, A given B"),
        ("x = -(y + 1), -\\frac{x-4}{5}", "x equals minus, y plus one, minus, x minus four, over five"),
        ("2\\sqrt{2}, 45^{\\circ}", "two times the square root of two, forty-five degrees"),
        ("2x \u2014 1 < 10, he said \u2014 no", "two x minus one is less than ten, he said, no"),
        ("L- and W-band, intra- and extraoral", "L and W-band, intra and extraoral"),
        ("21-Feb, on August 1. In May 5 of them", "February twenty-first, on August first. In May five of them"),
        ("in their 20s and 30s, 20 s later", "in their twenties and thirties, twenty seconds later"),
        ("400/250,000 and 3/7", "four hundred over two hundred and fifty thousand and three sevenths"),
        ("1001 0011 and 3 % 2", "one zero zero one, zero zero one one and three mod two"),
        ("Grade 3/5 power, |x - 2|", "Grade three out of five power, the absolute value of, x minus two"),
        ("[T]he end of the [first] war", "The end of the first war"),
        ("r = -.45, x = - 5, x = -π and F = -kx",
         "r equals minus zero point four five, x equals minus five, x equals minus pi and F equals minus kx"),
        ("V = πr²h, sin²θ and sin x", "V equals pi r squared h, sine squared theta and sine x"),
        ("2^9 - 1 and Z_3 x Z_4", "two to the power of nine, minus one and Z three cross Z four"),
        ("5 m²/s, 40 hours/week and dV / dt",
         "five meters squared per second, forty hours per week and dV over dt"),
        ("3 kWh, 72 bpm, 2 tbsp, 50 dB, 10 mT and mol L-1 s-1",
         "three kilowatt-hours, seventy-two beats per minute, two tablespoons, fifty decibels, ten milliteslas and "
         "moles per liter per second"),
        ("60 W bulbs, 4.5 V battery, a sure $20 gain",
         "sixty watt bulbs, four point five volt battery, a sure twenty dollar gain"),
        ("In 1066, on 4 July, at 10:00p.m.", "In ten sixty-six, on the fourth of July, at ten p.m."),
        ("Louis XIV, King George V", "Louis the fourteenth, King George the fifth"),
        ("what things are--their essence", "what things are, their essence"),
        ("a 2 x 2 matrix over sqrt(2)", "a two by two matrix over the square root of two"),
        ("I, II and IV only", "one, two and four only"),
        ("a school of 1650 students, the riots of 1848, c. 1000 BCE",
         "a school of one thousand six hundred and fifty students, the riots of eighteen forty-eight, "
         "circa one thousand BCE"),
        ("200 pg/mL, 250 rad s-1", "two hundred picograms per milliliter, two hundred and fifty radians per second"),
        ("12 over 18 = ? over 9", "twelve over eighteen equals what over nine"),
        ("subtest(s), the 5'-end, Scenario 1 | I ran", "subtests, the five prime-end, Scenario one, I ran"),
    ],
)  # fmt: skip
def test_formulas_units_and_signs(written, said):
    """Each was said wrongly once, of the thousands of sentences of MMLU and OpenBookQA."""
    assert put_into_words(written) == said


@pytest.mark.parametrize(
    "text",
    [
        *(
            "V/R",
            "9/11 changed what",
            "1:23:45",
            "~M \u00b7 O / N",
            "|aH| = |Ha|",
            "9.3 x 1013 m",
            "Let ~= be",
            *("a linear order relation ≤ on C", "(C, +, ×, ≤)", "Pop(Push(Stack,Elem)) = Stack", "3 xy/mL"),
            *("75% $250 M = 4", "the compound MgSO4 7H2O", "4R Ω"),
            "a[1:3]",
            *("5--3", "is -RT ln K", "-sin x", "-log(0.01)", "d²y/dx²", "2-3 times a day", "2-1/2 inches", "1-3/4"),
            *("1e-5 mol", "2.5e6", "y'' + y = 0", "f''(x)", "y' = 2", "6.63 × 10\u221234 J", "It is 5!", "n! ways"),
            *('a 6" pipe', "30' x 40'", "150 x 10^9/L", "J/mol·K", "1:2:√3", "$5M", "a $20-a-day habit", "$20s"),
            *("1 000 000", "³√8", "2^3^2", "x^2y", "¹⁴C", "[Fe(CN)6]3-", "2e-", "SO4 2-", "Rh- blood", "3 N HCl"),
            *("A <-> B", "x2 + y2 = r2", "5(3)", "(2)(3)", "x(x+1)", "log2 8", "in C#", "A | B", "N=70–75"),
            *(
                "b[::2]",
                "a 3´ end",
                "n-6:n-3",
                "Saren 2011:95",
                "score/other score × 100",
                "sqrt(x + 1)",
                "ÒHotÓ sauce",
            ),
            *("[[1, 2], [3, 4]]", "a = [1, 2][0]", "Chinese silk, &c.", "ca.1800", "coverÃ§d", "9" * 400 + "th"),
        ),
    ],
)
def test_what_may_be_two_things_is_refused(text):
    with pytest.raises(UnspeakableError):
        put_into_words(text)


@given(st.text(max_size=40) | st.text("0123456789 .,-\u2013/:^+=*x$%()[]|~'\"\u2022\u2192mgLskKhfPO", max_size=30))
def test_any_text_is_said_or_refused(text):
    try:
        assert not set(put_into_words(text)) & set("0123456789/^$%()[]|~=+*")
    except UnspeakableError as error:
        assert error.reason


@pytest.mark.parametrize(
    "text",
    [
        *("10-12", "100-37", "2 - 3", "7-4-2", "2020-05-01", "555-1234", "UCC 2-207", "What is 10-12 years?"),
        *("3 x 10-5 M", "$5-$3", "3,5-7", "2-b", "12/25/2020", "T3/T4", "sin/x", "8.3 J/(mol K)"),
    ],
)
def test_what_cannot_be_decided_is_refused(text):
    with pytest.raises(UnspeakableError, match="formula: .* may be"):
        put_into_words(text)


@given(st.integers(0, 999), st.integers(0, 999), st.sampled_from(["-", "–", " - ", " – "]))
def test_a_difference_is_said_as_one_or_refused(first, second, mark):
    """Whatever the numbers: never as another number, as if the mark were not there."""
    parts = [put_into_words(f"{number} it").removesuffix(" it") for number in (first, second)]
    assert put_into_words(f"What is {first}{mark}{second}?") == f"What is {parts[0]} minus {parts[1]}?"
    for text in (f"{first}{mark}{second}", f"the {first}{mark}{second} years"):
        try:
            assert put_into_words(text).removeprefix("the ").startswith((f"{parts[0]} minus ", f"{parts[0]} to "))
        except UnspeakableError as error:
            assert error.reason == "formula"


def test_blanks_are_named():
    assert name_blanks("Hume calls __ slow") == "Hume calls what slow"
    assert name_blanks("_____can fly? A ___.") == "first blank can fly? A second blank."
    assert name_blanks("___ is to ____ as") == "first blank is to second blank as"


def test_labels_go_only_if_every_option_has_its_own():
    assert strip_labels(["A. red", "(B) green", "C: blue"]) == ["red", "green", "blue"]
    assert strip_labels(["A. red", "green"]) == ["A. red", "green"]
    assert strip_labels(["A. Lincoln", "A. Smith"]) == ["A. Lincoln", "A. Smith"]


def test_spoken_form_in_the_published_shape():
    form = spoken_form("Hume describes reason as:", ["cool and disengaged", "100 % hot"])
    assert form.prompt_for_tts == "Hume describes reason as:\n\nOption A: cool and disengaged\nOption B: 100 % hot"
    assert form.words == "Hume describes reason as.\nOption A: cool and disengaged.\nOption B: one hundred percent hot."
    heard = "hume describes reason as option a cool and disengaged option b one hundred percent hot"
    assert form.prompt_for_tts_tn == heard == bare_words(form.words)


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
    with pytest.raises(UnspeakableError) as error:
        spoken_form(question, options)
    assert error.value.reason == reason


@pytest.mark.parametrize(
    "text",
    [
        *("According to Table 1, what is it?", "Refer to Figure 2. What is it?", "Figure 3 shows a cell. What is it?"),
        *("According to the graph, what is it?", "In the diagram, what is it?", "Use the diagram to answer."),
        *("Based on the passage, what is it?", "The table lists costs. What is it?", "Who is in the picture?"),
        *("What is the area of the shaded region?", "What does the underlined word mean?", "Look at the map."),
        *("Study the bar graph and answer.", "The bar graph shows costs.", "The author of this passage is the"),
        *("What is the main idea of the passage?", "Which cell is pictured below?", "On the chart, what is it?"),
        *("Using the table, find it.", "What is shown in the figure?", "What can be learned from the passage?"),
    ],
)  # fmt: skip
def test_what_refers_to_something_shown_is_dropped(text):
    with pytest.raises(UnspeakableError) as error:
        spoken_form(text, ["wood", "stone"])
    assert error.value.reason == "reference"


@pytest.mark.parametrize(
    "innocent",
    [
        *("Who painted the picture?", "What is a table made of?", "She maps the graph of y."),
        *("The wooden table costs more than the chair.", "They figure out the answer.", "He is a public figure."),
        *("Where in the table of elements is gold?", "Elements in the periodic table", "A job in the picture industry"),
        *("She put it on the table.", "Change came with the passage of time.", "He made man in the image of God."),
        *("According to the code of conduct, who pays?", "Following the map, they walked.", "The table was set for 5."),
        *("The passage of the bill led to", "What figure of speech is this?", "We read the passage aloud."),
        *("On the map of Europe, France is large.", "Using a map, sailors find", "Which chart type suits parts?"),
    ],
)  # fmt: skip
def test_a_word_alone_is_no_figure(innocent):
    assert spoken_form(innocent, ["wood", "stone"]).words


def test_a_passage_that_comes_with_the_question_is_read_with_it():
    assert spoken_form("Tom went home. " * 20 + "According to the passage, who went home?", ["Tom", "Ann"]).words


def test_the_options_of_a_spoken_form_are_bare():
    assert spoken_form("Which one?", [" A. Paris ", "B. Rome"]).options == ["Paris", "Rome"]
