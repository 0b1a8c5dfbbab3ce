"""lithe beside other engines on the same weights: transformers' generate and llama.cpp, each in a process of its own.

`_bench` is the suite as one call, `_suite` takes turns, `_worker` is what runs in each process, `_lithe`, `_transformers` and
`_llama` are the engines, `_machine` measures what the hardware could do, `_rows` makes ratios of what was measured. Nothing is
imported here: what a process does not need must not count as its memory or its start.
"""

LITHE, TRANSFORMERS, LLAMA, MACHINE = "lithe", "transformers", "llama.cpp", "machine"
ENGINES = (LITHE, TRANSFORMERS, LLAMA)
PACKAGES = {LITHE: "lithe", TRANSFORMERS: "transformers", LLAMA: "llama_cpp"}
PRECISIONS = ("int8", "bf16", "fp32", "int4")
GGUF_TYPES = {"int8": "Q8_0", "bf16": "BF16", "fp32": "F32", "int4": "Q4_0"}  # what llama.cpp calls them
ROWS = (1, 2, 4, 8, 16, 32, 64)  # rows of a pass, n in T(n)
BEHIND, LONG, PROMPT = 256, 4096, 512  # tokens: the context that T(n) stands behind, the long one, a prompt to prefill
CHUNK = 512  # most rows of a pass that reads a prompt
