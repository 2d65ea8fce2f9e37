"""What lets us into an archive: from the environment or a private file, when it is needed, and kept nowhere."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

from clearmargin.errors import ConfigError

__all__ = ["Credentials", "credentials"]

_TOKEN = "CLEARMARGIN_PACS_TOKEN"
_USER = "CLEARMARGIN_PACS_USER"
_PASSWORD = "CLEARMARGIN_PACS_PASSWORD"
_FILE = "CLEARMARGIN_PACS_FILE"
_MOST_BYTES = 65536


@dataclass(frozen=True, kw_only=True)
class Credentials:
    """A bearer token, or a user and a password; neither is shown by ``repr``, and neither can be pickled."""

    token: str = field(default="", repr=False)
    user: str = field(default="", repr=False)
    password: str = field(default="", repr=False)

    def __bool__(self) -> bool:
        return bool(self.token or self.user)

    def __reduce__(self) -> str:
        raise TypeError("credentials are not pickled: each process reads them for itself")


def credentials() -> Credentials:
    """Return the credentials of ``CLEARMARGIN_PACS_TOKEN``, of ``_USER`` and ``_PASSWORD``, or of ``_FILE``.

    The file has lines ``token = ...``, or ``user = ...`` and ``password = ...``, and is readable by its owner alone.
    Without any of these the credentials are empty.

    Raises:
        ConfigError: The file cannot be read, is open to others, or holds something else; a part is missing.
    """
    place = os.environ.get(_FILE, "")
    values = (
        _of_file(Path(place))
        if place
        else {
            "token": os.environ.get(_TOKEN, ""),
            "user": os.environ.get(_USER, ""),
            "password": os.environ.get(_PASSWORD, ""),
        }
    )
    made = Credentials(**values)
    if made.token and made.user:
        raise ConfigError("the archive's credentials are a token, or a user and a password; both are given")
    if bool(made.user) != bool(made.password):
        missing = _PASSWORD if made.user else _USER
        raise ConfigError(f"the archive's user and password come together: {missing} is not set")
    if any(not character.isprintable() for character in made.token + made.user):
        raise ConfigError("the archive's token or user holds a line break or another control character")
    return made


def _of_file(path: Path) -> dict[str, str]:
    try:
        with path.open("rb") as file:
            open_to = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            content = file.read(_MOST_BYTES).decode()
    except (OSError, UnicodeDecodeError):
        raise ConfigError(f"the file '{path}' of {_FILE} cannot be read as text") from None
    if open_to & 0o077:
        raise ConfigError(f"the file '{path}' of {_FILE} is open to others: chmod 600 '{path}'")
    values: dict[str, str] = {}
    for number, line in enumerate(content.splitlines(), start=1):
        name, equals, value = (part.strip() for part in line.partition("="))
        if not line.strip() or name.startswith("#"):
            continue
        if not equals or name not in ("token", "user", "password"):
            raise ConfigError(
                f"line {number} of '{path}': expected 'token = ...', 'user = ...' or 'password = ...'"
            )
        values[name] = value
    return values
