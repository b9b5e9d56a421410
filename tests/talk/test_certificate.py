"""The certificate that ``personaplex talk --share-on-lan`` makes."""

from __future__ import annotations

import socket
import ssl
import threading

from cryptography import x509

from pipecat_personaplex.talk.certificate import self_signed


def test_it_names_the_machine_by_names_of_any_language() -> None:
    context = self_signed(["Büro-PC", "192.0.2.7", "localhost", "x" * 64])
    client_end, server_end = socket.socketpair()
    serving = threading.Thread(target=lambda: context.wrap_socket(server_end, True).close())
    serving.start()
    trusting = ssl.create_default_context()
    trusting.check_hostname = False
    trusting.verify_mode = ssl.CERT_NONE
    with trusting.wrap_socket(client_end) as connected:
        certificate = x509.load_der_x509_certificate(connected.getpeercert(True) or b"")
    serving.join()
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["xn--bro-pc-3ya", "localhost"]
    assert [str(address) for address in names.get_values_for_type(x509.IPAddress)] == ["192.0.2.7"]
