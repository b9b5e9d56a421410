"""The signature of Twilio's requests, compared with the validator of Twilio's own library."""

from __future__ import annotations

from urllib.parse import urlencode

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.types import Message, Receive, Scope, Send
from twilio.request_validator import RequestValidator

from bots.twilio_signature import TwilioOnly, is_valid, signature
from tests.helpers.telephone import PUBLIC, TOKEN, signed

FORM = {"CallSid": "CA" + "1" * 32, "From": "+4930123456", "To": "", "Caller Name": "Zoë & Söhne"}
URL = f"https://{PUBLIC}/"
VALIDATOR = RequestValidator(TOKEN)


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.text(min_size=1), st.text(), max_size=5))
def test_it_is_that_of_twilios_library(form: dict[str, str]) -> None:
    surrogates = any("\ud800" <= c <= "\udfff" for c in "".join([*form, *form.values()]))
    if not surrogates:
        assert signature(TOKEN, URL, form.items()) == VALIDATOR.compute_signature(URL, form)


def test_every_change_of_a_request_is_noticed() -> None:
    given = VALIDATOR.compute_signature(URL, FORM)
    assert is_valid(given, TOKEN, [URL], [*FORM.items()])
    assert is_valid(given, TOKEN, ["https://elsewhere.example/", URL], [*FORM.items()])
    for wrong in ("", given[:-1], given.lower(), given + "=", "\udcff", "ü"):
        assert not is_valid(wrong, TOKEN, [URL], [*FORM.items()])
    assert not is_valid(given, "another token", [URL], [*FORM.items()])
    assert not is_valid(given, TOKEN, [URL + "x"], [*FORM.items()])
    assert not is_valid(given, TOKEN, [URL], [*(FORM | {"From": "+1"}).items()])


async def call(headers: dict[str, str], form: dict[str, str], url: str = "/") -> int:
    """Post a form to the bot as a proxy passes it on: with a host name of its own, without TLS."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        # The application still gets the body.
        assert (await receive())["body"] == urlencode(form).encode()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    transport = httpx.ASGITransport(app=TwilioOnly(app, TOKEN, PUBLIC))
    async with httpx.AsyncClient(transport=transport, base_url="http://10.0.0.7:7860") as http:
        return (await http.post(url, data=form, headers=headers)).status_code


async def test_the_webhook_is_open_to_twilio_alone() -> None:
    assert await call(signed(URL, FORM), FORM) == 200
    assert await call(signed(f"https://{PUBLIC}:443/", FORM), FORM) == 200
    assert await call(signed(f"{URL}?a=1", FORM), FORM, "/?a=1") == 200
    assert await call({}, FORM) == 403
    assert await call(signed(URL, FORM), FORM | {"From": "+1"}) == 403
    assert await call(signed(URL, FORM), FORM, "/?a=1") == 403
    assert await call(signed(f"http://{PUBLIC}/", FORM), FORM) == 403
    assert await call(signed("https://10.0.0.7:7860/", FORM), FORM) == 403


@pytest.mark.parametrize(
    ("url", "accepted"),
    [
        (f"wss://{PUBLIC}/ws", True),
        (f"wss://{PUBLIC}/ws/", True),
        (f"wss://{PUBLIC}:443/ws", True),
        (f"wss://{PUBLIC}/", False),
        ("wss://evil.example/ws", False),
        (None, False),
    ],
)
async def test_the_upgrade_is_open_to_twilio_alone(url: str | None, accepted: bool) -> None:
    sent: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "websocket.accept"})

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    async def send(message: Message) -> None:
        sent.append(message)

    headers = (
        [] if url is None else [(k.lower().encode(), v.encode()) for k, v in signed(url).items()]
    )
    scope = {"type": "websocket", "path": "/ws", "query_string": b"", "headers": headers}
    await TwilioOnly(app, TOKEN, PUBLIC)(scope, receive, send)
    assert sent[0]["type"] == ("websocket.accept" if accepted else "websocket.close")
