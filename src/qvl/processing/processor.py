"""Pictures, videos and text together: from what people hand over to what the model takes.

Qwen2_5_VLProcessor joins the tokenizer and the two media processors, repeats each placeholder as often as its
medium has tokens, and reads media out of messages. It knows neither pixels nor templates itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from qvl import hub
from qvl.errors import InputTypeError, PromptError, UnsupportedError
from qvl.processing.call_options import COMMON, SECTIONS, UNREAD, CallOptions, parameters, sort_options
from qvl.processing.counting import MediaTokens, image_tokens, merge_size, video_tokens
from qvl.processing.features import BatchFeature
from qvl.processing.image import IMAGE_OVERRIDES, Qwen2VLImageProcessor, flat_images
from qvl.processing.placeholders import check_each, check_kept, expanded, token_types
from qvl.processing.pretrained import COMBINED_FILE
from qvl.processing.text import chat
from qvl.processing.text.assistant import add_assistant_masks
from qvl.processing.text.inert import MarkedText
from qvl.processing.text.messages import MediaItem, find_media, without_sources
from qvl.processing.text.special_tokens import ROLES
from qvl.processing.text.tokenizer import Qwen2TokenizerFast
from qvl.processing.video.processor import VIDEO_OVERRIDES, Qwen2_5_VLVideoProcessor
from qvl.processing.video.requests import PIXEL_OPTIONS
from qvl.types import Grid, Modality

# What from_pretrained may set on the tokenizer; all else is for the media processors.
TOKENIZER_SETTINGS = frozenset(
    {
        "padding_side",
        "truncation_side",
        "model_max_length",
        "clean_up_tokenization_spaces",
        "additional_special_tokens",
        "extra_special_tokens",
        *ROLES,
    }
)
# Arguments of transformers' apply_chat_template about decoders and sound, which have no counterpart here.
FOREIGN_LOADING = frozenset({"video_load_backend", "sampling_rate", "load_audio_from_video"})


class Qwen2_5_VLProcessor:
    """The processor of Qwen2.5-VL; arguments and results as in transformers 4.57.

    ``tokenizer`` is required; the media processors default to new ones with the class defaults.
    ``chat_template``: a jinja template, or templates by name; None takes the tokenizer's.
    """

    attributes = ("image_processor", "tokenizer", "video_processor")

    def __init__(
        self,
        image_processor: Qwen2VLImageProcessor | None = None,
        tokenizer: Qwen2TokenizerFast | None = None,
        video_processor: Qwen2_5_VLVideoProcessor | None = None,
        chat_template: chat.Templates = None,
    ):
        if tokenizer is None:
            raise InputTypeError("A processor needs a tokenizer: pass tokenizer=Qwen2TokenizerFast...")
        self.image_processor = Qwen2VLImageProcessor() if image_processor is None else image_processor
        self.video_processor = Qwen2_5_VLVideoProcessor() if video_processor is None else video_processor
        self.tokenizer = tokenizer
        self.chat_template = tokenizer.chat_template if chat_template is None else chat_template
        self.image_token: str = getattr(tokenizer, "image_token", None) or "<|image_pad|>"
        self.video_token: str = getattr(tokenizer, "video_token", None) or "<|video_pad|>"
        self.image_token_id: int = tokenizer.convert_tokens_to_ids(self.image_token)
        self.video_token_id: int = tokenizer.convert_tokens_to_ids(self.video_token)

    # Files

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Qwen2_5_VLProcessor:
        """Loads all parts from a folder or a hub id.

        ``min_pixels``, ``max_pixels`` and other settings of the media processors replace those of the files,
        for pictures and videos alike; settings of the tokenizer (``padding_side`` ...) too. ``use_fast`` is
        accepted for transformers' sake: there is one implementation. Raises CheckpointNotFoundError and
        CheckpointCorruptError, InputTypeError for a setting that no part has.
        """
        kwargs.pop("use_fast", None)
        given_template = kwargs.pop("chat_template", None)
        options = hub.pop_options(kwargs)
        folder = hub.resolve(pretrained_model_name_or_path, patterns=hub.SMALL_FILES, **options)
        of_base = hub.of_base(options)
        for_tokenizer = {name: kwargs.pop(name) for name in TOKENIZER_SETTINGS & kwargs.keys()}
        media = {"return_unused_kwargs": True, **of_base, **kwargs}
        image, left = Qwen2VLImageProcessor.from_pretrained(folder, **media)
        video, also_left = Qwen2_5_VLVideoProcessor.from_pretrained(folder, **media)
        if unknown := sorted(left.keys() & also_left.keys()):
            raise InputTypeError(f"No part of the processor has a setting {', '.join(unknown)}")
        tokenizer = Qwen2TokenizerFast.from_pretrained(folder, **of_base, **for_tokenizer)
        tokenizer.name_or_path = str(pretrained_model_name_or_path)
        template = given_template
        if template is None:
            template = chat.read_templates(_template_folder(folder, of_base), legacy=True)
        return cls(image, tokenizer, video, chat_template=template)

    def save_pretrained(self, save_directory: str | Path) -> list[str]:
        """Writes the files of all parts, as released checkpoints have them; returns their paths."""
        folder = Path(save_directory)
        name = type(self).__name__
        self.tokenizer.init_kwargs["processor_class"] = name
        written = [*self.tokenizer.save_pretrained(folder)]
        parts: tuple[Any, Any] = (self.image_processor, self.video_processor)
        for part in parts:
            part.processor_class = name
            written += part.save_pretrained(folder)
        return written + chat.write_templates(folder, self.chat_template)

    # Calls

    def __call__(
        self, images: Any = None, text: Any = None, videos: Any = None, **kwargs: Any
    ) -> BatchFeature:
        """What the model's forward and ``generate`` take.

        ``text``: a prompt or a list of prompts, taken as they are: every ``<|image_pad|>`` and
        ``<|video_pad|>`` stands for one medium. ``images``, ``videos``: one, a list or nested lists, in the
        order of the placeholders of all prompts; see the media processors for what they may be. One list of
        images per prompt must fit each prompt.
        Keyword arguments are those of the tokenizer's call (``padding``, ``truncation``, ``max_length``,
        ``padding_side`` ...), of the image processor (``min_pixels``, ``max_pixels`` ...) and of the video
        processor (``fps``, ``num_frames``, ``video_metadata`` ...), flat (where both media have one, both get
        it) or nested in ``text_kwargs``, ``images_kwargs``, ``videos_kwargs``; ``return_tensors``: "pt", "np"
        or None; ``return_mm_token_type_ids``: also ``mm_token_type_ids`` (1 at images, 2 at videos).

        Returns ``input_ids`` and ``attention_mask`` (B, L), ``pixel_values`` (P, C), ``image_grid_thw``,
        ``pixel_values_videos``, ``video_grid_thw`` and ``second_per_grid_ts`` (seconds that one temporal step
        of each video covers). Raises PlaceholderMismatchError where placeholders and media differ in number.
        """
        options = sort_options(kwargs, self._known_options())
        texts = _texts(text)
        if isinstance(images, list | tuple) and len(images) == len(texts) and all(map(_is_list, images)):
            counts = [len(flat_images(own)) for own in images]
            check_each(texts, "image", self.image_token, counts)
        return self._prepare(texts, images, videos, options)

    def _prepare(
        self,
        texts: list[Any],
        images: Any,
        videos: Any,
        options: CallOptions,
        media: Sequence[MediaItem] | None = None,
        *,
        assistant_masks: bool = False,
    ) -> BatchFeature:
        """Media to patches, placeholders to runs, texts to ids. ``media``: what messages say of each."""
        of_text = {"padding": False, **options.text}
        wants_types = of_text.pop("return_mm_token_type_ids", False)
        keeps_offsets = of_text.get("return_offsets_mapping", False)
        data = {**self._pictures(images, options, media), **self._videos(videos, options, media)}
        lengths: dict[Modality, list[int]] = {
            "image": _tokens(
                data.get("image_grid_thw", ()), merge_size(self.image_processor, options.images)
            ),
            "video": _tokens(
                data.get("video_grid_thw", ()), merge_size(self.video_processor, options.videos)
            ),
        }
        ids: dict[Modality, int] = {"image": self.image_token_id, "video": self.video_token_id}
        texts = expanded(texts, "image", self.image_token, lengths["image"])
        texts = expanded(texts, "video", self.video_token, lengths["video"])
        encoded = self.tokenizer(
            texts, **of_text | ({"return_offsets_mapping": True} if assistant_masks else {})
        )
        for kind, index in ids.items():
            check_kept(encoded["input_ids"], kind, index, sum(lengths[kind]))
        if assistant_masks:
            add_assistant_masks(encoded, texts, keep_offsets=keeps_offsets)
        if wants_types:
            encoded["mm_token_type_ids"] = [token_types(row, ids) for row in encoded["input_ids"]]
        return BatchFeature({**encoded, **data}, options.return_tensors)

    def _pictures(self, images: Any, options: CallOptions, media: Sequence[MediaItem] | None) -> BatchFeature:
        pictures = flat_images(images)
        if not pictures:
            return BatchFeature()
        own = None if media is None else [m.overrides(IMAGE_OVERRIDES) for m in media if m.kind == "image"]
        tensors = options.return_tensors
        return self.image_processor(pictures, **options.images, overrides=own, return_tensors=tensors)

    def _videos(self, videos: Any, options: CallOptions, media: Sequence[MediaItem] | None) -> BatchFeature:
        if videos is None:
            return BatchFeature()
        own = None if media is None else [m.overrides(VIDEO_OVERRIDES) for m in media if m.kind == "video"]
        tensors = options.return_tensors
        return self.video_processor(videos, **options.videos, overrides=own, return_tensors=tensors)

    @property
    def option_names(self) -> frozenset[str]:
        """The names of all arguments that a call reads."""
        known = self._known_options().values()
        return frozenset().union(COMMON, SECTIONS, UNREAD, {"common_kwargs"}, *known)

    def _known_options(self) -> dict[str, frozenset[str]]:
        """The arguments that each part of a call may be given."""
        handled = ("images", "videos", "overrides", "return_tensors")
        text = parameters(self.tokenizer.__call__, "text", "text_pair", "return_tensors")
        videos = parameters(self.video_processor.preprocess, *handled)
        return {
            "text_kwargs": text | {"return_mm_token_type_ids"},
            "images_kwargs": parameters(self.image_processor.preprocess, *handled),
            "videos_kwargs": videos.union(VIDEO_OVERRIDES, PIXEL_OPTIONS),
        }

    def apply_chat_template(
        self,
        conversation: Sequence[Any],
        chat_template: str | None = None,
        tools: Sequence[Any] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        return_assistant_tokens_mask: bool = False,
        tokenize: bool = False,
        return_dict: bool = False,
        **kwargs: Any,
    ) -> Any:
        """One conversation or a list of them as text or, with ``tokenize=True``, as input of the model.

        Messages hold their media: ``{"type": "image", "path" | "url" | "image" | "base64": ...}``,
        ``{"type": "image_url", "image_url": {"url": ...}}``,
        ``{"type": "video", "path" | "url" | "video": ...}``, with settings of that medium beside
        (``min_pixels``, ``max_pixels``, ``resized_height``, ``resized_width``, ``fps``, ``num_frames``,
        ``video_start`` ...). ``kwargs``: those of a call, and any other name for the template to use
        (``add_vision_id``). ``chat_template``: a template or its name.

        Returns the text (a list for a list), the ``input_ids``, or with ``return_dict=True`` all that a call
        returns. When tokenizing, special tokens that stand inside messages stay text. Raises PromptError.
        """
        for name in FOREIGN_LOADING & kwargs.keys():
            if kwargs.pop(name) and name == "load_audio_from_video":
                raise UnsupportedError("This model hears nothing: leave load_audio_from_video out")
        if return_assistant_tokens_mask and (continue_final_message or (tokenize and not return_dict)):
            raise PromptError(
                "return_assistant_tokens_mask needs return_dict=True and no continue_final_message"
            )
        variables = {**self.tokenizer.special_tokens_map, **kwargs}
        options = chat.RenderOptions(
            tools, documents, add_generation_prompt, continue_final_message, variables
        )
        template = chat.choose_template(self.chat_template, chat_template, tools=tools is not None)
        batched = chat.is_batch(conversation)
        conversations = conversation if batched else [conversation]
        for one in conversations:
            chat.check_conversation(one)
        control = self.tokenizer.control_tokens()
        texts = [chat.render(without_sources(one), template, options, control) for one in conversations]
        if not tokenize:
            return [str(text) for text in texts] if batched else str(texts[0])
        known = self._known_options()
        names = self.option_names
        given = sort_options({name: value for name, value in kwargs.items() if name in names}, known)
        given.text.setdefault("add_special_tokens", False)  # the template has written them
        media = [item for one in conversations for item in find_media(one)]
        features = self._prepare(
            [*texts],
            [item.source for item in media if item.kind == "image"],
            [item.source for item in media if item.kind == "video"],
            given,
            media,
            assistant_masks=return_assistant_tokens_mask,
        )
        return features if return_dict else features["input_ids"]

    def count_media_tokens(
        self, images: Iterable[Any] = (), videos: Iterable[Any] = (), **kwargs: Any
    ) -> MediaTokens:
        """The tokens that media would take, found without decoding videos and without a model.

        An image is (height, width) in pixels or anything that can be opened, a video is (frames, height,
        width) or anything that can be opened. ``kwargs`` as in a call (``max_pixels``, ``fps`` ...).
        """
        options = sort_options(kwargs, self._known_options())
        return MediaTokens(
            tuple(image_tokens(self.image_processor, image, options.images) for image in images),
            tuple(video_tokens(self.video_processor, video, options.videos) for video in videos),
        )

    # Back to text

    def decode(self, token_ids: Any, **kwargs: Any) -> str:
        """The tokenizer's ``decode``."""
        return self.tokenizer.decode(token_ids, **kwargs)

    def batch_decode(self, sequences: Any, **kwargs: Any) -> list[str]:
        """The tokenizer's ``batch_decode``."""
        return self.tokenizer.batch_decode(sequences, **kwargs)

    def post_process_image_text_to_text(
        self,
        generated_outputs: Any,
        skip_special_tokens: bool = True,
        clean_up_tokenization_spaces: bool = False,
        **kwargs: Any,
    ) -> list[str]:
        """The texts of what ``generate`` returned: rows (B, L), or one row (L,)."""
        if getattr(generated_outputs, "ndim", 2) == 1:
            generated_outputs = generated_outputs[None]
        return self.tokenizer.batch_decode(
            generated_outputs, skip_special_tokens, clean_up_tokenization_spaces, **kwargs
        )

    @property
    def model_input_names(self) -> list[str]:
        """Everything that a call may return."""
        names = [*self.tokenizer.model_input_names, *self.image_processor.model_input_names]
        return [*dict.fromkeys(names), "second_per_grid_ts"]


def _texts(text: Any) -> list[Any]:
    if isinstance(text, str | MarkedText):
        return [text]
    if not isinstance(text, list | tuple):
        raise InputTypeError(f"text must be a prompt or a list of prompts, not {type(text).__name__}")
    return list(text)


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _tokens(grids_thw: Any, merge: int) -> list[int]:
    """How many tokens each row (t, h, w) of a table of grids makes."""
    return [Grid(*map(int, row)).tokens(merge) for row in grids_thw]


def _template_folder(folder: Path, of_base: dict[str, Any]) -> Path:
    """Where the processor's templates are. An adapter that was saved with its tokenizer alone has that one's
    template, which often knows no pictures: then the base's counts."""
    whole = any((folder / name).is_file() for name in (*Qwen2VLImageProcessor.files, COMBINED_FILE))
    names = chat.TEMPLATE_FILES if whole else (chat.PROCESSOR_TEMPLATE,)
    return hub.holding(folder, names, **of_base)
