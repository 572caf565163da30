"""What can go wrong, and what happens then. Every message says what was given, why it cannot work, and what to do.

Ends the command, before anything expensive is done:
    `SettingError`    a setting that cannot work, alone or beside another one
    `QuestionError`   rows that are no questions, a column that is missing
    `AudioError`      clips that cannot be used; with `on_bad_audio: skip` their rows are dropped and counted instead
    `ExportError`     what was exported is not what was trained; nothing is pushed
    `NotLoggedError`  a run or an evaluation that holds none of the figures that were asked for

Drops a row while a spoken data set is built, with its reason in the report:
    `UnspeakableError`  a question that cannot be said as a reader would say it
    `RefusedTextError`  a voice that refuses this text; the next voice tries

Ends such a build, which the same command continues:
    `VoiceError`        a voice or a recogniser that does not work at all

Ends a training run, which continues from its last checkpoint:
    `EngineError`       vLLM's engine or server has failed

All but the last three are `ValueError`s. `tars_trl.settings.run` shows them without a traceback.
"""


class TarsError(ValueError):
    """A `ValueError` of this package."""


class SettingError(TarsError):
    """A setting that cannot work."""


class QuestionError(TarsError):
    """Rows that are no questions."""


class AudioError(TarsError):
    """Audio that cannot be used.

    Args:
        given: the clip or the rows.
        why: what is wrong with them.
        remedy: what to do.
        reason: the class of the trouble in one or two words ("missing", "unreadable", "no rate", …), the same that
            `tars_trl.data.audio.audio_problem` starts with.
    """

    def __init__(self, given: str, why: str, remedy: str, *, reason: str):
        super().__init__(f"{given}: {why}. {remedy}")
        self.reason = reason
        self.why = why


class ExportError(TarsError):
    """What was exported is not what was trained."""


class NotLoggedError(TarsError):
    """A run or an evaluation holds none of the figures that were asked for."""


class UnspeakableError(TarsError):
    """A question that cannot be said as a reader would say it.

    Args:
        reason: the class of the trouble ("formula", "table", "too long", …).
        detail: what in the text it is.
    """

    def __init__(self, reason: str, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason = reason


class VoiceError(RuntimeError):
    """A voice or a recogniser that does not work."""


class EngineError(RuntimeError):
    """vLLM's engine or server has failed while a run sampled with it."""


class RefusedTextError(RuntimeError):
    """A voice that works refuses one text."""
