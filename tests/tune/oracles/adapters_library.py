"""Logits of the `adapters` library (1.3.0, which needs transformers 4.57) with bottlenecks, for `test_bottleneck.py` to meet.

    python -m tests.tune.oracles.adapters_library > tests/tune/oracles/adapters_library.json

It cannot be installed beside transformers 5, so what it gives is kept: weights are numpy's from a seed, by sorted name.
"""

import json

import numpy as np

SHAPE = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "max_position_embeddings": 32, "rms_norm_eps": 1e-6, "tie_word_embeddings": False}
IDS = [[3, 17, 5, 9, 30, 1]]
CASES = {  # ours: the library's kind, what is put behind, its settings
    "bottleneck:inner=4,activation=relu": ("DoubleSeqBnConfig", {"non_linearity": "relu"}),
    "bottleneck:inner=4,activation=silu,scale=0.5": ("DoubleSeqBnConfig", {"non_linearity": "swish", "scaling": 0.5}),
    "bottleneck:inner=4,where=mlp,activation=gelu": ("DoubleSeqBnConfig", {"non_linearity": "gelu", "mh_adapter": False}),
    "bottleneck:inner=4,where=attention,activation=relu": ("DoubleSeqBnConfig", {"non_linearity": "relu",
                                                                                "output_adapter": False}),
}


def drawn(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Weights by name, those of norms around one."""
    dice, made = np.random.default_rng(0), {}
    for name in sorted(shapes):
        made[name] = 0.3 * dice.standard_normal(shapes[name]) + (1.0 if "norm" in name else 0.0)
    return made


def main() -> None:
    import adapters
    import torch
    import transformers

    told = {}
    for spec, (kind, settings) in CASES.items():
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPE)).double()
        base = drawn({name: tuple(weight.shape) for name, weight in model.named_parameters()})
        adapters.init(model)
        model.add_adapter("a", config=getattr(adapters, kind)(reduction_factor=4, **settings))
        model.set_active_adapters("a")
        model.double().eval()
        own = {name: weight for name, weight in model.named_parameters() if ".adapters.a." in name}
        values = base | drawn({name: tuple(weight.shape) for name, weight in own.items()})
        with torch.no_grad():
            for name, weight in model.named_parameters():
                weight.copy_(torch.from_numpy(values[name]))
            logits = model(torch.tensor(IDS)).logits[0]
        told[spec] = {"adapter": {name: tuple(weight.shape) for name, weight in own.items()},
                      "logits": [[round(x, 9) for x in row] for row in logits.tolist()]}
    print(json.dumps({"adapters": adapters.__version__, "transformers": transformers.__version__, "cases": told}))


if __name__ == "__main__":
    main()
