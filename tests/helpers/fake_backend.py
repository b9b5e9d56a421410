"""A backend without a model or a clock."""

from __future__ import annotations

from collections.abc import Callable

from pipecat_personaplex.service.delegation.delegation_actions import Send


class FakeBackend:
    """Pipecat's worker, as far as its events and acknowledgements go; they keep their order.

    A run of the model sees the requests that came before it, and a request that arrives during a
    run waits for the next one. The worker reports that it is idle between the two, and again after
    the second only if it is the call's own; see ``BackendLink.works_on``.

    Args:
        own: Whether it is the call's own, else it is registered elsewhere.
        new_call: Returns the number of a tool call.
        answer: Returns the answer of a run that has seen the turns up to this one.

    Attributes:
        outbox: Events and acknowledgements that are on their way: kind and value.
        run_sees: Newest turn that the run in progress sees; None for no run.
        done: Newest turn that a run has seen to its end.
    """

    def __init__(self, own: bool, new_call: Callable[[], str], answer: Callable[[int], str]):
        self.own = own
        self.new_call = new_call
        self.answer = answer
        self.turns_known = 0  # newest turn in its conversation
        self.done = 0
        self.run_sees: int | None = None
        self.held = False  # a request waits for the next run
        self.tools: list[str] = []
        self.idle_told = True
        self.outbox: list[tuple[str, object]] = []

    def take(self, send: Send) -> None:
        busy = self.run_sees is not None or bool(self.tools)
        self.turns_known = max(self.turns_known, send.turn)
        self.idle_told = False
        self.outbox.append(("sent", (send.request, not busy)))
        if busy:
            self.held = True
        else:
            self.run_sees = self.turns_known

    def end_run(self, kind: str) -> None:
        if self.run_sees is None:
            return
        sees, self.run_sees = self.run_sees, None
        self.done = max(self.done, sees)
        if "note" in kind:
            self.outbox.append(("noted", "The kitchen is busy"))
        if "tool" in kind:
            call = self.new_call()
            self.tools.append(call)
            self.outbox.append(("tool", (call, False)))
        if "spoken" in kind:
            answer = self.answer(sees)
            self.outbox.append(("spoken", answer))
        self._go_on()

    def end_tool(self) -> None:
        if self.tools:
            self.outbox.append(("tool", (self.tools.pop(0), True)))
            if not self.tools and self.run_sees is None:
                self.run_sees, self.held = self.turns_known, False

    def fail(self, wrote: str) -> None:
        if self.run_sees is not None:
            self.done, self.run_sees = max(self.done, self.run_sees), None
            self.outbox.append(("failed", "HTTP 500"))
            if "note" in wrote:
                self.outbox.append(("noted", "Torn note"))
            if "spoken" in wrote:
                self.outbox.append(("spoken", "Torn answer"))
            self._go_on()

    def works_on(self) -> bool | None:
        """As ``BackendLink.works_on``, when the report of idleness has arrived."""
        if not self.own:
            return None
        if self.run_sees is None and not self.tools:
            return False
        self.idle_told = False
        return True

    def _go_on(self) -> None:
        if self.tools:
            return
        if not self.idle_told:  # too early if a request is held
            self.idle_told = True
            self.outbox.append(("idle", None))
        if self.held:
            self.run_sees, self.held = self.turns_known, False
