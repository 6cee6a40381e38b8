"""The errors a user can cause or must act on. Everything else is a bug and keeps its own type."""


class AccordionError(Exception):
    """Base of every error this library raises on purpose; its text names the thing and the remedy."""


class ConfigError(AccordionError, ValueError):
    """A setting is unknown, of the wrong type or out of range; the text starts with its path."""


class DataError(AccordionError, ValueError):
    """A record, file or request cannot be used; the text names it."""


class ValidationFailed(DataError):
    """A data expectation failed; the text names the expectation, the rows and where they were kept."""


class ArtifactError(AccordionError, ValueError):
    """An artifact is missing, incomplete, altered, or of another kind than asked for."""


class TrainingDiverged(AccordionError, ArithmeticError):
    """A loss or gradient became NaN or infinite; the text names the step and the sequences."""


class OutOfMemory(AccordionError, MemoryError):
    """A device has too little memory; the text names the setting to change."""


class StorageError(AccordionError, OSError):
    """A file could not be written because the disk is full; the text says where, and that the old one is whole."""


class RankLost(AccordionError, RuntimeError):
    """Another process of the run died or answers no more; the text says after how long, and how to go on."""


class Interrupted(AccordionError):
    """A run was asked to stop and has saved its state; the text says where and how to go on."""


class ServiceError(AccordionError, RuntimeError):
    """A service (MLflow, Triton, DVC remote) is not running, not reachable, or refused."""


class RunLocked(AccordionError, RuntimeError):
    """Another run is using the same home folder; the text names its process."""
