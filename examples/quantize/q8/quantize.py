"""Turns a float GGUF into a smaller type with llama.cpp's own code.

usage: quantize.py LIBLLAMA BASE.gguf MODEL.gguf TYPE

TYPE is q4_0 or q8_0. LIBLLAMA is libllama.so of llama.cpp v0.5.0, whose
llama_model_quantize_params (include/llama.h) the class below spells out.
"""
import ctypes
import os
import sys

FTYPES = {"q4_0": 2, "q8_0": 7}  # LLAMA_FTYPE_MOSTLY_...


class Params(ctypes.Structure):
    _fields_ = (
        [(name, ctypes.c_int32) for name in ("nthread", "ftype", "output_tensor_type", "token_embedding_type")]
        + [(name, ctypes.c_bool) for name in ("allow_requantize", "quantize_output_tensor", "only_copy", "pure", "keep_split", "dry_run")]
        + [(name, ctypes.c_void_p) for name in ("imatrix", "kv_overrides", "tt_overrides", "prune_layers")]
        + [("max_buf_size", ctypes.c_size_t)]
    )


def main(library, base, model, kind):
    llama = ctypes.CDLL(library)
    llama.llama_model_quantize_default_params.restype = Params
    params = llama.llama_model_quantize_default_params()
    if params.max_buf_size != 8 << 30:
        sys.exit("llama_model_quantize_params has another layout: this is not llama.cpp v0.5.0")
    params.nthread = 1
    params.ftype = FTYPES[kind]

    warning = 3  # ggml_log_level
    log = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(
        lambda level, text, _: level >= warning and sys.stderr.write(text.decode()))
    llama.llama_log_set(log, None)
    if llama.llama_model_quantize(base.encode(), model.encode(), ctypes.byref(params)) != 0:
        sys.exit(f"llama.cpp could not quantize {base}")
    print(f"{os.path.getsize(base)} bytes became {os.path.getsize(model)}")


main(*sys.argv[1:])
