"""Checkpoints and LoRA adapters in Kyutai's form, written with ``moshi`` from PyPI."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from pipecat_personaplex.bench.peer import peer_lm_kwargs, peer_mimi_config
from pipecat_personaplex.checkpoint.loader import Checkpoint
from pipecat_personaplex.constants import CODEBOOKS
from pipecat_personaplex.engine.batch import Batch
from pipecat_personaplex.engine.kv_cache import RingCache
from pipecat_personaplex.models.config import LMConfig, ModelConfig
from tests.helpers.checkpoints import (
    MIMI_FILE,
    SMALL_MIMI,
    TOKENIZER_FILE,
    Tensors,
    write_checkpoint,
)

CPU = torch.device("cpu")
RANK, SCALING = 4, 1.5
SMALL = ModelConfig(
    lm=LMConfig(
        dim=64,
        num_layers=2,
        num_heads=4,
        context=60,
        text_card=320,
        dep_q=8,
        depformer_dim=32,
        depformer_dim_feedforward=132,
        depformer_num_heads=4,
        depformer_num_layers=2,
    ),
    mimi=SMALL_MIMI,
)
NAMES = {
    "moshi_name": "moshi.safetensors",
    "mimi_name": "codec/mimi.safetensors",
    "mimi_config_name": "mimi.json",
    "tokenizer_name": "text.model",
}


def lm_kwargs(config: ModelConfig) -> dict[str, Any]:
    """The arguments of ``moshi``'s language model, with the depth steps of the file."""
    return peer_lm_kwargs(config) | {"dep_q": config.lm.dep_q}


def flat_config(config: ModelConfig, **extra: Any) -> dict[str, Any]:
    """A ``config.json`` with the keys that Kyutai's have."""
    return {
        **lm_kwargs(config),
        "context": config.lm.context,
        "model_type": "moshi",
        "conditioners": {},
        "fuser": {"cross_attention_pos_emb": False, "sum": [], "prepend": [], "cross": []},
        "cross_attention": False,
        "demux_second_stream": False,
        "text_card_out": None,
        "lm_gen_config": {"temp": 0.7, "temp_text": 0.7, "top_k": 250, "top_k_text": 50},
        "model_id": {"sig": "0123abcd", "epoch": 7},
        **extra,
    }


def write_kyutai(folder: Path, config: ModelConfig, **extra: Any) -> Path:
    """Write random models as ``moshi`` saves them, with file names of their own and no voices."""
    from moshi.models import loaders

    release = write_checkpoint(folder / "release", config)
    (folder / "codec").mkdir()
    lm = loaders.get_moshi_lm(release / "model.safetensors", lm_kwargs(config), CPU, torch.float32)
    save_file(lm.state_dict(), folder / NAMES["moshi_name"])
    shutil.move(release / MIMI_FILE, folder / NAMES["mimi_name"])
    shutil.move(release / TOKENIZER_FILE, folder / NAMES["tokenizer_name"])
    shutil.rmtree(release)
    mimi = peer_mimi_config(config)
    mimi["transformer"]["context"], mimi["quantizer"]["n_q"] = config.mimi.context, 10
    (folder / NAMES["mimi_config_name"]).write_text(json.dumps(mimi))
    (folder / "config.json").write_text(json.dumps(flat_config(config, **NAMES, **extra)))
    return folder


def adapter_tensors(config: ModelConfig, seed: int = 1) -> Tensors:
    """A random adapter with the tensors that Kyutai's training saves."""
    from moshi.models import loaders
    from moshi.modules.lora import replace_all_linear_with_lora

    torch.manual_seed(seed)
    lm = loaders.get_moshi_lm(None, lm_kwargs(config), CPU, torch.float32)
    replace_all_linear_with_lora(lm, RANK, SCALING)
    return {
        name: tensor.contiguous() for name, tensor in lm.state_dict().items() if ".lora_" in name
    }


def write_adapter(folder: Path, tensors: Tensors, **settings: Any) -> Path:
    """Write an adapter's folder."""
    folder.mkdir()
    save_file(tensors, folder / "lora.safetensors")
    values = {"lora": True, "lora_rank": RANK, "lora_scaling": SCALING, **settings}
    (folder / "config.json").write_text(json.dumps(values))
    return folder


def peer_lm(config: ModelConfig, weights: Path, adapter: Path | None = None) -> Any:
    """The language model of a file in ``moshi``, with an adapter merged into it."""
    from moshi.models import loaders

    lora = {"lora": True, "lora_rank": RANK, "lora_scaling": SCALING} if adapter else {}
    lm = loaders.get_moshi_lm(
        weights,
        lm_kwargs(config) | lora,
        CPU,
        torch.float32,
        lora_weights=adapter,
        fuse_lora=True,
    )
    return lm.eval()


@torch.inference_mode()
def assert_logits_agree(ours: Checkpoint, peer: Any, frames: int) -> None:
    """Step both models on the same random tokens; every logit must agree in float32."""
    config, lm = ours.config.lm, ours.lm
    generator = torch.Generator().manual_seed(7)
    columns = torch.randint(0, config.text_card, (frames, 17), generator=generator)
    columns[:, 1:] = torch.randint(0, config.card + 1, (frames, 16), generator=generator)
    columns[0] = torch.tensor([config.text_card] + [config.card] * 16)
    columns[3] = -1  # embeds to zero
    ring = RingCache.for_lm(lm, 1, CPU)
    batch = Batch.of([0], CPU)
    with peer.streaming(1):
        for index, column in enumerate(columns):
            position = torch.tensor([index])
            x = lm.embed(column)[None, None]
            hidden = lm(x, position[:, None], ring.at(batch, [index], position))[:, 0]
            peer_hidden, peer_text = peer.forward_text(column[None, :, None])
            torch.testing.assert_close(
                lm.text_logits(hidden), peer_text[:, 0, 0], atol=1e-4, rtol=1e-4
            )
            text, codes = column[:1] % config.text_card, column[1:9] % config.card
            logits: list[torch.Tensor] = []

            def given(
                codebook: int,
                row: torch.Tensor,
                codes: torch.Tensor = codes,
                logits: list[torch.Tensor] = logits,
            ) -> torch.Tensor:
                logits.append(row)
                return codes[codebook : codebook + 1]

            lm.depth(hidden, text, given)
            previous = [text, *codes.split(1)]
            with peer.depformer.streaming(1):
                for codebook in range(CODEBOOKS):
                    token = previous[codebook].view(1, 1, 1)
                    expected = peer.forward_depformer(codebook, token, peer_hidden)[:, 0, 0]
                    torch.testing.assert_close(logits[codebook], expected, atol=1e-4, rtol=1e-4)
