"""Exit with 0 if the server of this container answers HEALTHCHECK_URL, else with 1.

An answer is success, or the demand for a key: a server that checks keys runs.
"""

from __future__ import annotations

import os
import ssl
import sys
import urllib.error
import urllib.request

SECONDS = 4.0


def healthy(url: str) -> bool:
    """Whether the URL answers with success or asks for a key."""
    # A container asks itself on the loop-back address, which no certificate names.
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    # No proxy: the environment's is for the outside.
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
    )
    try:
        with opener.open(url, timeout=SECONDS) as answer:
            return bool(answer.status == 200)
    except urllib.error.HTTPError as error:
        if error.code == 401:
            return True
        print(f"{url}: {error}", file=sys.stderr)
        return False
    except OSError as error:
        print(f"{url}: {error}", file=sys.stderr)
        return False


if __name__ == "__main__":
    sys.exit(0 if healthy(os.environ["HEALTHCHECK_URL"]) else 1)
