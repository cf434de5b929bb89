"""One question about a picture to llama.cpp, to its first token: a process that imports nothing more.

    python benchmarks/ask_llama.py TEXT.gguf VISION.gguf PICTURE PROMPT WIDTH HEIGHT

PROMPT holds mtmd's media marker where the picture stands. Pillow brings the picture to WIDTH x HEIGHT, whole
tokens, as it does for the others: llama.cpp's own resampling is another, and a small model answers otherwise.
"""

from __future__ import annotations

import ctypes
import os
import sys
from typing import Any

import llama_cpp as lib
import numpy as np
from llama_cpp import mtmd_cpp as mtmd
from PIL import Image

THREADS = int(os.environ.get("OMP_NUM_THREADS", "2"))
CONTEXT = 512
TOKEN_PIXELS = 28 * 28  # that become one token


def main(text_file: str, vision_file: str, picture: str, prompt: str, width: str, height: str) -> None:
    model = lib.llama_model_load_from_file(os.fsencode(text_file), lib.llama_model_default_params())
    settings = lib.llama_context_default_params()
    settings.n_ctx = CONTEXT
    settings.n_threads = settings.n_threads_batch = THREADS
    context = lib.llama_init_from_model(model, settings)
    size = int(width), int(height)
    sight = eyes(model, vision_file, size)
    chunks = read(sight, picture, prompt, size)
    past = lib.llama_pos(0)
    if mtmd.mtmd_helper_eval_chunks(sight, context, chunks, 0, 0, CONTEXT, True, ctypes.byref(past)) != 0:
        sys.exit("llama.cpp could not compute the prompt")
    vocabulary = lib.llama_model_get_vocab(model)
    logits = np.ctypeslib.as_array(
        lib.llama_get_logits_ith(context, -1), shape=(lib.llama_vocab_n_tokens(vocabulary),)
    )
    print(lib.llama_vocab_get_text(vocabulary, int(logits.argmax())).decode())


def eyes(model: Any, vision_file: str, size: tuple[int, int]) -> Any:
    settings = mtmd.mtmd_context_params_default()
    settings.use_gpu = settings.warmup = settings.print_timings = False
    settings.n_threads = THREADS
    settings.image_min_tokens = settings.image_max_tokens = size[0] * size[1] // TOKEN_PIXELS
    return mtmd.mtmd_init_from_file(os.fsencode(vision_file), model, settings)


def read(sight: Any, picture: str, prompt: str, size: tuple[int, int]) -> Any:
    resized = Image.open(picture).convert("RGB").resize(size, Image.Resampling.BICUBIC)
    pixels = np.ascontiguousarray(np.asarray(resized))
    height, width = pixels.shape[:2]
    bitmap = mtmd.mtmd_bitmap_init(width, height, pixels.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8)))
    chunks, content = mtmd.mtmd_input_chunks_init(), prompt.encode()
    text = mtmd.mtmd_input_text(text=content, text_len=len(content), add_special=False, parse_special=True)
    if mtmd.mtmd_tokenize(sight, chunks, ctypes.byref(text), (ctypes.c_void_p * 1)(bitmap), 1) != 0:
        sys.exit("llama.cpp could not read the prompt")
    return chunks


if __name__ == "__main__":
    main(*sys.argv[1:])
