"""Who a client is: API keys.

A key file stores SHA-256 hashes of keys, one client a line. ``ApiKeys.read`` loads it,
and ``identify`` finds the client of a request.
"""

from __future__ import annotations

import codecs
import hashlib
import hmac
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipecat_personaplex.errors import AccessDenied, ConfigError
from pipecat_personaplex.protocol.moshi import MOSHI_PATH
from pipecat_personaplex.protocol.session_messages import BEARER_SUBPROTOCOL

if TYPE_CHECKING:  # `keys new` needs no server
    from starlette.requests import HTTPConnection

_KEY_BYTES = 32
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_MAX_SESSIONS = re.compile(r"max_sessions=([1-9][0-9]{0,5})")


@dataclass(frozen=True)
class ApiClient:
    """A client as the server knows it.

    Attributes:
        name: Name of its key in the key file.
        max_sessions: Sessions that all connections with this key may have at once; None for no
            limit.
        address: Remote address of this connection if the server has no keys; only for the log.
    """

    name: str
    max_sessions: int | None = None
    address: str = field(default="", compare=False)

    @property
    def label(self) -> str:
        """How the log names the client: its address, or the name of its key."""
        return self.address or self.name


ANONYMOUS = ApiClient("anonymous")
"""Every client of a server without keys."""


# Keys.


@dataclass(frozen=True)
class KeyLine:
    """A line of a key file: a client and the hash of its key."""

    client: ApiClient
    digest: str

    def __str__(self) -> str:
        limit = self.client.max_sessions
        end = "" if limit is None else f" max_sessions={limit}"
        return f"{self.client.name} {self.digest}{end}"


def new_key(name: str, max_sessions: int | None = None) -> tuple[str, KeyLine]:
    """Make a key for a client.

    Returns:
        The key, which is not stored anywhere, and the line for the key file.

    Raises:
        ConfigError: The name or the limit is not valid.
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
    """The keys that a server accepts.

    Example::

        keys = ApiKeys.read("keys.txt")
        client = keys.client_of("the key that a client sent")
    """

    def __init__(self, lines: Sequence[KeyLine]):
        self._lines = tuple(lines)

    def __len__(self) -> int:
        return len(self._lines)

    @classmethod
    def read(cls, path: str | Path) -> ApiKeys:
        """Read a key file: name, hash and an optional limit on each line; # starts a comment.

        Raises:
            ConfigError: The file cannot be read, contains no key, or has an invalid line.
        """
        path = Path(path)
        # The file's mode is not checked: it contains only hashes of random keys.
        lines: dict[str, KeyLine] = {}
        for number, content in enumerate(_read_text(path).splitlines(), 1):
            if not (content := content.partition("#")[0].strip()):
                continue
            try:
                line = _parse_line(content)
                if line.client.name in lines:
                    raise ConfigError(f"there is another key with the name {line.client.name}")
            except ConfigError as error:
                raise ConfigError(f"{path}, line {number}: {error}") from None
            lines[line.client.name] = line
        if not lines:
            raise ConfigError(f"the key file {path} has no key; personaplex keys new makes one")
        return cls(list(lines.values()))

    def client_of(self, key: str) -> ApiClient | None:
        """Return the client that has this key; None if the key is unknown."""
        digest = _digest(key)
        found: ApiClient | None = None
        # Compare with every line, also after a match: the response time must not depend on it.
        for line in self._lines:
            if hmac.compare_digest(line.digest, digest):
                found = line.client
        return found


def _read_text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"the key file {path} cannot be read: {error.strerror}") from None
    # A zero byte: UTF-16 text that was appended to a file in another encoding.
    if data.startswith(_UTF_16) or b"\0" in data:
        raise ConfigError(
            f"the key file {path} is not UTF-8 text; Windows PowerShell's >> writes UTF-16: "
            "use | Out-File -Append -Encoding ascii keys.txt"
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ConfigError(f"the key file {path} is not text") from None


def _digest(key: str) -> str:
    # A key is 256 random bits. A slow or salted hash protects weak passwords and adds nothing here.
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


# Requests.


def address_of(connection: HTTPConnection) -> str:
    """Return the remote address of a request for the log, without its port."""
    return "unknown" if connection.client is None else connection.client.host


def identify(connection: HTTPConnection, keys: ApiKeys | None) -> ApiClient:
    """Find out who sends a request.

    Args:
        connection: The request, with the key in one of the ways that PROTOCOL.md lists.
        keys: The keys that the server accepts; None if it needs none.

    Raises:
        AccessDenied: The request has no key, or an unknown one.
    """
    if keys is None:
        return replace(ANONYMOUS, address=address_of(connection))
    key = _key_of(connection)
    if key is None:
        raise AccessDenied("this server needs a key: send the header Authorization: Bearer KEY")
    client = keys.client_of(key)
    if client is None:
        raise AccessDenied("the server does not know this key")
    return client


def _key_of(connection: HTTPConnection) -> str | None:
    scheme, _, key = connection.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return key.strip()
    for offered in connection.headers.getlist("sec-websocket-protocol"):
        for name in offered.split(","):
            if name.strip().startswith(BEARER_SUBPROTOCOL):
                return name.strip().removeprefix(BEARER_SUBPROTOCOL)
    if connection.scope["path"] == MOSHI_PATH:
        # The URL is the only setting that clients of NVIDIA's server have.
        return connection.query_params.get("api_key")
    return None
