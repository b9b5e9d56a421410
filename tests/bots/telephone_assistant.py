"""``python -m bots.assistant`` with Twilio's REST API at the URL in FAKE_TWILIO_API."""

from __future__ import annotations

import os
import runpy
from typing import Any

from pipecat.serializers import twilio


class _Serializer(twilio.TwilioFrameSerializer):
    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, base_url=os.environ["FAKE_TWILIO_API"], **kwargs)


if __name__ == "__main__":
    twilio.TwilioFrameSerializer = _Serializer
    runpy.run_module("bots.assistant", run_name="__main__", alter_sys=True)
