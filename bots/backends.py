"""The language model behind the voice: the options, and the worker that runs it."""

from __future__ import annotations

import argparse
import importlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.workers.llm.backend_llm_worker import BackendLLMWorker

from bots.tool_calls import Tool
from pipecat_personaplex.errors import ConfigError
from pipecat_personaplex.interface import EngineLike
from pipecat_personaplex.service.delegation.delegator import require_features


@dataclass(frozen=True)
class _Provider:
    """An LLM service of Pipecat's.

    Attributes:
        module: Where its class is.
        service: Name of the class.
        key: Variable with the API key; empty if it needs none.
        url: Name of the constructor's argument for a base URL; empty if it has none.
        has_default_model: Whether the service chooses a model by itself.
    """

    module: str
    service: str
    key: str
    url: str
    has_default_model: bool


_PROVIDERS = {
    "openai": _Provider(
        "pipecat.services.openai.llm", "OpenAILLMService", "OPENAI_API_KEY", "base_url", True
    ),
    "anthropic": _Provider(
        "pipecat.services.anthropic.llm", "AnthropicLLMService", "ANTHROPIC_API_KEY", "", True
    ),
    "ollama": _Provider("pipecat.services.ollama.llm", "OLLamaLLMService", "", "base_url", False),
}


def add_backend_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--backend``, ``--backend-url`` and ``--backend-model``."""
    parser.add_argument(
        "--backend",
        metavar="none|openai|anthropic|ollama",
        default=os.environ.get("PERSONAPLEX_BACKEND") or "none",
        help="language model that looks things up and acts while the agent talks; needs --stt. "
        "openai needs OPENAI_API_KEY, or --backend-url for a server that speaks OpenAI's "
        "protocol; anthropic needs ANTHROPIC_API_KEY (default: none; environment: "
        "PERSONAPLEX_BACKEND)",
    )
    parser.add_argument(
        "--backend-url",
        metavar="URL",
        default=os.environ.get("PERSONAPLEX_BACKEND_URL") or None,
        help="base URL of the backend's server, such as http://127.0.0.1:8000/v1 (default: the "
        "provider's; environment: PERSONAPLEX_BACKEND_URL)",
    )
    parser.add_argument(
        "--backend-model",
        metavar="NAME",
        default=os.environ.get("PERSONAPLEX_BACKEND_MODEL") or None,
        help="name of the backend's model (default: Pipecat's choice for the provider; "
        "environment: PERSONAPLEX_BACKEND_MODEL)",
    )


class Backends:
    """Creates the backend of each call. All share one client, and so its connections.

    Args:
        service: An LLM service of Pipecat's, for OpenAI's protocol or Anthropic's.
        model: Name of the model; None for the service's default.
        options: Arguments of the service's constructor: address and key.

    Example::

        backends = choose_backend(args)
        worker = backends.create("You take orders.", [add_to_order])
    """

    def __init__(self, service: Any, model: str | None, options: dict[str, Any]):
        self._service = service
        self._model = {"model": model} if model else {}
        self._options = options
        self._client: Any = None

    def create(self, instructions: str, tools: Sequence[Tool]) -> BackendLLMWorker:
        """The backend of one call.

        Args:
            instructions: What the model does, in plain words.
            tools: What it may call.
        """
        settings = self._service.Settings(system_instruction=instructions, **self._model)
        llm = self._service(settings=settings, **self._options)
        # Each service makes a client, whose connections stay open until it is collected. A new
        # one has none yet.
        if self._client is None:
            self._client = llm._client
        llm._client = self._client
        return BackendLLMWorker(llm=llm, context=LLMContext(tools=list(tools)))

    async def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.close()


def choose_backend(args: argparse.Namespace) -> Backends | None:
    """Check the options.

    Returns:
        Creates the backends of calls; None for ``--backend none``.

    Raises:
        ConfigError: An option, a package or a key is missing or does not fit.
    """
    if args.backend == "none":
        if args.backend_url or args.backend_model:
            raise ConfigError("--backend-url and --backend-model need --backend")
        return None
    provider = _PROVIDERS.get(args.backend)
    if provider is None:
        names = ", ".join(("none", *_PROVIDERS))
        raise ConfigError(f"--backend is {args.backend!r}; it must be one of {names}")
    if args.stt == "none":
        raise ConfigError(
            f"--backend {args.backend} reads what the caller says: it needs --stt whisper, or "
            "another one"
        )
    options = _connection(args, provider)
    try:
        service = getattr(importlib.import_module(provider.module), provider.service)
    except ImportError:
        raise ConfigError(
            f"--backend {args.backend} needs a package: pip install 'pipecat-ai[{args.backend}]'"
        ) from None
    return Backends(service, args.backend_model, options)


def check_engine(args: argparse.Namespace, engine: EngineLike) -> None:
    """Check that the engine can speak a backend's answers, if there is a backend.

    Raises:
        ConfigError: It cannot.
    """
    if args.backend != "none":
        cure = "leave out --engine, or give it the address of `personaplex serve`"
        require_features(engine.features, f"--backend {args.backend}", cure)


def _connection(args: argparse.Namespace, provider: _Provider) -> dict[str, Any]:
    """The constructor's arguments for the address and the key."""
    options: dict[str, Any] = {}
    if args.backend_url:
        if not provider.url:
            raise ConfigError(f"--backend {args.backend} accepts no --backend-url")
        if not args.backend_url.startswith(("http://", "https://")):
            raise ConfigError(
                f"--backend-url is {args.backend_url!r}; it must be like http://127.0.0.1:8000/v1"
            )
        options[provider.url] = args.backend_url
    if not args.backend_model and (args.backend_url or not provider.has_default_model):
        raise ConfigError(f"--backend {args.backend} needs --backend-model here")
    if provider.key:
        key = os.environ.get(provider.key)
        if not key and not args.backend_url:
            raise ConfigError(f"--backend {args.backend} needs {provider.key}")
        options["api_key"] = key or "none"  # a server of one's own may need no key
    return options
