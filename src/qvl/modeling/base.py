"""What every documented model class can do besides its forward pass: load, save, count, resize, checkpoint.

Mixed into classes that derive from a network module, so ``self`` is an ``nn.Module`` whose parameter names
are the checkpoint's.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from qvl import hub
from qvl.config import PretrainedConfig, Qwen2_5_VLConfig
from qvl.errors import InputError, InputTypeError, UnsupportedError
from qvl.modeling.memory import resized_embedding, stored_bytes
from qvl.network.layers import initialise
from qvl.network.text import TextDecoder
from qvl.network.vision import VisionTower
from qvl.ops.attention import get_backend
from qvl.weights.checkpoint import refuse_other_formats, save_checkpoint
from qvl.weights.load import LoadingOptions, load_model
from qvl.weights.quantization.linear import QuantizedLinear


class PreTrainedModel(nn.Module):
    """Mixin of the documented model classes.

    ``config_class``: what ``config`` must be. ``checkpoint_prefix``: where this module stands among the names
    of a whole checkpoint ("" for the whole model).
    """

    config_class: ClassVar[type[PretrainedConfig]] = Qwen2_5_VLConfig
    checkpoint_prefix: ClassVar[str] = ""

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        if not isinstance(config, self.config_class):
            config = self._own_part(config)
        super().__init__(config, *args, **kwargs)
        self.config = config
        self.name_or_path = ""
        self._initialise_own()
        self.set_attn_implementation(getattr(config, "_attn_implementation", None) or "sdpa")

    @classmethod
    def _own_part(cls, config: Any) -> Any:
        """The text or vision part of a whole config; the documentation builds a text model from one."""
        for part in ("text_config", "vision_config"):
            candidate = getattr(config, part, None)
            if isinstance(candidate, cls.config_class):
                return candidate
        raise InputTypeError(
            f"{cls.__name__} is built from a {cls.config_class.__name__}, got {type(config).__name__}"
        )

    def _initialise_own(self) -> None:
        """Random weights for the parts that no documented class below has initialised already."""
        tied = getattr(self.config, "tie_word_embeddings", False)
        for name, child in self.named_children():
            if not isinstance(child, PreTrainedModel) and not (tied and name == "lm_head"):
                initialise(child, getattr(self.config, "initializer_range", 0.02))

    # -- loading and saving ---------------------------------------------------------------------------

    @classmethod
    def from_config(cls, config: Any, **kwargs: Any) -> Any:
        """A model with random weights. ``dtype`` (the config's by default) and ``attn_implementation`` as in
        `from_pretrained`.
        """
        options = LoadingOptions.read(kwargs)
        if options.device_map is not None or options.quantization_config is not None:
            raise InputError(
                "from_config makes random weights in one place; device_map and quantization_config belong to "
                "from_pretrained"
            )
        if kwargs:
            raise InputError(f"from_config does not know the arguments {', '.join(sorted(kwargs))}")
        model = cls(config)
        dtype = options.dtype if isinstance(options.dtype, torch.dtype) else model.config.dtype
        if dtype is not None:
            model.to(dtype)
        if options.attn_implementation:
            model.set_attn_implementation(options.attn_implementation)
        return model

    _from_config = from_config

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *args: Any,
        config: Any = None,
        **kwargs: Any,
    ) -> Any:
        """The model of a local folder or a hub id, in evaluation mode.

        A folder or repository may hold a LoRA adapter, as PEFT and LLaMA-Factory save it: then the model that
        it names is loaded, or the one of ``base``, and the adapter is added to its weights.
        ``dtype``: "auto" (the default: what the file has), a torch.dtype or its name. ``device_map``: "auto",
        a device, or a dict of module names to devices. ``attn_implementation``: "sdpa", "eager" or
        "flash_attention_2". ``quantization_config``: a `QuantizationConfig` or `TorchAoConfig`; checkpoints
        that are quantized need none. ``revision``, ``cache_dir``, ``local_files_only``, ``token``,
        ``subfolder`` find the files. Any other keyword that is a config attribute changes the config.

        Raises CheckpointNotFoundError, CheckpointCorruptError, CheckpointMismatchError (with the tensors'
        names) and ConfigError (a checkpoint of another model type).
        """
        found = hub.pop_options(kwargs)
        own = hub.resolve(pretrained_model_name_or_path, **found)
        base = hub.base_of(own, **hub.of_base(found))
        folder = own if base is None else base
        options = LoadingOptions.read(kwargs)
        if not isinstance(config, cls.config_class):
            source = folder if config is None else config
            if not isinstance(source, str | os.PathLike):
                raise InputTypeError(
                    f"config is a {cls.config_class.__name__} or where to read one, "
                    f"got {type(config).__name__}"
                )
            config, kwargs = cls.config_class.from_pretrained(source, return_unused_kwargs=True, **kwargs)
        if kwargs:
            raise InputTypeError(f"from_pretrained does not know the arguments {', '.join(sorted(kwargs))}")
        model = load_model(cls, config, folder, options, adapter=None if base is None else own)
        model.name_or_path = str(pretrained_model_name_or_path)
        for place in dict.fromkeys((folder, own)):  # what an adapter has of its own comes last
            model.finish_loading(place)
        return model.eval()

    def finish_loading(self, folder: Path) -> None:
        """What a class reads from a checkpoint's folder besides config and tensors: nothing here."""

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        is_main_process: bool = True,
        state_dict: dict[str, torch.Tensor] | None = None,
        save_function: Any = None,
        push_to_hub: bool = False,
        max_shard_size: int | str = "5GB",
        safe_serialization: bool = True,
        variant: str | None = None,
        token: str | bool | None = None,
        save_peft_format: bool = True,
    ) -> None:
        """Writes config.json and safetensors, sharded above ``max_shard_size``, in the released layout.

        ``state_dict``: other tensors to write. Of several processes only the main one writes. The other
        arguments are transformers' and must say what is done here anyway: UnsupportedError otherwise.
        """
        refuse_other_formats(
            save_function=save_function,
            push_to_hub=push_to_hub,
            safe_serialization=safe_serialization,
            variant=variant,
        )
        if not is_main_process:
            return
        save_checkpoint(self, save_directory, state_dict=state_dict, max_shard_size=max_shard_size)
        generation_config = getattr(self, "generation_config", None)
        if generation_config is not None:
            generation_config.save_pretrained(save_directory)

    # -- what a model is ------------------------------------------------------------------------------

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the first floating-point parameter."""
        return next(p.dtype for p in self.parameters() if p.is_floating_point())

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """Parameters, tied ones counted once."""
        embeddings = {id(m.weight) for m in self.modules() if isinstance(m, nn.Embedding)}
        packed = (m for m in self.modules() if isinstance(m, QuantizedLinear))
        return sum(
            p.numel()
            for p in self.parameters()
            if (p.requires_grad or not only_trainable) and not (exclude_embeddings and id(p) in embeddings)
        ) + sum(m.in_features * m.out_features for m in packed if not only_trainable)

    def get_memory_footprint(self, return_buffers: bool = True) -> int:
        """Bytes of parameters and (unless told otherwise) buffers."""
        tensors = [*self.parameters(), *(self.buffers() if return_buffers else ())]
        return sum(stored_bytes(t) for t in tensors)

    def set_attn_implementation(self, attn_implementation: str) -> None:
        """Chooses the attention of every tower and decoder below: "eager", "sdpa" or "flash_attention_2"."""
        get_backend(attn_implementation)  # raises for a name, package or machine that cannot serve
        for stack in self._stacks():
            stack.attention_backend = attn_implementation
        self.config._attn_implementation = attn_implementation

    # -- training -------------------------------------------------------------------------------------

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: dict[str, Any] | None = None
    ) -> None:
        """Recompute every block in the backward pass instead of keeping its activations.

        Blocks are always recomputed without reentry; ``gradient_checkpointing_kwargs`` may only say so.
        """
        extra = dict(gradient_checkpointing_kwargs or {})
        if extra.pop("use_reentrant", False) or extra:
            raise InputError(
                "gradient checkpointing here is non-reentrant and has no other settings; "
                "pass gradient_checkpointing_kwargs={'use_reentrant': False} or nothing"
            )
        self._set_gradient_checkpointing(True)

    def gradient_checkpointing_disable(self) -> None:
        self._set_gradient_checkpointing(False)

    def _set_gradient_checkpointing(self, value: bool) -> None:
        for stack in self._stacks():
            stack.gradient_checkpointing = value

    @property
    def is_gradient_checkpointing(self) -> bool:
        return any(stack.gradient_checkpointing for stack in self._stacks())

    def _stacks(self) -> list[VisionTower | TextDecoder]:
        """The stacks of blocks in here: tower, decoder or both."""
        return [m for m in self.modules() if isinstance(m, (VisionTower, TextDecoder))]

    # -- embeddings -----------------------------------------------------------------------------------

    def _decoder(self) -> Any:
        """The text decoder in here: this module, or the one that holds embed_tokens."""
        for module in self.modules():
            if hasattr(module, "embed_tokens"):
                return module
        raise InputError(f"{type(self).__name__} has no text decoder, so it has no token embeddings")

    def get_input_embeddings(self) -> nn.Embedding:
        return self._decoder().embed_tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replaces the token embeddings, and the head with them where the two are tied."""
        self._decoder().embed_tokens = value
        self.tie_weights()

    def get_output_embeddings(self) -> nn.Linear | None:
        return getattr(self, "lm_head", None)

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        self.lm_head = new_embeddings

    def tie_weights(self) -> None:
        """Makes head and embedding one parameter where the config says so."""
        head = self.get_output_embeddings()
        if head is not None and self.config.tie_word_embeddings:
            head.weight = self.get_input_embeddings().weight

    def resize_token_embeddings(
        self,
        new_num_tokens: int | None = None,
        pad_to_multiple_of: int | None = None,
        mean_resizing: bool = True,
    ) -> nn.Embedding:
        """Gives embeddings and head ``new_num_tokens`` rows, rounded up to ``pad_to_multiple_of``.

        Kept rows stay as they are; new ones are the mean of the old ones (so that they start as an average
        token) or, without ``mean_resizing``, drawn like untrained ones. Returns the input embeddings.
        """
        old = self.get_input_embeddings()
        rows = old.num_embeddings if new_num_tokens is None else new_num_tokens
        if pad_to_multiple_of:
            rows = -(-rows // pad_to_multiple_of) * pad_to_multiple_of
        if rows <= 0:
            raise InputError(f"the vocabulary needs at least one row, got {rows}")
        if rows == old.num_embeddings:
            return old
        std = None if mean_resizing else self.config.initializer_range
        head = self.get_output_embeddings()
        if isinstance(head, QuantizedLinear):
            raise UnsupportedError("a quantized head gets no new rows; resize before quantizing")
        tied = head is not None and head.weight is old.weight
        self._decoder().embed_tokens.weight = resized_embedding(old.weight, rows, std)
        self._decoder().embed_tokens.num_embeddings = rows
        if head is not None:
            head.weight = (
                self.get_input_embeddings().weight if tied else resized_embedding(head.weight, rows, std)
            )
            head.out_features = rows
        self.config.vocab_size = rows
        self._decoder().config.vocab_size = rows
        return self.get_input_embeddings()
