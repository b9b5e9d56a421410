"""G.711 mu-law, the telephone's 8 bits a sample."""

from __future__ import annotations

import numpy as np

from pipecat_personaplex.audio import Pcm, float_to_pcm16, pcm16_to_float

_BIAS, _CLIP = 132, 32_635


def encode_mulaw(pcm: Pcm) -> bytes:
    """Encode float32 samples [n]."""
    samples = float_to_pcm16(pcm).astype(np.int32)
    magnitude = np.minimum(np.abs(samples), _CLIP) + _BIAS
    exponent = np.log2(magnitude).astype(np.int32) - 7
    mantissa = (magnitude >> (exponent + 3)) & 0x0F
    sign = np.where(samples < 0, 0x80, 0)
    code = (~(sign | (exponent << 4) | mantissa) & 0xFF).astype(np.uint8)
    return bytes(code)


def decode_mulaw(data: bytes) -> Pcm:
    """Decode to float32 samples [n]."""
    code = ~np.frombuffer(data, np.uint8)
    magnitude = (((code & 0x0F).astype(np.int32) << 3) + _BIAS) << ((code >> 4) & 0x07)
    samples = np.where(code & 0x80, _BIAS - magnitude, magnitude - _BIAS).astype(np.int16)
    return pcm16_to_float(samples)
