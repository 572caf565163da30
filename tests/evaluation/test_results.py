"""Results and samples files as others, or a bad disk, may have written them: refused by file and name."""

import copy
import json

import pytest

from tars_trl.commands.evaluate import comparison_table, result_table
from tars_trl.comparison.study import read_answers
from tars_trl.comparison.table import read_measured
from tars_trl.errors import NotLoggedError, QuestionError
from tars_trl.evaluation.metrics import mcnemar, paired_result
from tars_trl.evaluation.results import find_results, paired_difference, read_pair, read_results, write_results
from tars_trl.report.frames import samples_frame
from tars_trl.share.cards import read_pairs

FIGURES = {"name": "t_text", "alias": "t (text)", "sample_len": 2, "acc,none": 0.5}
FIGURES |= {"acc_ci_low,none": 0.1, "acc_ci_high,none": 0.9, "truncated,none": 0.0, "mean_tokens,none": 3.0}
PAIR = dict(paired_result([True, False], [True, True], 77.7)) | {"mcnemar": dict(mcnemar([True, False], [True, True]))}
CONTENT = {"results": {"t_text": FIGURES}, "pairs": {"t": PAIR}, "averages": {}, "model_name": "m", "fingerprint": "f"}
DOC = {"prompt": [{"role": "user", "content": [{"type": "text", "text": "q?"}]}], "question": "q?"}
SAMPLES = [{"key": key, "acc": 1.0, "doc": DOC, "target": "A", "resps": [["A"]]} for key in ("a", "b")]
REMOVED = object()


def changed(value, path, new):
    value = copy.deepcopy(value)
    place = value
    for step in path[:-1]:
        place = place[step]
    if new is REMOVED:
        del place[path[-1]]
    else:
        place[path[-1]] = new
    return value


@pytest.fixture
def written(tmp_path):
    path = write_results(tmp_path, CONTENT, {"t_speech": SAMPLES, "t_text": SAMPLES}, "1")
    return path, tmp_path / "samples_t_text_1.jsonl"


def test_what_an_evaluation_writes_is_read(written):
    path, _ = written
    assert "gap 50.0 points" in result_table(read_results(path)) and read_pair(path)["gap"] == 0.5
    assert read_measured(path).speech == [True, True] and read_answers(path, "arm", 0, 1).text == "11"
    assert find_results(path.parent, "f") == path and "0.0" in comparison_table(paired_difference(path, path))


DAMAGES = [
    ((), [1]), ((), "x"), (("results",), [1]), (("results", "t_text"), 5),
    (("results", "t_text", "sample_len"), REMOVED),
    (("results", "t_text", "acc,none"), "x"), (("results", "t_text", "acc_ci_low,none"), REMOVED),
    (("results", "t_text", "mean_tokens,none"), [1]), (("results", "t_text", "truncated,none"), 10**400),
    (("pairs",), None), (("pairs",), ["t"]), (("pairs", "t"), "x"), (("averages",), {"t": 5}),
    *(((("pairs", "t", name)), "x") for name in PAIR),
    (("pairs", "t", "gap"), REMOVED), (("pairs", "t", "gap_interval"), [0.1]), (("pairs", "t", "mcnemar"), {}),
    (("pairs", "t", "mrr_interval"), [0.1, "x"]), (("pairs", "t", "reference_accuracy"), None),
    (("model_name",), 5), (("hashes",), "x"), (("git_hash",), [1]),
]  # fmt: skip


@pytest.mark.parametrize(("path", "new"), DAMAGES)
def test_damaged_results_are_refused_by_name(written, path, new):
    file, _ = written
    file.write_text(json.dumps(changed(CONTENT, path, new) if path else new))
    for read in (lambda: read_pair(file), lambda: read_pairs([file]), lambda: result_table(read_results(file))):
        with pytest.raises(NotLoggedError, match=r"results_1\.json (is no results file|has no )"):
            read()
    assert find_results(file.parent, "f") is None


def test_results_cut_off_inside_of_a_letter_are_not_finished(written):
    file, _ = written
    file.write_bytes(b'{"results": {}, "fingerprint": "f", "model_name": "\xc3')
    assert find_results(file.parent, "f") is None
    file.write_text('{"results": {"a": ' + "[" * 980 + "]" * 980 + "}}")
    assert find_results(file.parent, "f") is None


LINES = [
    *((name, REMOVED) for name in ("key", "doc", "resps")),
    ("key", ["a"]), ("key", None), ("acc", "x"), ("resps", []), ("resps", [[]]), ("resps", [5]), ("doc", "x"),
    ("doc", {"prompt": "x"}), ("doc", {"prompt": []}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "new"), LINES)
def test_damaged_samples_are_refused_by_line(written, name, new):
    file, samples = written
    lines = [SAMPLES[0], changed(SAMPLES[1], (name,), new)]
    samples.write_text("\n".join(map(json.dumps, lines)))
    reads = (samples_frame, read_measured, lambda path: paired_difference(path, path))
    for read in reads:
        with pytest.raises(NotLoggedError, match=r"samples_t_text_1\.jsonl, line 2, is no sample"):
            read(file)


@pytest.mark.parametrize("text", ["", "5\n", "null\n", '{"key": "a"', "[" * 990 + "]" * 990])
def test_samples_that_are_none(written, text):
    file, samples = written
    samples.write_text(text)
    with pytest.raises((NotLoggedError, QuestionError), match=r"line 1, is no sample|has no answers to the same"):
        read_measured(file)


def test_answers_in_one_form_make_no_pairs(written):
    file, samples = written
    samples.write_text("\n".join(json.dumps({**line, "acc": None}) for line in SAMPLES))
    for read in (read_measured, lambda path: read_answers(path, "arm", 0, 1)):
        with pytest.raises(NotLoggedError, match=r"no answers to the same questions in both forms"):
            read(file)
    samples.unlink()
    with pytest.raises(NotLoggedError, match=r"no answers to the same questions in both forms"):
        read_measured(file)
