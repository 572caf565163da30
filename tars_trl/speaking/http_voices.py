"""A text-to-speech server as an engine: CosyVoice2, openaudio, any OpenAI-compatible speech endpoint.

One POST a text. The body is a template, so that a server's own field names can be used:

    HttpEngine("http://127.0.0.1:8000/v1/audio/speech",
               body={"model": "tts-1", "input": "{text}", "voice": "{voice}", "response_format": "wav"})

The answer is an audio file that soundfile reads (wav, flac, ogg, mp3).
"""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import Any
from urllib.parse import urlsplit

from ..data.audio import TARGET_RATE, load_audio
from ..errors import AudioError, RefusedTextError, VoiceError
from .voices import Speech

BODY: Mapping[str, Any] = {"input": "{text}", "voice": "{voice}", "speed": "{pace}", "response_format": "wav"}
RETRIED = (408, 425, 429, 500, 502, 503, 504)
"""HTTP statuses that may pass: time-outs, rate limits, a server that is busy or starts again."""
REFUSED = (400, 413, 422)
"""HTTP statuses that are about this text."""
LONGEST_WAIT = 60.0  # seconds between two tries


class _Unredirected(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the token to another server: it is an error."""

    def redirect_request(self, *args: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_Unredirected)


@dataclass
class HttpEngine:
    """An engine behind an address.

    Raises:
        VoiceError: an address that is none, or numbers that cannot work.
    """

    url: str
    """Where texts are posted; http or https."""
    body: Mapping[str, Any] = field(default_factory=lambda: dict(BODY))
    """JSON body; {text}, {voice} and {pace} in its strings are filled in, a string that is only {pace} as a number."""
    timeout: float = 120.0
    """Seconds for one try."""
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
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise VoiceError(
                f"url={self.url!r} is no address of a server. Give one that starts with http:// or https://."
            )
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
        given = json.dumps(_filled(dict(self.body), {"text": text, "voice": voice, "pace": pace})).encode()
        why = ""
        for number in range(self.tries):
            self._wait_for_turn()
            try:
                answer = self._post(given)
            except urllib.error.HTTPError as error:
                with error:
                    said = error.read(200).decode(errors="replace").strip()
                why = f"status {error.code}, {said or error.reason}"
                if error.code in REFUSED:
                    raise RefusedTextError(f"{self.url}: {why}") from error
                if error.code not in RETRIED:
                    raise VoiceError(f"{self.url}: {why}. Check the address and the token.") from error
                asked = error.headers.get("Retry-After", "")
            except (OSError, HTTPException) as error:  # refused, reset, cut off or timed out
                why, asked = str(error) or type(error).__name__, ""
            else:
                return self._decoded(answer)
            if number + 1 < self.tries:
                wait = float(asked) if asked.isdecimal() else self.backoff * 2**number
                time.sleep(min(wait, LONGEST_WAIT))
        raise VoiceError(
            f"{self.url}: no speech in {self.tries} tries of {self.timeout:g} s, the last one: {why}. Start the server "
            "and run the same command again: what is finished is kept."
        )

    def _wait_for_turn(self) -> None:
        if self.requests_per_second is not None:
            now = time.monotonic()
            time.sleep(max(0.0, self._next - now))
            self._next = max(now, self._next) + 1 / self.requests_per_second

    def _post(self, given: bytes) -> bytes:
        headers = {"Content-Type": "application/json"}
        if self.token_variable is not None:
            if not os.environ.get(self.token_variable):
                raise VoiceError(
                    f"token_variable={self.token_variable!r}: there is no such environment variable. Set it."
                )
            headers["Authorization"] = f"Bearer {os.environ[self.token_variable]}"
        request = urllib.request.Request(self.url, given, headers)
        with _OPENER.open(request, timeout=self.timeout) as answer:
            return answer.read()

    def _decoded(self, answer: bytes) -> Speech:
        try:
            return load_audio(answer), TARGET_RATE
        except AudioError as error:
            raise VoiceError(
                f"{self.url}: the answer is no audio file but {answer[:100]!r}. Ask for wav in the body, such as "
                '"response_format": "wav".'
            ) from error


def _filled(template: Any, values: Mapping[str, Any]) -> Any:
    """`template` with {text}, {voice} and {pace} filled in."""
    if isinstance(template, Mapping):
        return {name: _filled(value, values) for name, value in template.items()}
    if isinstance(template, list):
        return [_filled(value, values) for value in template]
    if isinstance(template, str):
        for name, value in values.items():
            if template == f"{{{name}}}":
                return value
        # One pass: a text that itself holds {voice} stays as it is.
        pieces = template.split("{")
        filled = pieces[0]
        for piece in pieces[1:]:
            name, brace, rest = piece.partition("}")
            filled += f"{values[name]}{rest}" if brace and name in values else "{" + piece
        return filled
    return template
