"""Every task, from rows as its benchmark publishes them to rows that can be asked."""

import json

import datasets
import pytest
from datasets import Audio, Dataset

from tars_trl.data import SYSTEM_PROMPT
from tars_trl.data.prompts import spoken_prompt
from tars_trl.errors import QuestionError, SettingError
from tars_trl.evaluation.tasks import TASKS, Prompting, read_task, split_of, task_named, task_table
from tests.conftest import ROOT, clip

SOUND = {"bytes": clip(0.3), "path": None}
VOICEBENCH = {
    "audio": SOUND,
    "prompt": "Predators eat\nA. lions\nB. humans\nC. bunnies\nD. grass\nWhat is the answer to the above multiple "
    "choice question? Select one of the following: A, B, C, or D.",
    "reference": "C",
}
TARS = {
    "audio": SOUND,
    "key": "ori_mmlu_1",
    "question": "Predators eat",
    "options": ["lions", "humans", "bunnies", "grass"],
    "answer_index": 2,
    "prompt_for_tts": "Predators eat\nA. lions\nB. humans\nC. bunnies\nD. grass",
    "category": "biology",
}
MMSU = {
    "id": "volume_1",
    "audio": SOUND,
    "question": "Which volume pattern matches?",
    "choice_a": "high-low",
    "choice_b": "low-high",
    "choice_c": None,
    "choice_d": None,
    "answer_gt": "low-high",
    "task_name": "volume_comparison",
    "category": "Perception",
    "sub-category": "Paralinguistics",
}
SPEECH = {"audio": SOUND, "text": "MISTER QUILTER", "id": "1272-0"}
PUBLISHED = {
    "voicebench_mmsu": VOICEBENCH | {"question_id": 7, "cot_content": "", "category": "law", "src": "ori_mmlu"},
    "voicebench_openbookqa": VOICEBENCH,
    "tars_mmsu": TARS,
    "tars_obqa": TARS,
    "tars_mmlu": TARS,
    "mmsu_paralinguistic": MMSU,
    "tars_mmsu_paralinguistic": TARS,
    "librispeech": SPEECH,
    "librispeech_clean": SPEECH,
    "librispeech_other": SPEECH,
    "sd_qa": {"audio": SOUND, "prompt": "who wrote hamlet", "reference": "Shakespeare"},
}


@pytest.fixture
def hub(monkeypatch):
    """`datasets.load_dataset` that gives one row and records what was asked for."""
    asked = []

    def serve(row):
        def load_dataset(source, name=None, split=None, revision=None):
            asked.append((source, name, split, revision))
            part = dict(row)
            if "question_id" in part:  # unique over the whole benchmark
                part["question_id"] += len(asked)
            return Dataset.from_list([part]).cast_column("audio", Audio(decode=False))

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        return asked

    return serve


def load(name, splits=None, domain=None, **prompting):
    task = task_named(name, domain)
    rows, _ = read_task(task, splits or task.splits or (split_of(task.source),), Prompting(**prompting))
    return task, rows


@pytest.mark.parametrize("name", TASKS)
def test_published_rows_become_askable(hub, name):
    asked = hub(PUBLISHED[name])
    task, rows = load(name)
    assert len(rows) == len(task.splits) == len(asked)
    assert {source for source, *_ in asked} == {task.source}
    assert [split for *_, split, _ in asked] == list(task.splits)
    row = rows[0]
    assert row["key"] and row["audio"]["bytes"] == SOUND["bytes"]
    assert spoken_prompt(row["prompt"])[-1]["content"][0] == {"type": "audio"}
    if task.kind == "choice":
        assert row["options"][row["answer_index"]] in ("bunnies", "low-high")
    else:
        assert row["reference"] in ("MISTER QUILTER", "Shakespeare")
    assert task.domain is None or row[task.domain]
    assert task.changes.startswith(f"{task.version}:") and name in task_table()


def test_voicebench_mmsu_has_12_domains_and_the_copies_keys(hub):
    asked = hub(PUBLISHED["voicebench_mmsu"])
    _, rows = load("voicebench_mmsu")
    assert len(rows) == 12 and {name for _, name, *_ in asked} == {"mmsu"}
    assert rows[0]["key"] == "ori_mmlu_8" and len(set(rows["key"])) == 12
    assert rows[0]["prompt"][0]["content"] == SYSTEM_PROMPT
    assert rows[0]["prompt"][1]["content"].endswith("A, B, C, or D.")  # VoiceBench speaks the request too


def test_a_recording_is_asked_about_in_writing(hub):
    """The clip comes first and the question stays written; so there is no text modality."""
    hub(MMSU)
    task, rows = load("mmsu_paralinguistic")
    assert task.modalities == ("speech",)
    audio, written = spoken_prompt(rows[0]["prompt"])[-1]["content"]
    assert audio == {"type": "audio"} and "Option B: low-high" in written["text"] and "Option C" not in written["text"]
    hub(MMSU | {"answer_gt": "medium"})
    with pytest.raises(QuestionError, match="row 'volume_1', answer_gt='medium'"):
        load("mmsu_paralinguistic")
    hub({"audio": SOUND})
    with pytest.raises(QuestionError, match="mmsu_paralinguistic needs .*'choice_a'"):
        load("mmsu_paralinguistic")


@pytest.mark.parametrize(("name", "missing"), [("librispeech", "text"), ("sd_qa", "prompt, reference")])
def test_rows_of_another_kind_are_refused(hub, name, missing):
    hub({"audio": SOUND})
    with pytest.raises(QuestionError, match=missing):
        load(name)


def test_prompts_can_be_replaced(hub):
    hub(PUBLISHED["tars_obqa"])
    _, rows = load("tars_obqa", system_prompt="", instruction="Answer.")
    assert [message["role"] for message in rows[0]["prompt"]] == ["user"]
    assert rows[0]["prompt"][0]["content"][1]["text"] == "Answer."
    hub(SPEECH)
    _, rows = load("librispeech", system_prompt="Listen.", instruction="In capitals.")
    assert rows[0]["prompt"][0]["content"][0]["text"] == "Listen."
    assert rows[0]["prompt"][1]["content"][1]["text"].endswith("In capitals.")


def test_sd_qa_keeps_regions_apart(hub):
    hub(PUBLISHED["sd_qa"])
    _, rows = load("sd_qa", splits=("usa", "aus"))
    assert rows["region"][:] == ["usa", "aus"] and rows["key"][:] == ["usa-000000", "aus-000000"]


def test_own_questions_by_a_column():
    task, rows = load(f"demo={ROOT / 'recipes' / 'demo' / 'questions'}", domain="voice")
    assert task.name == "demo" and task.domain == "voice"
    assert len(rows) == 300 and len(set(rows["voice"])) > 1
    with pytest.raises(QuestionError, match="domain='speaker' is no column of .*voice"):
        load(str(ROOT / "recipes" / "demo" / "questions"), domain="speaker")


def test_the_commit_that_was_read_is_known(hub, tmp_path, monkeypatch):
    """`datasets` keeps what it read in a folder named after the commit, whatever is done to the columns afterwards."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    folder = tmp_path / "hlt-lab___voicebench" / "openbookqa" / "0.0.0" / commit
    Dataset.from_list([VOICEBENCH]).cast_column("audio", Audio(decode=False)).save_to_disk(folder)
    kept = datasets.load_from_disk(folder)
    asked = hub(VOICEBENCH)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, revision, **__: asked.append(revision) or kept)
    for text in ("voicebench_openbookqa=hlt-lab/voicebench@v2", "sd_qa=hlt-lab/voicebench@v2"):
        task = task_named(text)
        rows, found = read_task(task, ["test"], Prompting())
        assert found == commit and len(rows) == 1
    assert asked == ["v2", "v2"]
    assert read_task(task_named(str(folder)), ["test"], Prompting())[1] is None  # a folder of one's own


def test_the_only_split_of_a_folder_is_measured(tmp_path, caplog):
    """A table named questions.jsonl is a split "train"; of several splits without "test" none is taken for it."""
    row = {"question": "One?", "options": ["one", "two"], "answer_index": 0, "audio": "clip.wav"}
    table = tmp_path / "mine" / "questions.jsonl"
    table.parent.mkdir()
    (tmp_path / "mine" / "clip.wav").write_bytes(SOUND["bytes"])
    table.write_text(json.dumps(row))
    task, rows = load(str(tmp_path / "mine"))
    assert split_of(task.source) == "train" and rows["question"][:] == ["One?"]
    assert "mine has no split but 'train'" in caplog.text

    for folder, names in (("two", ("train", "validation")), ("tested", ("train", "test"))):
        (tmp_path / folder).mkdir()
        for name in names:
            Dataset.from_list([TARS | {"audio": None}]).to_parquet(tmp_path / folder / f"{name}.parquet")
        assert split_of(str(tmp_path / folder)) == "test"
    with pytest.raises(ValueError, match="Unknown split .test"):
        load(str(tmp_path / "two"))
    rows = Dataset.from_list([TARS | {"audio": None}])
    datasets.DatasetDict({"validation": rows}).save_to_disk(tmp_path / "saved")
    assert split_of(str(tmp_path / "saved")) == "validation"
    assert split_of(str(table)) == "test"  # a file is one split, whatever its name


def test_names(questions_folder):
    assert task_named("tars_obqa") is TASKS["tars_obqa"]
    copy = task_named(f"tars_obqa={questions_folder}")
    assert copy.source == questions_folder and copy.changes == TASKS["tars_obqa"].changes
    elsewhere = task_named("voicebench_mmsu=me/mine@abc")
    assert (elsewhere.source, elsewhere.revision, elsewhere.key) == ("me/mine", "abc", TASKS["voicebench_mmsu"].key)
    own = task_named(questions_folder)
    assert (own.kind, own.source, own.splits) == ("choice", questions_folder, ()) and own.name not in TASKS
    assert "/" not in own.name and task_named(f"my sums={questions_folder}").name == "my_sums"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("voicebench_mmlu", "is no task. Did you mean voicebench_mmsu.*`--tasks list`"),
        ("nothing", "is no task. `--tasks list`"),
        ("recipes/demo/questoins", "there is no file or folder 'recipes/demo/questoins'. Correct the path"),
        ("questions.jsonl", "there is no file or folder 'questions.jsonl'"),
        ("demo=recipes/demo/questoins", "there is no file or folder 'recipes/demo/questoins'"),
        ("tars_obqa=", "there is no file or folder"),
    ],
)
def test_what_is_neither_task_nor_path(text, message):
    with pytest.raises(SettingError, match=message):
        task_named(text)


def test_empty_tables_and_shared_keys_are_refused(tmp_path, monkeypatch):
    same = Dataset.from_list([TARS | {"audio": None}] * 2)
    same.to_parquet(tmp_path / "same.parquet")
    with pytest.raises(QuestionError, match="ori_mmlu_1"):
        load(str(tmp_path / "same.parquet"))
    nothing = Dataset.from_dict({"audio": [], "text": []})
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: nothing)
    with pytest.raises(QuestionError, match="there are no rows"):
        load("librispeech")
