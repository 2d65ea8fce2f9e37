"""The secret key, and what is derived from it: UIDs, pseudonyms, shifts of dates."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import stat
import uuid
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from clearmargin.errors import ConfigError

__all__ = ["LEAST_KEY_BYTES", "LONGEST_SHIFT_DAYS", "Key", "read_key", "same_patient", "write_new_key"]

LEAST_KEY_BYTES = 32
_BY_STUDY = ("StudyInstanceUID:", "SOPInstanceUID:")
LONGEST_SHIFT_DAYS = 3652
"""Ten years: nobody's dates move further, and never into the future."""


@dataclass(frozen=True)
class Key:
    """A secret: the same one gives the same replacements in every process; without it nobody can undo them."""

    secret: bytes = field(repr=False)

    def uid(self, original: str) -> str:
        """Return the UID that stands for ``original``: ``2.25.`` and 122 keyed bits (PS3.5, B.2)."""
        return _uid(self.secret, original)

    def pseudonym(self, patient: str) -> str:
        """Return ``CM-`` and 12 hex digits for a PatientID, whose case and outer spaces do not count."""
        return f"CM-{self._digest('patient', same_patient(patient))[:6].hex()}"

    def shift_days(self, patient: str) -> int:
        """Return how many days this patient's dates move: 1 to 3652 days into the past."""
        return -1 - int.from_bytes(self._digest("days", same_patient(patient))[:8]) % LONGEST_SHIFT_DAYS

    def _digest(self, purpose: str, text: str) -> bytes:
        return _digest(self.secret, purpose, text)


def same_patient(patient: str) -> str:
    """Return a PatientID in the form in which it is compared: systems write one patient's in several cases.

    >>> same_patient(" pid7 ")
    'PID7'
    """
    return patient.strip("\0 ") if patient.startswith(_BY_STUDY) else patient.strip("\0 ").upper()


def _digest(secret: bytes, purpose: str, text: str) -> bytes:
    return hmac.new(secret, json.dumps([purpose, text]).encode(), hashlib.sha256).digest()


@lru_cache(maxsize=2**16)
def _uid(secret: bytes, original: str) -> str:
    return f"2.25.{uuid.UUID(bytes=_digest(secret, 'uid', original)[:16], version=4).int}"


def read_key(path: Path) -> Key:
    """Return the key in a file.

    Raises:
        ConfigError: There is none, it is too short, or others than its owner may read it.
    """
    if not path.is_file():
        raise ConfigError(f"there is no key file '{path.name}': --new-key writes one")
    mode = stat.S_IMODE(path.stat().st_mode)
    if os.name == "posix" and mode & 0o077:
        raise ConfigError(
            f"the key file '{path.name}' is open to others (mode {mode:04o}): chmod 600 it, "
            "and make a new one if they may have read it"
        )
    secret = path.read_bytes().strip()
    if len(secret) < LEAST_KEY_BYTES:
        raise ConfigError(
            f"the key in '{path.name}' has {len(secret)} bytes, at least {LEAST_KEY_BYTES} are needed: "
            "--new-key writes one, to a file that is not there yet"
        )
    return Key(secret)


def write_new_key(path: Path) -> None:
    """Write 32 random bytes as hex digits, mode 0600, to a file that must not exist yet.

    Raises:
        ConfigError: The file exists, or cannot be written there.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise ConfigError(
            f"the key file '{path.name}' is already there: leave out --new-key to use it"
        ) from None
    except OSError as error:
        raise ConfigError(f"the key file '{path.name}' cannot be written ({error.strerror})") from None
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_hex(LEAST_KEY_BYTES) + "\n")
