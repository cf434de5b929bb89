"""llama.cpp through llama-cpp-python's low-level bindings: GGUF files in its own types, its own defaults.

The files are written by `benchmarks.gguf_files` and quantized by llama.cpp. A batch holds several streams as
several sequence ids; pictures go through mtmd, llama.cpp's multimodal library.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import gguf_files
from benchmarks.checkpoints import Shape, checkpoint, made_once
from benchmarks.peers import PeerUnavailable

THREADS = int(os.environ.get("OMP_NUM_THREADS", "2"))
FLOAT32, FLASH_OFF = 0, 0  # ggml's number of the type; llama.cpp's of the setting
QUIET = 4  # of its log levels: only errors
TOWER = {"F32": "f32", "F16": "f16"}  # the mmproj file that goes with the decoder's weights; else f32


class LlamaPeer:
    def __init__(self, shape: Shape, weights: str, parts: tuple[str, ...]) -> None:
        try:
            import gguf  # noqa: F401
            import llama_cpp
        except ImportError:
            raise PeerUnavailable("llama.cpp is not installed: pip install 'qvl[bench]'") from None
        self.lib: Any = llama_cpp
        hush(llama_cpp)
        llama_cpp.llama_backend_init()
        self.path = decoder_file(shape, weights)
        self.model = loaded(llama_cpp, self.path)
        self.vocabulary = shape.vocabulary
        self.context: Any = None
        self.sight = (
            Sight(self.model, tower_file(shape, TOWER.get(weights, "f32"))) if "vision" in parts else None
        )

    def prefill(self, ids: list[int]) -> None:
        self.begin_streams([ids], 1)

    def begin_streams(self, prompts: list[list[int]], room: int) -> None:
        self._open(streams=len(prompts), length=max(map(len, prompts)) + room)
        self.tokens: list[list[int]] = []
        for number, ids in enumerate(prompts):
            rows = [(token, i, number) for i, token in enumerate(ids)]
            self.tokens.append([int(self._decode(rows, last_only=True)[0].argmax())])
        self.position = len(prompts[0])

    def step(self) -> None:
        rows = [(tokens[-1], self.position, number) for number, tokens in enumerate(self.tokens)]
        logits = self._decode(rows, last_only=False)
        self.position += 1
        for tokens, row_V in zip(self.tokens, logits, strict=True):
            tokens.append(int(row_V.argmax()))

    def streamed(self) -> list[list[int]]:
        return self.tokens

    def begin_picture(self, path: str) -> None:
        self._sight().begin(path)

    def encode(self) -> None:
        self._sight().encode()

    def embeddings(self) -> np.ndarray:
        sight = self._sight()
        return sight.embeddings(self.lib.llama_model_n_embd(self.model))

    def logits(self, ids: list[int]) -> np.ndarray:
        self._open(streams=1, length=len(ids) + 1, exact=True)
        return self._decode([(token, i, 0) for i, token in enumerate(ids)], last_only=True)[0].copy()

    def decoder_bytes(self) -> int:
        """The whole file: the embedding in it is the head too."""
        return int(self.lib.llama_model_size(self.model))

    def weight_bytes(self) -> int:
        return self.path.stat().st_size

    def _sight(self) -> Sight:
        if self.sight is None:
            raise PeerUnavailable("this worker was started without the vision tower")
        return self.sight

    def _open(self, *, streams: int, length: int, exact: bool = False) -> None:
        """A fresh context with room for every stream.

        ``exact``: keys and values in float32, not its float16.
        """
        if self.context is not None:
            self.lib.llama_free(self.context)
        settings = self.lib.llama_context_default_params()
        settings.n_ctx = streams * -(-length // 256) * 256  # llama.cpp pads every stream to 256
        settings.n_batch = max(length, 512)
        settings.n_seq_max = streams
        settings.n_threads = settings.n_threads_batch = THREADS
        if exact:
            settings.type_k = settings.type_v = FLOAT32
            settings.flash_attn_type = FLASH_OFF
        self.context = self.lib.llama_init_from_model(self.model, settings)
        if self.context is None:
            raise RuntimeError(f"llama.cpp made no context for {streams} streams of {length} tokens")

    def _decode(self, rows: list[tuple[int, int, int]], *, last_only: bool) -> list[np.ndarray]:
        """Run (token, position, stream) rows; the logits of all of them or of the last."""
        batch = self.lib.llama_batch_init(len(rows), 0, 1)
        batch.n_tokens = len(rows)
        for i, (token, position, stream) in enumerate(rows):
            batch.token[i], batch.pos[i] = token, position
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, stream
            batch.logits[i] = not last_only or i == len(rows) - 1
        result = self.lib.llama_decode(self.context, batch)
        self.lib.llama_batch_free(batch)
        if result != 0:
            raise RuntimeError(f"llama.cpp's decode failed with {result} on {len(rows)} tokens")
        wanted = [len(rows) - 1] if last_only else range(len(rows))
        pointers = (self.lib.llama_get_logits_ith(self.context, i) for i in wanted)
        return [np.ctypeslib.as_array(pointer, shape=(self.vocabulary,)) for pointer in pointers]


class Sight:
    """A picture through mtmd: cut into chunks once, its image chunk encoded as often as asked."""

    def __init__(self, model: Any, path: Path) -> None:
        from llama_cpp import mtmd_cpp

        self.lib: Any = mtmd_cpp
        settings = mtmd_cpp.mtmd_context_params_default()
        settings.use_gpu = False
        settings.print_timings = False
        settings.n_threads = THREADS
        settings.warmup = False
        self.context = mtmd_cpp.mtmd_init_from_file(os.fsencode(path), model, settings)
        if self.context is None:
            raise RuntimeError(f"llama.cpp could not load {path.name}")

    def begin(self, path: str) -> None:
        lib = self.lib
        pixels = np.ascontiguousarray(np.asarray(Image.open(path).convert("RGB")))
        height, width = pixels.shape[:2]
        bitmap = lib.mtmd_bitmap_init(width, height, pixels.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8)))
        marker = lib.mtmd_default_marker()
        text = lib.mtmd_input_text(text=marker, text_len=len(marker), add_special=False, parse_special=True)
        self.chunks = lib.mtmd_input_chunks_init()
        bitmaps = (ctypes.c_void_p * 1)(bitmap)
        if lib.mtmd_tokenize(self.context, self.chunks, ctypes.byref(text), bitmaps, 1) != 0:
            raise RuntimeError(f"mtmd could not read {path}")
        found = (
            lib.mtmd_input_chunks_get(self.chunks, i) for i in range(lib.mtmd_input_chunks_size(self.chunks))
        )
        image = lib.MTMD_INPUT_CHUNK_TYPE_IMAGE
        self.chunk = next(chunk for chunk in found if lib.mtmd_input_chunk_get_type(chunk) == image)

    def encode(self) -> None:
        if self.lib.mtmd_encode_chunk(self.context, self.chunk) != 0:
            raise RuntimeError("mtmd could not encode the picture")

    def embeddings(self, width: int) -> np.ndarray:
        count = self.lib.mtmd_input_chunk_get_n_tokens(self.chunk)
        pointer = self.lib.mtmd_get_output_embd(self.context)
        return np.ctypeslib.as_array(pointer, shape=(count, width)).copy()


def loaded(lib: Any, path: Path) -> Any:
    model = lib.llama_model_load_from_file(os.fsencode(path), lib.llama_model_default_params())
    if model is None:
        raise RuntimeError(f"llama.cpp could not load {path.name}")
    return model


def hush(lib: Any) -> None:
    """llama.cpp reports every tensor; errors are enough."""

    @lib.llama_log_callback
    def only_errors(level: int, text: bytes, _: Any) -> None:
        if level >= QUIET:
            print(text.decode(errors="replace"), end="", file=sys.stderr)

    hush.callback = only_errors  # type: ignore[attr-defined]  # ctypes keeps no reference of its own
    lib.llama_log_set(only_errors, ctypes.c_void_p(0))


def decoder_file(shape: Shape, weights: str) -> Path:
    """The decoder as GGUF: F32 written here, the others made from it by llama.cpp."""
    plain = made_once(
        f"{shape.name}-F32.gguf",
        lambda path: gguf_files.write_decoder(checkpoint(shape, "fp32"), path),
    )
    if weights in ("F32", "F16"):
        return plain
    return made_once(
        f"{shape.name}-{weights}.gguf", lambda path: gguf_files.quantize(plain, path, weights, THREADS)
    )


def tower_file(shape: Shape, dtype: str) -> Path:
    import torch

    kind = {"f32": torch.float32, "f16": torch.float16}[dtype]
    return made_once(
        f"{shape.name}-mmproj-{dtype}.gguf",
        lambda path: gguf_files.write_vision(checkpoint(shape, "fp32"), path, kind),
    )
