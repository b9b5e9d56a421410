"""The names of a checkpoint's files, those of ``nvidia/personaplex-7b-v1``. Imports no torch."""

MODEL_FILE = "model.safetensors"
MIMI_FILE = "tokenizer-e351c8d8-checkpoint125.safetensors"
TOKENIZER_FILE = "tokenizer_spm_32k_3.model"
VOICES_FILE = "voices.tgz"
CONFIG_FILE = "config.json"
ADAPTER_FILE = "lora.safetensors"
"""A LoRA adapter without another name, as Kyutai's training writes it."""
RELEASE_FILES = (MODEL_FILE, MIMI_FILE, TOKENIZER_FILE, VOICES_FILE, CONFIG_FILE)
