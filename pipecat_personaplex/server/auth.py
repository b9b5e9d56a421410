"""Keys of a server's clients: made here, and kept as hashes in a file."""

from __future__ import annotations

import codecs
import hashlib
import hmac
import ipaddress
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from starlette.requests import HTTPConnection

from pipecat_personaplex.errors import ConfigError
from pipecat_personaplex.protocol.moshi import MOSHI_PATH
from pipecat_personaplex.protocol.session_messages import BEARER_SUBPROTOCOL

_KEY_BYTES = 32
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_MAX_SESSIONS = re.compile(r"max_sessions=([1-9][0-9]{0,5})")


@dataclass(frozen=True)
class ApiClient:
    """Who a client is.

    Attributes:
        name: As the key file has it.
        max_sessions: That all connections with this key may hold at once; None for no limit.
    """

    name: str
    max_sessions: int | None = None


@dataclass(frozen=True)
class KeyLine:
    """A line of a key file: a guest, and the hash of its key."""

    guest: ApiClient
    digest: str

    def __str__(self) -> str:
        limit = self.guest.max_sessions
        end = "" if limit is None else f" max_sessions={limit}"
        return f"{self.guest.name} {self.digest}{end}"


def new_key(name: str, max_sessions: int | None = None) -> tuple[str, KeyLine]:
    """A key for a client, and the line that lets it in.

    Raises:
        ConfigError: The name or the limit cannot be.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"a key's name is up to 64 letters, digits, dots, dashes and underscores, not {name!r}"
        )
    key = secrets.token_urlsafe(_KEY_BYTES)
    line = KeyLine(ApiClient(name, max_sessions), _digest(key))
    _parse_line(str(line))
    return key, line


class ApiKeys:
    """The keys that a server takes."""

    def __init__(self, lines: Sequence[KeyLine]):
        self._lines = tuple(lines)

    def __len__(self) -> int:
        return len(self._lines)

    @classmethod
    def read(cls, path: str | Path) -> ApiKeys:
        """The keys of a file: a name, a hash and perhaps a limit on each line; # comments.

        Raises:
            ConfigError: The file cannot be read, has no key or a line that is none.
        """
        path = Path(path)
        # Whoever may read the file learns no key from it: it has hashes of random keys alone, so
        # that the usual mode of a new file is no reason for a warning.
        try:
            data = path.read_bytes()
        except OSError as error:
            raise ConfigError(f"the key file {path} cannot be read: {error.strerror}") from None
        if data.startswith(_UTF_16) or b"\0" in data:  # the latter: a part that was appended
            raise ConfigError(
                f"the key file {path} is not UTF-8 text; Windows PowerShell's >> writes UTF-16: "
                "use | Out-File -Append -Encoding ascii keys.txt"
            )
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError:
            raise ConfigError(f"the key file {path} is not text") from None
        lines: dict[str, KeyLine] = {}
        for number, content in enumerate(text.splitlines(), 1):
            if not (content := content.partition("#")[0].strip()):
                continue
            try:
                line = _parse_line(content)
                if line.guest.name in lines:
                    raise ConfigError(f"there is another key of the name {line.guest.name}")
            except ConfigError as error:
                raise ConfigError(f"{path}, line {number}: {error}") from None
            lines[line.guest.name] = line
        if not lines:
            raise ConfigError(f"the key file {path} has no key; personaplex keys new makes one")
        return cls(list(lines.values()))

    def guest_of(self, key: str) -> ApiClient | None:
        """Whose key it is; None if nobody's."""
        digest = _digest(key)
        found: ApiClient | None = None
        # Every line, however early one matches: the time must not tell which.
        for line in self._lines:
            if hmac.compare_digest(line.digest, digest):
                found = line.guest
        return found


def _digest(key: str) -> str:
    # A key is 256 random bits: nobody guesses one, so that a slow or salted hash, which guards
    # what people make up, would add nothing.
    return hashlib.sha256(key.encode(errors="replace")).hexdigest()


def _parse_line(content: str) -> KeyLine:
    name, *rest = content.split()
    if not _NAME.fullmatch(name):
        raise ConfigError("the line must begin with a name of letters, digits and . _ -")
    if not rest or not _DIGEST.fullmatch(rest[0]):
        raise ConfigError("after the name must come the key's SHA-256, 64 digits from 0 to f")
    limit = [_MAX_SESSIONS.fullmatch(option) for option in rest[1:]]
    if len(limit) > 1 or None in limit:
        raise ConfigError("after the hash may come max_sessions=N, and nothing else")
    return KeyLine(ApiClient(name, int(limit[0][1]) if limit and limit[0] else None), rest[0])


ANYBODY = ApiClient("anybody")
"""Who comes to a server without keys."""


def _is_address(host: str) -> bool:
    """Whether a Host header, in small letters, has an address or localhost for a name."""
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name == "localhost"
    return True


def _key_of(connection: HTTPConnection) -> str | None:
    scheme, _, key = connection.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return key.strip()
    for offered in connection.headers.getlist("sec-websocket-protocol"):
        for name in offered.split(","):
            if name.strip().startswith(BEARER_SUBPROTOCOL):
                return name.strip().removeprefix(BEARER_SUBPROTOCOL)
    if connection.scope["path"] == MOSHI_PATH:
        # Clients of NVIDIA's server can be given another URL, and nothing else.
        return connection.query_params.get("api_key")
    return None
