"""The part of the service that an application sees of a delegation."""

from __future__ import annotations

from typing import Any

from pipecat.utils.errors import ErrorCategory

from pipecat_personaplex.errors import ConfigError
from pipecat_personaplex.service.delegation.call_follower import CallFollower
from pipecat_personaplex.service.delegation.delegation_state import DelegationState
from pipecat_personaplex.service.steering_service import SteeringService


class DelegatingService(SteeringService):
    """A service whose functions are called by the backend of its delegation, if it has one."""

    _delegator = CallFollower()

    def register_function(self, function_name: str | None, handler: Any, **options: Any) -> None:
        """Register a function for the backend to call; without a delegation, warn.

        Args:
            function_name: Name of the function; None for all that have no handler.
            handler: As for ``LLMService.register_function``; its parameters are the backend's.
            **options: Passed on with it.
        """
        self._delegator.register_function(function_name, handler, options)
        super().register_function(function_name, handler, **options)

    @property
    def delegation_state(self) -> DelegationState:
        """What the delegation does now.

        Raises:
            ConfigError: The service has no delegation.
        """
        if self._delegator.state is None:
            raise ConfigError("this service has no delegation")
        return self._delegator.state

    async def report_backend_error(self, message: str) -> None:
        """Report that the backend failed; the call goes on."""
        await self.push_error(message, category=ErrorCategory.APPLICATION)
        await self._call_event_handler("on_backend_error", message)

    def _warn_of_tools(self) -> None:
        if self._delegator.state is None:  # else the backend calls them
            super()._warn_of_tools()
