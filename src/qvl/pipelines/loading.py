"""Makes a pipeline: from names, or from loaded parts, to a model and a processor on a device."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from qvl.auto import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer
from qvl.errors import InputError, UnknownNameError, UnsupportedError
from qvl.hub import BUNDLED
from qvl.pipelines.device import pick_device
from qvl.pipelines.image_text_to_text import TASK, ImageTextToTextPipeline
from qvl.processing.image import Qwen2VLImageProcessor
from qvl.processing.processor import Qwen2_5_VLProcessor

if TYPE_CHECKING:
    from qvl.modeling import Qwen2_5_VLForConditionalGeneration

logger = logging.getLogger(__name__)


def pipeline(
    task: str | None = None,
    model: str | Path | Qwen2_5_VLForConditionalGeneration | None = None,
    config: Any = None,
    tokenizer: Any = None,
    feature_extractor: Any = None,
    image_processor: Any = None,
    processor: Any = None,
    framework: str | None = None,
    revision: str | None = None,
    use_fast: bool = True,
    token: str | bool | None = None,
    device: int | str | torch.device | None = None,
    device_map: Any = None,
    dtype: str | torch.dtype | None = "auto",
    trust_remote_code: bool | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    pipeline_class: Any = None,
    *,
    torch_dtype: str | torch.dtype | None = None,
    **kwargs: Any,
) -> ImageTextToTextPipeline:
    """Loads a model and its processor and puts them behind one call.

    ``model``: a folder, a hub id or a loaded model; None means the bundled one. ``processor``,
    ``tokenizer`` and ``image_processor``: objects or names, when they should not be those of ``model``.
    ``device``: where to load it (a number is an accelerator's, -1 the CPU; by default the first accelerator);
    a loaded model stays where it is unless ``device`` is given. ``device_map`` excludes ``device``.
    ``model_kwargs`` go to ``from_pretrained``; ``kwargs`` become the defaults of every call (``batch_size``,
    ``max_new_tokens``, ...); an ``assistant_model`` among them may be a name. ``use_fast`` and
    ``trust_remote_code`` decide nothing: there is one tokenizer, and no repository's code runs here.
    ``torch_dtype`` is the older name of ``dtype``.

    Raises UnknownNameError for another task, CheckpointNotFoundError for a model that is nowhere,
    UnsupportedError for ``feature_extractor``, ``pipeline_class`` and a ``framework`` other than "pt".
    """
    if feature_extractor is not None or pipeline_class is not None or framework not in (None, "pt"):
        raise UnsupportedError(
            "feature_extractor, pipeline_class and a framework other than 'pt' are not offered; leave it out"
        )
    if task not in (None, TASK):
        raise UnknownNameError(f"task {task!r} is not offered; the only one is {TASK!r}")
    if device is not None and device_map is not None:
        raise InputError("device and device_map exclude each other; give one of them")
    if model is None:
        model = next(iter(BUNDLED))
        logger.warning("no model was given: using %s, the small one that comes with qvl", model)
    where = {name: value for name, value in (("revision", revision), ("token", token)) if value is not None}
    assistant = kwargs.get("assistant_model")
    ready = _processor(model, processor, tokenizer, image_processor, where)
    loaded: Any = model
    if isinstance(model, (str, Path)):
        settings: dict[str, Any] = {
            "dtype": dtype if torch_dtype is None else torch_dtype,
            "device_map": pick_device(device) if device_map is None else device_map,
            **(model_kwargs or {}),
        }
        loaded, device = _load_model(model, config, {**where, **settings}), None
    if isinstance(assistant, (str, Path)):
        kwargs.setdefault("assistant_tokenizer", AutoTokenizer.from_pretrained(assistant))
        beside = str(loaded.device) if device is None else pick_device(device)
        drafts = {"dtype": dtype if torch_dtype is None else torch_dtype, "device_map": beside}
        kwargs["assistant_model"] = _load_model(assistant, None, drafts)
    return ImageTextToTextPipeline(loaded, ready, device=device, task=TASK, **kwargs)


def _load_model(name: str | Path, config: Any, settings: dict[str, Any]) -> Any:
    if config is not None:
        settings["config"] = config
    return AutoModelForImageTextToText.from_pretrained(name, **settings)


def _processor(
    model: Any, processor: Any, tokenizer: Any, image_processor: Any, where: dict[str, Any]
) -> Any:
    if processor is None and not isinstance(model, (str, Path)):
        model = getattr(model, "name_or_path", "")
        if not model:
            raise InputError(
                "this loaded model does not say which processor it goes with; give processor= too"
            )
    processor = _named(AutoProcessor, model if processor is None else processor, where)
    if tokenizer is None and image_processor is None:
        return processor
    return Qwen2_5_VLProcessor(
        image_processor=_named(Qwen2VLImageProcessor, image_processor or processor.image_processor, where),
        tokenizer=_named(AutoTokenizer, tokenizer or processor.tokenizer, where),
        video_processor=processor.video_processor,
        chat_template=processor.chat_template,
    )


def _named(loader: Any, thing: Any, where: dict[str, Any]) -> Any:
    return loader.from_pretrained(thing, **where) if isinstance(thing, (str, Path)) else thing
