"""Checks that need a CUDA device; they skip without one.

They need little: this checkout, torch, Triton, numpy, pytest, loguru, rich, safetensors and
sentencepiece. No Pipecat, no network; ``pytest.ini`` here replaces the project's options.

    PYTHONPATH=. python -m pytest tests/gpu

``PERSONAPLEX_TEST_DEVICE=cpu`` runs them on a CPU, where a stand-in records the graphs: this checks
the tests, not the device.
"""
