"""Floor 0: the errors a user can meet, each with its exit code.

As a library the engine raises these; the command line prints one line per problem and exits with the code.
An error text says what was asked, what was found, and what to change.
"""


class EngineError(Exception):
    """Base of every error that the engine raises on purpose."""

    exit_code = 70


class ConfigError(EngineError):
    """The configuration can't be used. `problems` holds one line each, with file and line where known."""

    exit_code = 2

    def __init__(self, *problems: str) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


class PlanError(ConfigError):
    """The configuration is valid, but not on this number of ranks."""


class UsageError(EngineError):
    """The engine was called in a way that it can't follow; nothing was done, and the right call may come next."""

    exit_code = 2


class DataError(EngineError):
    """Corpus, tokenizer or token files can't be used."""

    exit_code = 3


class CheckpointError(EngineError):
    """A checkpoint is damaged, or belongs to another model or run: it was not loaded."""

    exit_code = 4


class StorageError(EngineError):
    """A folder can't be written or a disk is full."""

    exit_code = 5


class LostRankError(EngineError):
    """Another rank ended, so this one can't go on. Never the cause: the other rank's message is."""

    exit_code = 6


class HangError(EngineError):
    """A rank froze, was cut off or took another path. Never raised: the watchdog that sees it ends the process."""

    exit_code = 7


class RanksDisagreeError(EngineError):
    """Ranks would execute different Programs; none of them starts."""

    exit_code = 8


class NumbersError(EngineError):
    """The loss or the gradient norm became NaN or infinite, or is above its limit. Nothing was updated."""

    exit_code = 9

    def __init__(self, text: str, *, complaint: str = "") -> None:
        super().__init__(text)
        self.complaint = complaint
        """What was found, without where and what to do."""


class CorruptionError(EngineError):
    """Bits are not what they were: memory or a link is faulty. Nothing that was saved before is in doubt."""

    exit_code = 10


class MemoryNeededError(EngineError):
    """The plan needs more memory than a rank has, or an allocation failed."""

    exit_code = 12


DONE = 0
INTERNAL = 70
PREEMPTED = 75
"""The run was asked to stop, and its checkpoint is published: the same command goes on (EX_TEMPFAIL of sysexits.h)."""
INTERRUPTED = 130
"""The shell's convention for a program ended by Ctrl-C: at once, with nothing saved."""
