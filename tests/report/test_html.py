"""The report: one file, everything inside, everything escaped; opened in a browser where there is one."""

import base64
import html
import io
import json
import pickle
import re
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from markupsafe import escape

from tars_trl.errors import NotLoggedError
from tars_trl.evaluation.metrics import paired_result
from tars_trl.models.loading import identity
from tars_trl.report.html import MOST_BYTES, answers_html, clip_source, render, write_report
from tests.browser import BROWSER
from tests.conftest import clip, question, questions
from tests.report.test_frames import completion, save_completions, save_state

EVIL = "<script>document.title='hacked'</script>\x00 & \x1b[31m"


@pytest.fixture
def run(tmp_path):
    """A run folder with all that a report can show; its completions are hostile."""
    folder = tmp_path / "run & <more>"
    columns = ("speech/accuracy", "text/accuracy", "speech/reward", "text/reward", "alignment/no_reference")
    save_state(folder, [{"step": step, **dict.fromkeys(columns, 0.5), "gap/accuracy": 0.0} for step in (1, 2, 3)])
    save_completions(folder, 1, [completion("speech", "an older step", key="q0", odd_reward=1.0, advantage=0.0)])
    rows = []
    for modality in ("speech", "text"):
        aligned = 0.625 if modality == "speech" else None
        for text, advantage in (("worse", -0.5), (f"better {modality} {EVIL}", 0.5)):
            rewards = {"odd_reward": 1.0, "representation_alignment": aligned, "advantage": advantage}
            rows += [completion(modality, text, key=key, **rewards) for key in ("q0", "q1")]
    save_completions(folder, 3, rows)
    save_evaluations(folder, [True, False, False], [True, False, False])
    facts = {
        "command": f"train --a {EVIL}",
        "seconds": 12.3,
        "steps": 7,
        "base_model": "some/base",
        "adapter": True,
        "dataset": "/somewhere/of/mine",
        "questions": 3,
        "date": "2026-01-02",
        "processes": 2,
        "processor": "a processor",
        "device_name": "cpu",
        "package_versions": {"trl": "1.2", "peft": "not installed"},
        "settings": {
            "learning_rate": 3e-4,
            "representation_weight": 1.0,
            "weight_decay": 0.01,
            "adam_beta1": 0.9,
            "adam_epsilon": EVIL,
            "output_dir": str(folder),
            "hub_token": "hf_secret",
        },
        "trainable": [
            {"component": "language model, LoRA", "parameters": 52224, "trainable": 52224, "dtype": "float32"}
        ],
    }
    (folder / "run.json").write_text(json.dumps(facts))
    stats = {"layers": [0, 1], "means": [0.9, 0.8], "ci_lower": [0.8, 0.7], "ci_upper": [1.0, 0.9]}
    (folder / "drift" / "before").mkdir(parents=True)
    for name in ("layer_stats", "layer_stats_pooled"):
        (folder / "drift" / "before" / f"{name}.json").write_text(json.dumps(stats))
    return folder


def save_evaluations(folder, before, after):
    """As recipes/evaluate.py leaves them, where execute_notebooks.py looks for them."""
    for name, speech in (("before", before), ("after", after)):
        (folder / "evaluation" / name / "model").mkdir(parents=True)
        pair = {**paired_result(speech, [True] * len(speech)), "mrr": None}
        content = {"results": {}, "pairs": {"demo": pair}, "averages": {}}
        (folder / "evaluation" / name / "model" / "results_1.json").write_text(json.dumps(content))


class Reader(HTMLParser):
    """Tags with their attributes, and the text; complains about tags that are not closed in order."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.open, self.text, self.comments = [], [], "", []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def handle_comment(self, data):
        self.comments.append(data)


def test_everything_is_in_one_file_and_escaped(run, tmp_path):
    page = write_report(run, tmp_path / "out.html", [question(0)]).read_text()
    reader = Reader(page)
    headings = re.findall("<h2>(.*?)</h2>", page)
    assert headings == [
        "Before and after", "Training", "Drift between speech and text", "Questions of the last step", "Settings",
        "Parameters",
    ]  # fmt: skip
    kinds = [tag for tag, _ in reader.tags]
    assert kinds.count("img") == 5 and kinds.count("audio") == 1 and "script" not in kinds and "link" not in kinds
    for tag, attributes in reader.tags:
        assert all(value.startswith("data:") for name, value in attributes.items() if name in ("src", "href")), tag
    assert "http" not in re.sub(r"base64,[^\"]+", "", page)
    assert str(escape("<script>document.title='hacked'</script>")) in page and "<script" not in page
    assert "\x00" not in page and "\x1b" not in page
    assert "run & <more>" in reader.text  # the folder's name, escaped in the file


def test_samples_settings_and_tables_say_what_the_run_says(run):
    text = Reader(write_report(run, samples=1).read_text()).text
    assert (run / "report.html").is_file()
    assert "better speech" in text and "better text" in text and "an older step" not in text
    assert text.count("best of 2") == text.count("worse") == 2  # one question, two twins, all completions of both
    assert text.count("representation_alignment") == 2 and "0.625" in text  # the written twin has no such reward
    assert "33.3 [6.1, 79.2]" in text and "52,224" in text and "7 steps in 12 s" in text and "train --a" in text
    for fact in (
        "Modelsome/base, LoRA",
        "Datamine, 3 questions",
        "Date2026-01-02",
        "Hardware2 x a processor",
        "trl 1.2",
    ):
        assert fact in text, fact
    assert "learning_rate0.0003" in text and "representation_weight" not in text and "adam_beta1" not in text
    assert str(run.parent) not in text and "hf_secret" not in text
    assert "Recovery: speech accuracy over own text accuracy" in text and "MRR" not in text


def test_a_bare_run_has_a_report_too(tmp_path):
    save_state(tmp_path, [{"step": 1, "text/accuracy": 0.5, "text/reward": 1.0, "text/clipped_ratio": 0.0}])
    page = write_report(tmp_path).read_text()
    assert re.findall("<h2>(.*?)</h2>", page) == ["Training"] and Reader(page).text


def test_held_out_questions_that_were_mended_and_others_still_wrong(tmp_path):
    """With the clip, the answers of both twins, what was heard before training, and accuracies by domain."""
    save_state(tmp_path, [{"step": 1, "text/accuracy": 0.5}])
    save_evaluations(tmp_path, [False, False, True], [True, False, True])
    for name, right in (("before", (0, 0, 1)), ("after", (1, 0, 1))):
        for modality in ("speech", "text"):
            lines = [
                {"key": f"q{n}", "acc": r if modality == "speech" else 1, "doc": question(n), "target": "A",
                 "domain": "even" if n % 2 == 0 else "odd", "resps": [[f"{name} {modality} {n}"]]}
                for n, r in enumerate(right)
            ]  # fmt: skip
            for line in lines:
                line["doc"] = {key: line["doc"][key] for key in ("question", "options")}
            file = tmp_path / "evaluation" / name / "model" / f"samples_demo_{modality}_1.jsonl"
            file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = write_report(tmp_path, questions=[question(0), question(1)]).read_text()
    mended, wrong = page.split("heard wrongly before, rightly after")[1].split("still heard wrongly")
    assert all(f"{when} 0" in mended for when in ("before speech", "after speech", "after text"))
    assert "after speech 1" in wrong and "before speech 1" not in wrong and "speech 2" not in page
    assert page.count("<audio") == 2 and "Accuracies by domain" in page and "width=device-width" in page


@pytest.mark.parametrize("logged", ["loss", "text/reward"])
def test_a_run_without_accuracies_has_a_report(tmp_path, logged):
    """Of SFT and DPO, or without the accuracy reward: the figures that it has columns for."""
    save_state(tmp_path, [{"step": step, logged: 1 / step, "entropy": 0.5} for step in (1, 2, 3)])
    reader = Reader(write_report(tmp_path).read_text())
    (image,) = [attributes["alt"] for tag, attributes in reader.tags if tag == "img"]
    assert image == {"loss": "Loss over training", "text/reward": "Reward terms by modality"}[logged]


def test_before_and_after_come_from_evaluations(tmp_path):
    """The intervals are those of the evaluation, and of nobody else."""
    save_state(tmp_path, [{"step": 1, "text/accuracy": 0.5}])
    save_evaluations(tmp_path, [False, True], [True, True])
    file = tmp_path / "evaluation" / "after" / "model" / "results_1.json"
    content = json.loads(file.read_text())
    content["pairs"]["demo"] |= {
        "gap_interval": [0.125, 0.25],
        "recovery": 87.25,
        "mrr": 93.75,
        "reference_accuracy": 77.7,
    }
    (tmp_path / "adapter_config.json").write_text("{}")
    file.write_text(json.dumps(content | {"hashes": {"adapter": "sha256:an earlier run's in this folder"}}))
    assert "Before and after" not in Reader(write_report(tmp_path).read_text()).text
    file.write_text(json.dumps(content | {"hashes": {"adapter": identity(str(tmp_path))}}))
    text = Reader(write_report(tmp_path).read_text()).text
    assert "Before and after" in text and text.index("before50.0") < text.index("after100.0")
    assert "0.0 [12.5, 25.0]" in text and "recovery, %MRR, %" in text and "87.293.8" in text
    assert "MRR, the modality recovery rate: speech accuracy over the base model's text accuracy" in text


def test_a_result_without_its_intervals_is_named(tmp_path):
    save_state(tmp_path, [{"step": 1, "text/accuracy": 0.5}])
    save_evaluations(tmp_path, [False, True], [True, True])
    file = tmp_path / "evaluation" / "after" / "model" / "results_1.json"
    content = json.loads(file.read_text())
    del content["pairs"]["demo"]["gap_interval"]
    file.write_text(json.dumps(content))
    with pytest.raises(NotLoggedError, match=f"^{file} has no gap_interval"):
        write_report(tmp_path)


def test_nothing_pickled_is_read(run, tmp_path, capsys):
    """A crafted `training_args.bin` (or checkpoint file) beside a run's log runs nothing under the recipe."""
    from tars_trl.commands import report

    for name in ("training_args.bin", "optimizer.pt", "checkpoint-3/training_args.bin", "evaluation/after/x.bin"):
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_bytes(pickle.dumps(Harmful(tmp_path / "harm")))
    questions_folder = tmp_path / "questions"
    questions(1).to_parquet(questions_folder / "train.parquet")
    report.main([str(run), "--dataset", str(questions_folder), "--output_file", str(tmp_path / "out.html")])
    assert "learning_rate" in (tmp_path / "out.html").read_text() and "out.html" in capsys.readouterr().out
    assert not (tmp_path / "harm").exists()
    pickle.loads((run / "training_args.bin").read_bytes())
    assert (tmp_path / "harm").exists()  # it would have


class Harmful:
    """What a malicious file would hold."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_an_open_question_has_no_options():
    sample = {
        "key": "q", "question": "Who?", "answer": "Ada", "speech_right": True, "text_right": True,
        "speech_completion": "Ada.", "text_completion": "Ada.",
    }  # fmt: skip
    for options in (None, float("nan")):
        assert "Who?" in answers_html({**sample, "options": options})


def test_clips_keep_their_encoding_unless_large_or_raw():
    def embedded(audio):
        kind, data = re.fullmatch("data:([^;]+);base64,(.+)", clip_source(audio)).groups()
        return kind, base64.b64decode(data)

    short = clip(0.5)
    assert embedded({"bytes": short, "path": None}) == ("audio/wav", short)
    kind, data = embedded({"bytes": clip(10.0), "path": None})  # 320 kB
    samples, rate = soundfile.read(io.BytesIO(data))
    assert kind == "audio/ogg" and len(data) < MOST_BYTES and rate == 16_000 and len(samples) == 160_000
    assert embedded({"array": np.zeros(1600, "float32"), "sampling_rate": 16_000})[0] == "audio/ogg"


def test_answers_of_an_evaluation_side_by_side():
    sample = {
        "key": "q", "question": "One < two?", "options": ["yes", "no"], "answer": "A", "speech_right": False,
        "text_right": True, "speech_completion": "B<b>", "text_completion": "A.",
    }  # fmt: skip
    reader = Reader(answers_html(sample, question(0)["audio"]))
    assert "One < two?\nA. yes\nB. no" in reader.text and "right answer A" in reader.text
    assert reader.text.index("speech wrong") < reader.text.index("B<b>") < reader.text.index("text right")


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine; apt-get install chromium")
def test_a_browser_shows_it(run, tmp_path):
    path = write_report(run, tmp_path / "out.html", [question(0)])
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    shown = tmp_path / "shown.png"
    options = [f"--screenshot={shown}", "--window-size=1100,3000", "--hide-scrollbars", path.as_uri()]
    subprocess.run([*command, *options], check=True, capture_output=True, timeout=120)
    from PIL import Image

    picture = np.asarray(Image.open(shown).convert("RGB")).reshape(-1, 3)
    assert {(213, 94, 0), (0, 114, 178)} <= {tuple(pixel) for pixel in np.unique(picture, axis=0).tolist()}
    done = subprocess.run([*command, "--dump-dom", path.as_uri()], check=True, capture_output=True, timeout=120)
    title = re.search("<title>(.*?)</title>", done.stdout.decode())[1]
    assert html.unescape(title) == "run & <more>"  # and not "hacked"


BREAKING = [
    *("<script>", "</script>", "<!--", "-->", "<img src=x onerror=y>", '"', "'", ">", "<", "&", "&lt;", "]]>", "</td>"),
    *(
        "\x00",
        "\x1b",
        "\ud800",
        "\u202e",
        "\u2028",
        "\r",
        "\n",
        "{{ 7*7 }}",
        "{% raw %}",
        "</style>",
        "javascript:",
        "a",
    ),
]
HOSTILE = st.one_of(st.text(), st.lists(st.sampled_from(BREAKING)).map("".join)).map(lambda text: text or "x")


def page_of(texts):
    """A page in which every text that comes from a run is one of `texts`."""
    name, command, key, note, prompt, remark, completion, reward, setting, value, component, cell, modality = texts
    twin = {
        "modality": modality,
        "remark": remark,
        "completion": completion,
        "rewards": [[reward, value]],
        "color": "x",
        "others": [],
    }
    asked = {"key": key, "note": note, "prompt": prompt, "clip": "data:x", "before": completion}
    asked["twins"] = [twin | {"others": [twin]}, twin]
    return {
        "name": name, "facts": [[remark, command]], "curves": [("data:x", name)], "drift": "data:x",
        "before_after": {"figure": "data:x", "domains": "data:x", "header": ["", "gap"], "rows": [[cell, cell]]},
        "mended": [asked], "wrong": [asked], "questions": [asked],
        "settings": [[setting, value]],
        "trainable": [[component, cell, cell, cell]],
    }  # fmt: skip


@pytest.mark.slow
@settings(max_examples=2000, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(HOSTILE, min_size=13, max_size=13))
def test_nothing_a_run_says_becomes_markup(texts):
    """Tags and attributes are those of a harmless run, all text is there, control characters are not."""
    harmless, hostile = Reader(render("page", page_of(["x"] * 13))), Reader(page := render("page", page_of(texts)))
    assert [tag for tag, _ in hostile.tags] == [tag for tag, _ in harmless.tags]
    for (_, attributes), (_, expected) in zip(hostile.tags, harmless.tags, strict=True):
        assert attributes.keys() == expected.keys()
        assert all(attributes[name] == expected[name] for name in attributes if name != "alt")
    assert not any(comment for comment in hostile.comments)
    for text in texts:
        assert "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text) in hostile.text
    assert all(character.isprintable() or character in "\n\t" for character in page)
    page.encode("utf-8")
