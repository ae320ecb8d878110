"""Errors that a user can cause, and the exit codes by which a script or a launcher tells how a verb ended."""

from __future__ import annotations

from collections.abc import Sequence

EXIT_DONE = 0  # the work is complete
EXIT_CRASH = 1  # a bug or a broken machine: a traceback says more
EXIT_USER_ERROR = 2  # the input is wrong: one message says what, where and what to do
EXIT_HUNG = 69  # no step came to an end: every rank wrote down where it stands, and left (EX_UNAVAILABLE)
EXIT_FLAKY = 71  # a machine computes wrongly; nothing wrong was kept: the same command goes on, elsewhere (EX_OSERR)
EXIT_GO_ON = 75  # stopped when asked, everything saved: the same command goes on (EX_TEMPFAIL of sysexits.h)
EXIT_INTERRUPTED = 130  # Ctrl-C, where there was nothing to save

MEANINGS = {
    EXIT_DONE: "done",
    EXIT_CRASH: "a bug or a broken machine; there is a traceback",
    EXIT_USER_ERROR: "wrong input; a message says what, where and what to do",
    EXIT_HUNG: "no step came to an end; `logs/stack-rank-*.txt` say where every rank stood: the same command goes on",
    EXIT_FLAKY: "a machine computes wrongly; the message names it: the same command goes on, on other machines",
    EXIT_GO_ON: "stopped when asked, everything saved: the same command goes on",
    EXIT_INTERRUPTED: "interrupted",
}


class HanseError(ValueError):
    """Wrong input. Shown as ``hanse VERB: message`` without a traceback; the process ends with ``exit_code``.

    The message says what is wrong, where, and what to do about it.
    """

    exit_code = EXIT_USER_ERROR


class FlakyError(HanseError):
    """The input is right, and a machine is not: the same command may succeed elsewhere.

    ``nodes``: those to suspect, as the scheduler calls them; none where nobody can tell.
    """

    exit_code = EXIT_FLAKY

    def __init__(self, message: str, nodes: Sequence[str] = ()):
        self.nodes = tuple(nodes)
        super().__init__(message)


class ConfigError(HanseError):
    """One or more problems of a configuration, found together and reported together."""

    def __init__(self, problems: list[str]):
        self.problems = problems
        head = f"{len(problems)} problems in the configuration\n  " if len(problems) > 1 else ""
        super().__init__(head + "\n  ".join(problems))
