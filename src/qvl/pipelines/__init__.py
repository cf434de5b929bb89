"""``pipeline("image-text-to-text")``: pictures and text in, text out, in one call.

A thin front on a processor and a model. Inputs and outputs have the shapes of transformers' pipeline of the
same name. (The folder has transformers' plural name, so that the function ``qvl.pipeline`` and this module
do not compete for one attribute.)
"""

from qvl.pipelines.image_text_to_text import ImageTextToTextPipeline, ReturnType
from qvl.pipelines.loading import pipeline

__all__ = ["ImageTextToTextPipeline", "ReturnType", "pipeline"]
