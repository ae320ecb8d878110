"""Errors that a user can cause, and the exit codes by which a script or a launcher tells how a verb ended."""

from __future__ import annotations

EXIT_DONE = 0  # the work is complete
EXIT_CRASH = 1  # a bug or a broken machine: a traceback says more
EXIT_USER_ERROR = 2  # the input is wrong: one message says what, where and what to do
EXIT_GO_ON = 75  # stopped when asked, everything saved: the same command goes on (EX_TEMPFAIL of sysexits.h)


class HanseError(ValueError):
    """Wrong input. Shown as ``hanse VERB: message`` without a traceback; exit code 2.

    The message says what is wrong, where, and what to do about it.
    """


class ConfigError(HanseError):
    """One or more problems of a configuration, found together and reported together."""

    def __init__(self, problems: list[str]):
        self.problems = problems
        head = f"{len(problems)} problems in the configuration\n  " if len(problems) > 1 else ""
        super().__init__(head + "\n  ".join(problems))
