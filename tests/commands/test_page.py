"""`tars-trl chat --web`: the page's answers, and the page in a real browser."""

import re

import pytest
import torch
from peft import LoraConfig, get_peft_model

from tars_trl.commands.page import answers, build_page, check_gradio, reply_html, serve, stream
from tars_trl.data import build_prompt
from tars_trl.errors import SettingError
from tars_trl.sampling.complete import complete
from tests.browser import ABSENT, BROWSER, DRIVER, Browser, free_port, wait_for
from tests.conftest import question

LENGTH = {"max_completion_length": 12}
ROW = {"key": "chat", "prompt": build_prompt("What is one?", "Think.")}


@pytest.fixture
def adapted(tiny):
    """The thinker with an adapter that changes what it says."""
    model = get_peft_model(tiny[0], LoraConfig(target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM"))
    torch.manual_seed(0)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(std=1.0)
    return model.eval(), tiny[1]


def test_what_streams_ends_as_the_whole_answer(adapted):
    (done,) = complete(*adapted, [ROW], "text", **LENGTH)
    replies = list(stream(*adapted, ROW, "text", **LENGTH))
    text, tokens, speed = replies[-1]
    assert text == done.text and tokens == done.tokens and speed > 0
    assert len(replies) > 1 and all(text.startswith(earlier) for earlier, _, _ in replies)


def test_before_is_the_model_without_its_adapter(adapted):
    with adapted[0].disable_adapter():
        (before,) = complete(*adapted, [ROW], "text", **LENGTH)
    (after,) = complete(*adapted, [ROW], "text", **LENGTH)
    assert before.text != after.text
    for trained, expected in ((False, before), (True, after)):
        *_, (text, _, _) = stream(*adapted, ROW, "text", trained, **LENGTH)
        assert text == expected.text
    *_, (heard, read) = answers(*adapted, LENGTH)(None, "What is one?", "Think.", True)
    assert heard == "" and read.index("Read, before training") < read.index("Read, after training")


def test_a_fault_of_the_model_reaches_the_page(adapted, monkeypatch):
    def fail(*args, **options):
        raise RuntimeError("out of memory")

    monkeypatch.setattr("tars_trl.commands.page.complete", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        list(stream(*adapted, ROW, "text", **LENGTH))


@pytest.mark.parametrize(
    ("text", "answer", "thought"),
    [
        ("<think>two <b>&</think><answer>The answer is A.</answer>", "The answer is A.", "two &lt;b&gt;&amp;"),
        ("<think>not yet", "", "not yet"),
        ("Paris <script>", "Paris &lt;script&gt;", None),
    ],
)
def test_reasoning_is_folded_and_everything_escaped(text, answer, thought):
    page = reply_html("Heard", "speech", text, 3, 4.5)
    assert re.search("<div class='answer'>(.*?)</div>", page)[1] == answer and "3 tokens, 4 tokens/s" in page
    folded = re.search("<details>.*<div class='thought'>(.*?)</div></details>", page)
    assert (folded and folded[1]) == thought


def test_no_question_and_no_gradio_are_told(monkeypatch):
    with pytest.raises(SettingError, match="There is no question"):
        next(answers(None, None, {})(None, " ", "", False))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="--web needs Gradio.*pip install"):
        check_gradio()


def test_a_model_without_adapter_has_nothing_to_compare(tiny):
    pytest.importorskip("gradio", reason="the extra `web` is not installed")
    parts = build_page(*tiny, "Think.", LENGTH).config["components"]
    (box,) = [part for part in parts if part["type"] == "checkbox"]
    assert box["props"]["visible"] is False


@pytest.mark.slow
@pytest.mark.skipif(not (BROWSER and DRIVER), reason=ABSENT)
@pytest.mark.parametrize(("width", "height"), [(1200, 900), (390, 844)], ids=["wide", "telephone"])
def test_both_twins_answer_in_a_browser(adapted, tmp_path, width, height):
    """Upload, type, compare, ask: four answers; nothing is wider than the screen, nothing comes from elsewhere."""
    pytest.importorskip("gradio", reason="the extra `web` is not installed")
    recording = tmp_path / "question.wav"
    recording.write_bytes(question(1)["audio"]["bytes"])
    page = serve(*adapted, "Think.", LENGTH, "127.0.0.1", port := free_port(), wait=False)
    try:
        with Browser(tmp_path, width, height) as browser:
            browser.open(f"http://127.0.0.1:{port}")
            browser.type("input[type=file]", str(recording))
            browser.type("textarea", "What is one?")
            browser.click("input[type=checkbox]")
            wait_for(lambda: browser.run("return !!document.querySelector('.waveform-container, audio, #waveform')"))
            browser.click("button.primary")
            speeds = "return [...document.querySelectorAll('.speed')].map(part => part.textContent)"
            wait_for(lambda: [text.split(" tokens,")[0] for text in browser.run(speeds)] == ["12"] * 4)
            assert browser.run("return document.documentElement.scrollWidth <= window.innerWidth")
            lefts = "return [...document.querySelectorAll('.reply')].map(part => part.getBoundingClientRect().left)"
            assert len(set(map(round, browser.run(lefts)))) == (2 if width > 600 else 1)
            said = browser.run("return [...document.querySelectorAll('.answer')].map(part => part.textContent)")
            (after,) = complete(*adapted, [ROW], "text", **LENGTH)
            assert said[3].split() == after.text.split()
            fetched = browser.run("return performance.getEntriesByType('resource').map(entry => entry.name)")
            assert all(name.startswith(("data:", "blob:", f"http://127.0.0.1:{port}/")) for name in fetched), fetched
    finally:
        page.close()
