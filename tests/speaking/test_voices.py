"""Engines: a loopback server for the HTTP engine, and whatever real engines this machine has."""

import gzip
import json
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from time import monotonic

import numpy as np
import pytest

from tars_trl.errors import RefusedTextError, VoiceError
from tars_trl.speaking import voices
from tars_trl.speaking.clips import clip_problem, encode
from tars_trl.speaking.voices import LOCAL_ENGINES, HttpEngine, Kokoro, split_voice
from tests.speaking.tones import RATE, Tones

WAVE = Tones().speak("hello", "plain", 1.0)[0]
SPOKEN = (200, encode(WAVE, "flac"), {})


class Server:
    """Answers with `answers` one after the other, the last one for ever, and notes what it is asked."""

    def __init__(self):
        self.answers, self.requests, self.headers = [SPOKEN], [], []
        self.release = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                server.requests.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                server.headers.append(dict(self.headers))
                answer = server.answers.pop(0) if len(server.answers) > 1 else server.answers[0]
                if answer == "hang":
                    server.release.wait(30)
                if answer in ("drip", "drip headers"):
                    self.wfile.write(b"HTTP/1.1 200 OK\r\n" + (b"\r\n" if answer == "drip" else b"X-Long: "))
                    while not server.release.wait(0.05):
                        try:
                            self.wfile.write(b"a")
                        except OSError:  # the client has gone
                            return
                if isinstance(answer, str):
                    return  # closes the connection without a word
                status, body, headers = answer
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1/audio/speech"
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()

    def close(self):
        self.release.set()
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def server():
    started = Server()
    yield started
    started.close()


@pytest.fixture
def clock(monkeypatch):
    """Time that passes only when somebody sleeps: {"now": seconds, "slept": each sleep above 0}."""
    state = {"now": 100.0, "slept": []}

    def sleep(seconds):
        state["now"] += seconds
        if seconds > 0:
            state["slept"].append(round(seconds, 6))

    monkeypatch.setattr(voices, "sleep", sleep)
    monkeypatch.setattr(voices, "monotonic", lambda: state["now"])
    return state


def test_body_is_filled_in_and_the_answer_decoded(server):
    body = {"model": "m", "input": "<{text}>", "voice": "{voice}", "options": [{"speed": "{pace}", "keep": "{other}"}]}
    samples, rate = HttpEngine(server.url, body).speak("Say {voice}.", "ann", 1.25)
    np.testing.assert_allclose(samples, WAVE, atol=1e-4)  # 16 bits
    assert rate == RATE
    expected = {
        "model": "m",
        "input": "<Say {voice}.>",
        "voice": "ann",
        "options": [{"speed": 1.25, "keep": "{other}"}],
    }
    assert server.requests == [expected]


def test_passing_failures_are_retried_with_growing_waits(server, clock):
    server.answers = [(503, b"busy", {}), (429, b"", {"Retry-After": "7"}), "drop", SPOKEN]
    assert len(HttpEngine(server.url, backoff=0.5).speak("a", "v", 1.0)[0]) == len(WAVE)
    assert len(server.requests) == 4
    assert clock["slept"] == [0.5, 7, 2.0]


def test_a_server_that_stays_away_ends_the_run(server, clock):
    server.answers = [(503, b"still busy", {})]
    with pytest.raises(VoiceError, match="no speech in 3 tries.*status 503, still busy.*what is finished is kept"):
        HttpEngine(server.url, tries=3).speak("a", "v", 1.0)
    assert len(server.requests) == 3
    assert clock["slept"] == [1, 2]  # none after the last try


def test_a_server_that_hangs_is_given_up(server, clock):
    server.answers = ["hang", SPOKEN]
    assert len(HttpEngine(server.url, timeout=0.2).speak("a", "v", 1.0)[0]) == len(WAVE)
    assert len(server.requests) == 2


@pytest.mark.parametrize("answer", ["drip", "drip headers"])
def test_a_server_that_drips_is_given_up_at_the_deadline(server, answer):
    """A byte every 50 ms never exceeds a limit on each read."""
    server.answers = [answer]
    begin = monotonic()
    with pytest.raises(VoiceError, match="no speech in 1 tries of 0.5 s"):
        HttpEngine(server.url, timeout=0.5, tries=1).speak("a", "v", 1.0)
    assert monotonic() - begin < 2.5


def test_an_answer_without_end_is_cut_off(server):
    server.answers = [(200, bytes(3_000_000), {})]
    with pytest.raises(VoiceError, match="larger than 2 MB.*raise http_max_megabytes"):
        HttpEngine(server.url, max_megabytes=2).speak("a", "v", 1.0)
    assert len(server.requests) == 1


def test_a_compressed_answer_is_not_unpacked(server):
    """Five kilobytes, packed twice, were three gigabytes: unpacking heeds neither limit nor deadline."""
    server.answers = [(200, gzip.compress(gzip.compress(bytes(30_000_000))), {"Content-Encoding": "gzip, gzip"})]
    with pytest.raises(VoiceError, match="the answer is compressed.*Turn the server's compression off"):
        HttpEngine(server.url, max_megabytes=2).speak("a", "v", 1.0)
    assert server.headers[0]["Accept-Encoding"] == "identity"


@pytest.mark.parametrize("status", [200, 400, 401, 503])
@pytest.mark.parametrize("before", ["", "x" * 190])  # the second ends in the middle of the token
def test_a_server_that_repeats_our_header_does_not_get_it_into_a_log(server, clock, monkeypatch, status, before):
    monkeypatch.setenv("TTS_TOKEN", " secret-token\n")
    server.answers = [(status, f"{before}Bearer secret-token".encode(), {})]
    with pytest.raises((VoiceError, RefusedTextError)) as raised:
        HttpEngine(server.url, token_variable="TTS_TOKEN", tries=2).speak("a", "v", 1.0)
    assert server.headers[0]["Authorization"] == "Bearer secret-token" and "sec" not in str(raised.value)


def test_a_token_that_is_no_header_is_not_quoted(monkeypatch):
    monkeypatch.setenv("TTS_TOKEN", "secret\nX: y")
    with pytest.raises(VoiceError, match="a line break") as raised:
        HttpEngine("http://127.0.0.1:9/", token_variable="TTS_TOKEN").speak("a", "v", 1.0)
    assert "secret" not in str(raised.value)


def test_a_password_in_the_address_is_not_shown(clock):
    with pytest.raises(VoiceError, match="http://127.0.0.1:9/: no speech") as raised:
        HttpEngine("http://me:secret@127.0.0.1:9/?key=secret", tries=1).speak("a", "v", 1.0)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        ((422, b"bad text", {}), RefusedTextError, "status 422, bad text"),
        ((401, b"no", {}), VoiceError, "status 401"),
        ((302, b"", {"Location": "http://127.0.0.1:9/"}), VoiceError, "status 302"),
        ((200, b"<html>", {}), VoiceError, "no audio file but '<html>'"),
    ],
)
def test_lasting_failures_are_not_retried(server, clock, monkeypatch, answer, error, message):
    monkeypatch.setenv("TTS_TOKEN", "secret-token")
    server.answers = [answer]
    with pytest.raises(error, match=message) as raised:
        HttpEngine(server.url, token_variable="TTS_TOKEN").speak("a", "v", 1.0)
    assert len(server.requests) == 1
    assert server.headers[0]["Authorization"] == "Bearer secret-token"
    assert "secret-token" not in str(raised.value)


def test_rate_limit(server, clock):
    engine = HttpEngine(server.url, requests_per_second=4)
    for _ in range(5):
        engine.speak("a", "v", 1.0)
    assert clock["now"] - 100 == pytest.approx(1.0)  # the first goes at once, each further one a quarter later
    clock["now"] += 60
    engine.speak("a", "v", 1.0)
    engine.speak("a", "v", 1.0)
    assert clock["slept"] == [0.25] * 5  # an idle minute neither costs nor saves anything


def test_check_asks_once_and_names_the_voice(server, clock):
    server.answers = [(400, b"no voice bob", {})]
    with pytest.raises(VoiceError, match="http:bob.*no voice bob.*body's fields"):
        HttpEngine(server.url).check("bob")


def test_settings_that_cannot_work():
    for settings in (
        {"url": "localhost:80"},
        {"url": "http://[::1"},
        {"tries": 0},
        {"timeout": 0},
        {"requests_per_second": 0},
    ):
        with pytest.raises(VoiceError):
            HttpEngine(**{"url": "http://127.0.0.1/", **settings})
    with pytest.raises(VoiceError, match="token_variable='NOWHERE_SET'"):
        HttpEngine("http://127.0.0.1:9/", token_variable="NOWHERE_SET").speak("a", "v", 1.0)


def test_voice_names():
    assert split_voice("espeak-ng:en-us+f3") == ("espeak-ng", "en-us+f3")
    assert split_voice("piper:/a/b:c.onnx") == ("piper", "/a/b:c.onnx")
    for name in ("slt", "flite:", ":slt"):
        with pytest.raises(VoiceError, match="engine:voice"):
            split_voice(name)


@pytest.mark.parametrize("program", ["flite", "espeak-ng"])
def test_a_program_that_is_not_there(program, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(VoiceError, match=f"there is no {program}.*apt-get install"):
        LOCAL_ENGINES[program].check("x")


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(VoiceError, match="no file .*model.onnx"):
        Kokoro(str(tmp_path)).check("af_heart")


ENGINES = {**LOCAL_ENGINES, "kokoro": Kokoro(os.environ.get("TARS_TEST_KOKORO", "no-folder"))}
REAL_VOICES = ["flite:slt", "flite:rms", "espeak-ng:en-us", "espeak-ng:en-gb+f3", "hibari:heart", "kokoro:bf_emma"]
REAL_VOICES += [f"piper:{os.environ.get('TARS_TEST_PIPER', 'no-voice.onnx')}"]


@pytest.mark.parametrize("voice", REAL_VOICES, ids=lambda voice: voice.partition(":")[0] + voice[-3:])
def test_a_real_voice_speaks_repeatably_and_keeps_its_pace(voice):
    engine, name = split_voice(voice)
    try:
        ENGINES[engine].check(name)
    except VoiceError as error:
        if not any(words in str(error) for words in ("there is no", "cannot be imported")):
            raise  # it is installed: then it has to work
        pytest.skip(str(error))
    with pytest.raises(VoiceError, match="Name one|there is no file"):
        ENGINES[engine].check("nobody")
    text = "Which planet is the third one from the Sun? Option A: Mars. Option B: Earth."
    samples, rate = ENGINES[engine].speak(text, name, 1.0)
    again, _ = ENGINES[engine].speak(text, name, 1.0)
    faster, _ = ENGINES[engine].speak(text, name, 1.25)
    np.testing.assert_array_equal(samples, again)
    assert clip_problem(samples, rate, text) is None
    assert 0.7 < len(faster) / len(samples) < 0.9
