"""transformers as its users run it: `generate` on a dynamic cache, scaled-dot-product attention, no gradients."""

from __future__ import annotations

from time import perf_counter
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, DynamicCache

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Engine:
    def __init__(self, *, folder: str, precision: str, threads: int, capacity: int, file: str = ""):
        torch.set_num_threads(threads)
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=DTYPES[precision], attn_implementation="sdpa")
        self.model.eval()
        self.model.generation_config.eos_token_id = None
        self.model.generation_config.pad_token_id = 0
        self.cache = DynamicCache(config=self.model.config)
        self.out: torch.Tensor | None = None
        weights = {w.data_ptr(): w.numel() * w.element_size() for w in self.model.parameters()}
        self.facts: dict[str, Any] = {
            "version": f"transformers {transformers.__version__}, torch {torch.__version__}", "kernels": "torch",
            "threads": torch.get_num_threads(), "weights_mb": sum(weights.values()) / 1e6, "cache": precision,
            "settings": "generate, dynamic cache, sdpa, eager"}

    def clear(self) -> None:
        self.cache = DynamicCache(config=self.model.config)

    @torch.inference_mode()
    def run(self, ids: list[int], *, every: bool) -> None:
        out = self.model(torch.tensor([ids]), past_key_values=self.cache, use_cache=True, logits_to_keep=0 if every else 1)
        self.out = out.logits

    def cut(self, length: int) -> None:
        if more := self.cache.get_seq_length() - length:
            self.cache.crop(-more)

    def logits(self) -> Any:
        assert self.out is not None
        return self.out[0].float().numpy()

    @torch.inference_mode()
    def decode(self, ids: list[int], count: int) -> tuple[list[int], float]:
        watch = _Watch()
        asked = torch.tensor([ids])
        self.model.generate(asked, attention_mask=torch.ones_like(asked), do_sample=False, max_new_tokens=count + 1,
                            streamer=watch)
        return watch.tokens[:count], watch.times[-1] - watch.times[0]  # the first of them comes with the prompt's pass


class _Watch:
    """A streamer that notes when each token came."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.times: list[float] = []
        self.begun = False

    def put(self, value: torch.Tensor) -> None:
        if self.begun:  # before that it is given the prompt
            self.tokens += value.flatten().tolist()
            self.times.append(perf_counter())
        self.begun = True

    def end(self) -> None: ...
