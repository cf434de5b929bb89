"""Everything between the documented ``generate()`` call and the engine."""

from qvl.generation.config import GenerationConfig
from qvl.generation.generate import GenerationMixin
from qvl.generation.processors import LogitsProcessor, LogitsProcessorList
from qvl.generation.stopping import StoppingCriteria, StoppingCriteriaList
from qvl.generation.streamers import BaseStreamer, TextIteratorStreamer, TextStreamer

__all__ = [
    "BaseStreamer",
    "GenerationConfig",
    "GenerationMixin",
    "LogitsProcessor",
    "LogitsProcessorList",
    "StoppingCriteria",
    "StoppingCriteriaList",
    "TextIteratorStreamer",
    "TextStreamer",
]
