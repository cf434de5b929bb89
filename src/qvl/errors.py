"""Every exception that qvl raises on purpose.

Each class also derives from the built-in type that transformers raises in the same place, so an
``except ValueError`` written for transformers still catches. A message is one sentence or two: what was
wrong, what was expected, what to do.

::

    QvlError
    ├── InputError (ValueError)              what the caller handed over is wrong
    │   ├── MediaError                       a picture, video or document
    │   │   ├── MediaNotFoundError (FileNotFoundError, TypeError)   TypeError: transformers, for a video
    │   │   ├── MediaFetchError (OSError)    a URL that could not be read
    │   │   ├── MediaDecodeError (OSError)   broken, truncated or not the format it claims
    │   │   └── MediaTooLargeError           more pixels, frames or bytes than allowed
    │   ├── PromptError                      messages, template or text
    │   │   ├── PlaceholderMismatchError     placeholders and media differ in number
    │   │   └── PromptTooLongError
    │   ├── RowError                         one row of a file of conversations
    │   ├── CacheError                       past_key_values that do not fit the call
    │   └── GenerationError                  generation settings that make no sense together
    ├── InputTypeError (TypeError)           an argument of a type that is not read
    ├── UnknownNameError (KeyError, ValueError)   a name that is not one of those offered
    ├── ConfigError (ValueError)             a config value that cannot describe a model
    │   └── ConfigKeyError (KeyError)        a key that the config must have is missing
    ├── CheckpointError (OSError)            files of a checkpoint
    │   ├── CheckpointNotFoundError (FileNotFoundError, ValueError)   ValueError: transformers, for a bad id
    │   ├── CheckpointCorruptError           truncated or unreadable
    │   └── CheckpointMismatchError (RuntimeError)   tensors missing, left over or of another shape
    ├── NonFiniteError (ValueError)          NaN or infinity where numbers were expected
    ├── UnsupportedError (NotImplementedError, ValueError)   asked for something that qvl does not do
    └── MissingDependencyError (ImportError) an optional package; the message holds the install command
"""

from __future__ import annotations


class QvlError(Exception):
    """Base of everything below: catch this to catch all that qvl raises on purpose."""


class InputError(QvlError, ValueError):
    """Something the caller handed over is wrong."""


class MediaError(InputError):
    """A picture, video or document cannot be used."""


class MediaNotFoundError(MediaError, FileNotFoundError, TypeError):
    """The path names no file."""

    __str__ = Exception.__str__


class MediaFetchError(MediaError, OSError):
    """A URL could not be read."""

    __str__ = Exception.__str__


class MediaDecodeError(MediaError, OSError):
    """The bytes are broken, truncated or not of the format they claim."""

    __str__ = Exception.__str__


class MediaTooLargeError(MediaError):
    """More pixels, frames or bytes than allowed."""


class PromptError(InputError):
    """Messages, a chat template or a text cannot be made into a prompt."""


class PlaceholderMismatchError(PromptError):
    """The placeholders in a prompt and the media handed over differ in number."""


class PromptTooLongError(PromptError):
    """A prompt has more positions than the model was made for."""


class RowError(InputError):
    """One row of a file of conversations cannot be used. ``line``: its number in the file, from 1;
    ``reason``: the message without the file and the line."""

    def __init__(self, path: str, line: int, reason: str) -> None:
        super().__init__(f"{path}, line {line}: {reason}")
        self.path, self.line, self.reason = path, line, reason

    def __reduce__(self) -> tuple[type[RowError], tuple[str, int, str]]:
        return type(self), (self.path, self.line, self.reason)  # it comes back from other processes whole


class CacheError(InputError):
    """``past_key_values`` do not fit the call."""


class GenerationError(InputError):
    """Generation settings that make no sense, alone or together."""


class InputTypeError(QvlError, TypeError):
    """An argument has a type that is not read here."""


class UnknownNameError(QvlError, KeyError, ValueError):
    """A name that is not one of those offered."""

    __str__ = Exception.__str__  # KeyError would show the repr of the message


class ConfigError(QvlError, ValueError):
    """A config value that cannot describe a model."""


class ConfigKeyError(ConfigError, KeyError):
    """A key that the config must have is missing."""

    __str__ = Exception.__str__


class CheckpointError(QvlError, OSError):
    """The files of a checkpoint cannot be used."""

    __str__ = Exception.__str__


class CheckpointNotFoundError(CheckpointError, FileNotFoundError, ValueError):
    """No such folder, file, repository or revision."""


class CheckpointCorruptError(CheckpointError):
    """A file is truncated or cannot be parsed."""


class CheckpointMismatchError(CheckpointError, RuntimeError):
    """Tensors are missing, left over or of another shape than the config says."""


class NonFiniteError(QvlError, ValueError):
    """NaN or infinity where finite numbers were expected."""


class UnsupportedError(QvlError, NotImplementedError, ValueError):
    """Asked for something that qvl does not do."""


class MissingDependencyError(QvlError, ImportError):
    """An optional package is not installed; the message holds the command that installs it."""


def missing_dependency(package: str, extra: str, purpose: str) -> MissingDependencyError:
    """The error for an optional ``package`` that is absent: says what for, and how to install it."""
    return MissingDependencyError(f'{purpose} needs the package {package}: pip install "qvl[{extra}]"')
