"""PersonaPlex as a Pipecat service, and the frames with which other processors steer it."""

from pipecat_personaplex.service.control_frames import PersonaPlexHoldFrame, PersonaPlexReleaseFrame

__all__ = ["PersonaPlexHoldFrame", "PersonaPlexReleaseFrame"]
