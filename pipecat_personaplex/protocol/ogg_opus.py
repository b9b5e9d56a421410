"""Measures the audio of an Ogg-Opus stream without decoding it.

Silence compresses to 370 bytes a second and less: the size of a message does not bound what it
costs to decode. The duration stands in the first bytes of each packet (RFC 6716, section 3.1).
"""

from __future__ import annotations

from pipecat_personaplex.errors import InvalidAudio

_MAGIC = b"OggS"
_HEADER_BYTES = 27
_SEGMENTS = 26
_FULL_SEGMENT = 255
_HEADER_PACKETS = (b"OpusHead", b"OpusTags")
# Milliseconds of a frame by configuration number, 0 to 31: SILK, hybrid, CELT.
_FRAME_MS = (*(10, 20, 40, 60) * 3, *(10, 20) * 2, *(2.5, 5, 10, 20) * 4)
_MAX_PACKET_MS = 120.0


class OggOpusMeter:
    """Reads the pages of a stream and adds up the durations of its packets.

    Packets count when the page that they begin on is complete, even if the decoder skips them.

    Example::

        meter = OggOpusMeter()
        seconds = meter.feed(payload)  # before the payload is decoded
    """

    def __init__(self) -> None:
        self._page = bytearray()
        self._continued = False  # whether the next page begins inside a packet

    def feed(self, stream: bytes) -> float:
        """Take the stream's next bytes, which may end anywhere in a page.

        Returns:
            Seconds of audio in the pages that these bytes complete.

        Raises:
            InvalidAudio: The bytes are not pages of an Ogg stream, or a packet is empty.
        """
        self._page += stream
        seconds = 0.0
        start = 0
        while (size := self._page_size(start)) and start + size <= len(self._page):
            seconds += self._page_seconds(memoryview(self._page)[start : start + size])
            start += size
        del self._page[:start]  # what remains is less than one page (at most 65,307 bytes)
        return seconds

    def _page_size(self, start: int) -> int:
        """Size of the page that begins here; 0 if its header is not complete."""
        header = self._page[start : start + _HEADER_BYTES]
        if not header.startswith(_MAGIC[: len(header)]):
            raise InvalidAudio("the Ogg-Opus stream does not decode: a page must begin with OggS")
        if len(header) < _HEADER_BYTES:
            return 0
        segments = self._page[start + _HEADER_BYTES : start + _HEADER_BYTES + header[_SEGMENTS]]
        if len(segments) < header[_SEGMENTS]:
            return 0
        return _HEADER_BYTES + len(segments) + sum(segments)

    def _page_seconds(self, page: memoryview) -> float:
        count = page[_SEGMENTS]
        position = _HEADER_BYTES + count
        milliseconds = 0.0
        inside = self._continued
        for segment in page[_HEADER_BYTES : _HEADER_BYTES + count]:
            if not inside:
                milliseconds += _packet_ms(page[position : position + segment])
            position += segment
            inside = segment == _FULL_SEGMENT
        self._continued = inside
        return milliseconds / 1e3


def _packet_ms(packet: memoryview) -> float:
    """Duration of a packet from its first bytes; 0 for the stream's headers.

    Raises:
        InvalidAudio: The packet is empty. A decoder makes seconds of loss concealment of it.
    """
    if not packet:
        raise InvalidAudio("the Ogg-Opus stream does not decode: a packet must not be empty")
    if bytes(packet[:8]) in _HEADER_PACKETS:
        return 0.0
    frame = _FRAME_MS[packet[0] >> 3]
    code = packet[0] & 3
    if code < 3:
        return frame * (1 if code == 0 else 2)
    frames = packet[1] & 63 if len(packet) > 1 else 0
    return min(frame * frames, _MAX_PACKET_MS)
