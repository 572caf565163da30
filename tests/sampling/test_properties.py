"""Whatever is typed as a setting, and whatever was sampled: what must hold of settings, of pairs and of scores."""

import dataclasses
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tars_trl.commands.analyze_drift import DriftSettings
from tars_trl.commands.chat import ChatSettings
from tars_trl.errors import SettingError
from tars_trl.sampling.preferences import PAIRED, Candidate, PreferenceSettings, choose
from tars_trl.sampling.scores import (
    COLUMNS,
    KEEP,
    ORDERS,
    Samples,
    ScoreSettings,
    count_drops,
    pass_at_k,
    score,
    select_questions,
)
from tars_trl.settings import parse

pytestmark = pytest.mark.slow
thorough = settings(max_examples=2000, deadline=None)

CLASSES = (ChatSettings, DriftSettings, PreferenceSettings, ScoreSettings)
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-2, 20),
    st.floats(),  # also NaN and infinities
    st.floats(0, 2),
    st.text(max_size=20),
    st.sampled_from(["auto", "refuse", "skip", "learnable", "largest_gap", "a=b", "a=b,c=d", "nan", "1e400", "-1", ""]),
    st.lists(st.one_of(st.text(max_size=5), st.integers(), st.none(), st.just("a=b")), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=1),
)
BARE = {"model": "some/model", "dataset": "some/data", "text": "One?", "models": ["a=b"], "output_dir": "out"}


@st.composite
def typed(draw):
    """A settings class, and values for some of its fields on top of those that it needs."""
    cls = draw(st.sampled_from(CLASSES))
    names = sorted(field.name for field in dataclasses.fields(cls) if field.init)
    drawn = draw(st.dictionaries(st.sampled_from(names), VALUES, max_size=3))
    return cls, {name: value for name, value in BARE.items() if name in names} | drawn


@thorough
@given(typed())
def test_settings_work_or_are_refused_in_words(case):
    """No value raises anything but a SettingError, which names a field; what is accepted is in range."""
    cls, values = case
    try:
        made = cls(**values)
    except SettingError as error:
        names = [field.name for field in dataclasses.fields(cls)]
        assert any(name in str(error) for name in (*names, "pass@")) and str(error).rstrip().endswith(".")
        return
    for field in dataclasses.fields(cls):
        value, rule = getattr(made, field.name), field.metadata.get("rule")
        if isinstance(value, float):
            assert math.isfinite(value), field.name
        if rule is None or value is None:
            continue
        assert not (rule.required and value in ("", [])), field.name
        assert not (rule.choices and value not in rule.choices), field.name
        if isinstance(value, int | float):
            assert rule.least is None or value >= rule.least
            assert rule.above is None or value > rule.above
            assert rule.most is None or value <= rule.most


@thorough
@given(st.sampled_from(CLASSES), st.data())
def test_command_lines_work_or_are_refused_in_words(cls, data):
    """Whatever is typed behind whatever name: no traceback, and never argparse's exit."""
    names = sorted(field.name for field in dataclasses.fields(cls) if field.init)
    words = []
    for name, value in BARE.items():
        if name in names:
            words += [f"--{name}", value if isinstance(value, str) else value[0]]
    name = data.draw(st.sampled_from([*names, "modle", "max_new_tokens", "x"]))
    value = data.draw(st.one_of(st.text(max_size=10), VALUES.map(str)))
    try:
        (made,) = parse(cls, args=[*words, f"--{name}={value}"])
    except ValueError as error:  # what `run` shows as a sentence; most are `SettingError`s, some TRL's parser's
        assert str(error).strip()
        return
    assert isinstance(made, cls)


# ---- Pairs ---------------------------------------------------------------------------------------------------------

candidates = st.lists(
    st.builds(
        lambda text, tokens, truncated, correct, well_formed, weight: Candidate(
            text, tokens, truncated, correct, correct + weight * well_formed
        ),
        st.text(max_size=2),
        st.integers(1, 40),
        st.booleans(),
        st.booleans(),
        st.booleans(),
        st.shared(st.sampled_from([0.0, 0.1, 0.15, 0.5, 0.7, 1.0, 3.0]), key="weight"),
    ),
    max_size=5,
)


@st.composite
def wanted(draw):
    weight = draw(st.shared(st.sampled_from([0.0, 0.1, 0.15, 0.5, 0.7, 1.0, 3.0]), key="weight"))
    shortest = draw(st.integers(1, 30))
    return PreferenceSettings(
        model="some/model",
        dataset="some/data",
        format_weight=weight,
        min_margin=draw(st.sampled_from([0.05, 0.1, 0.5, 1.0, 1 + weight]).filter(lambda margin: margin <= 1 + weight)),
        min_tokens=shortest,
        max_tokens=draw(st.one_of(st.none(), st.integers(shortest, 40))),
        max_length_ratio=draw(st.floats(1, 10)),
        seed=draw(st.integers(0, 5)),
    )


@thorough
@given(candidates, candidates, wanted(), st.text(max_size=3))
def test_a_pair_is_the_widest_that_the_filters_allow(speech, text, wanted, key):
    """Against every pair, looked at one by one; and the same on a second look."""
    chosen, rejected, reason = found = choose({"speech": speech, "text": text}, key, wanted)
    assert found == choose({"speech": speech, "text": text}, key, wanted)
    longest = wanted.max_tokens or wanted.max_completion_length

    def usable(candidate):
        return not candidate.truncated and wanted.min_tokens <= candidate.tokens <= longest

    teachers = [c for c in text if c.correct and usable(c)]
    margins = {}
    for teacher in teachers:
        for student in filter(usable, speech):
            margin = round(teacher.score - student.score, 9)
            ratio = max(teacher.tokens, student.tokens) / min(teacher.tokens, student.tokens)
            if margin >= wanted.min_margin and ratio <= wanted.max_length_ratio:
                margins[teacher, student] = margin
    assert (reason == PAIRED) == bool(margins) == (rejected is not None)
    assert (chosen is not None) == bool(teachers)
    if margins:
        assert margins[chosen, rejected] == max(margins.values())
    elif teachers:
        assert chosen in teachers and chosen.score == max(c.score for c in teachers)


@thorough
@given(candidates, candidates, wanted(), st.randoms(use_true_random=False))
def test_the_reason_does_not_depend_on_the_order_of_samples(speech, text, wanted, order: random.Random):
    _, _, reason = choose({"speech": speech, "text": text}, "q", wanted)
    again = [order.sample(part, len(part)) for part in (speech, text)]
    assert choose({"speech": again[0], "text": again[1]}, "q", wanted)[2] == reason


# ---- Scores --------------------------------------------------------------------------------------------------------

samples = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=4, max_size=8).map(
    lambda drawn: Samples([right for right, _ in drawn], [complete for _, complete in drawn])
)


@thorough
@given(st.integers(1, 60), st.data())
def test_pass_at_k_is_a_chance_that_grows(n, data):
    k, correct = data.draw(st.integers(1, n)), data.draw(st.integers(0, n))
    chance = pass_at_k(n, correct, k)
    assert 0 <= chance <= 1 and (chance == 0) == (correct == 0)
    assert chance >= pass_at_k(n, correct, 1) - 1e-12 == pytest.approx(correct / n - 1e-12)
    assert correct == n or chance <= pass_at_k(n, correct + 1, k)


@thorough
@given(
    st.lists(st.tuples(samples, samples), min_size=1, max_size=8),
    st.sampled_from(KEEP),
    st.sampled_from(ORDERS),
    st.one_of(st.none(), st.integers(1, 10)),
)
def test_a_selection_is_in_order_and_accounts_for_every_question(pairs, keep, order, top):
    scores = [score(speech, text, 4, order) for speech, text in pairs]
    assert all(set(columns) == set(COLUMNS) and all(map(math.isfinite, columns.values())) for columns in scores)
    reachable = [n for n, (_, text) in enumerate(pairs) if any(map(all, zip(text.right, text.complete, strict=True)))]
    solved = {n for n, pair in enumerate(pairs) if all(all(part.right) for part in pair)}
    allowed = {"all": set(range(len(pairs))), "reachable": set(reachable), "learnable": set(reachable) - solved}[keep]
    if not allowed:
        with pytest.raises(SettingError, match=f"keep='{keep}' leaves none of {len(pairs)}"):
            select_questions(scores, keep, top)
        return
    numbers = select_questions(scores, keep, top)
    assert set(numbers) <= allowed and len(set(numbers)) == len(numbers) == min(len(allowed), top or len(allowed))
    levels = [(scores[number]["curriculum"], number) for number in numbers]
    assert levels == sorted(levels)
    left_out = [scores[number]["curriculum"] for number in allowed - set(numbers)]
    assert not left_out or min(left_out) >= levels[-1][0]
    assert count_drops(scores, keep, len(numbers)).total() == len(pairs) - len(numbers)
