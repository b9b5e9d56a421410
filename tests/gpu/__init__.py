"""Checks that need a CUDA device; they skip without one.

They ask for little: this checkout, torch, Triton, numpy, pytest, loguru, rich, safetensors and
sentencepiece. No Pipecat, no network; ``pytest.ini`` here keeps the rest of the suite out of it.

    PYTHONPATH=. python -m pytest tests/gpu

``PERSONAPLEX_TEST_DEVICE=cpu`` runs them on a CPU instead, with graphs recorded by the stand-in:
that tries the tests, not the device.
"""
