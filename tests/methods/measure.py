"""What methods' tests measure: tokens per pass on real prompts, and a draft under one's own hands."""

from collections import Counter

import torch

import lithe
from lithe import registry
from lithe.cli._common import read_prompts
from lithe.contracts.small import small_model
from lithe.decode.generate import request
from lithe.decode.loop import Round, run
from lithe.decode.plan import plan
from lithe.decode.told import Told
from lithe.model.load import ZOO
from lithe.ops.tree import Tree, Walk
from lithe.sampling.sequence import Sequence


def setting(prompts: int):
    """The small zoo model and the first shipped prompts."""
    return lithe.load("zoo:tiny-draft"), read_prompts(ZOO / "prompts" / "mixed.jsonl")[:prompts]


def measure(model, spec, prompts, tokens=48) -> tuple[float, Counter]:
    """Tokens per pass, and how many tokens came from where."""
    made, passes, sources = plan(model, draft=spec), 0, Counter()
    for prompt in prompts:
        for step in run(made, [request(model, prompt, max_tokens=tokens)]):
            passes += 1
            sources.update(step.sources)
    return sources.total() / passes, sources


def tokens_per_pass(model, spec, prompts, tokens=48) -> float:
    return measure(model, spec, prompts, tokens)[0]


def made(name, **knobs):
    """A draft at these knobs, for the two-layer model."""
    module = registry.find(name).module
    return module.Method(module.Knobs(**knobs), small_model())


def sequence(*ids) -> Sequence:
    return Sequence(ids, limit=99, context=200)


def seen(draft, s: Sequence, tree: Tree, told, path=()) -> None:
    """Let the draft see a pass in which the model put token told(t, i) after node i, which holds t."""
    after = [told(token, i) for i, token in enumerate(tree.tokens)]
    logits_NV = torch.nn.functional.one_hot(torch.tensor(after), 32).double()
    walk = Walk(tuple(path), after[path[-1] if path else 0])
    for token in [*(tree.tokens[node] for node in path), walk.token]:
        s.push(token)
    draft.observe([Round(s, tree, walk, Told(logits_NV), {}, len(tree))])
