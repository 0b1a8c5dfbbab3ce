"""PEFT is the judge of PEFT's layout: its folders load here and ours there, with equal logits."""

import warnings
from copy import deepcopy

import pytest
import torch

from lithe.errors import FormatError, LitheError, UnsupportedError
from lithe.model.checkpoint import load
from lithe.model.decoder import ALL
from lithe.tune.rack import Rack
from tests.model import families_zoo as zoo

peft = pytest.importorskip("peft", reason="peft is in the extra `test`")
torch.set_num_threads(1)
IDS = torch.randint(3, 96, (2, 11), generator=torch.Generator().manual_seed(1))
QV, ALL7 = ["q_proj", "v_proj"], ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CASES = {  # name: (family, PEFT's config)
    "plain": ("llama", peft.LoraConfig(r=4, target_modules=QV, lora_dropout=0.1)),
    "all": ("qwen2", peft.LoraConfig(r=4, lora_alpha=3, target_modules="all-linear")),
    "patterns": ("llama", peft.LoraConfig(r=4, target_modules=ALL7,
                                          rank_pattern={"down_proj": 2, r"layers\.1\.self_attn\.q_proj": 6},
                                          alpha_pattern={"^model.layers.0.*": 32, "k_proj|v_proj": 5})),
    "rslora": ("llama-rope3", peft.LoraConfig(r=4, target_modules=QV, use_rslora=True)),
    "dora": ("llama-mha", peft.LoraConfig(r=4, target_modules=ALL7, use_dora=True)),
    "dora-bias": ("llama-bias", peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"], use_dora=True, use_rslora=True)),
    "layers": ("qwen3", peft.LoraConfig(r=4, target_modules=["o_proj"], layers_to_transform=[1])),
    "fused": ("phi3", peft.LoraConfig(r=4, target_modules=["qkv_proj", "gate_up_proj", "down_proj"])),
    "fused-dora": ("phi3", peft.LoraConfig(r=4, target_modules=["qkv_proj"], use_dora=True)),
    "gemma": ("gemma2", peft.LoraConfig(r=4, target_modules=ALL7)),
    "ia3": ("llama", peft.IA3Config(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"])),
    "ia3-bias": ("llama-bias", peft.IA3Config(target_modules=["k_proj", "up_proj"], feedforward_modules=["up_proj"])),
    "adalora": ("llama", peft.AdaLoraConfig(init_r=4, target_r=2, total_step=10, target_modules=QV)),
    "prefix": ("llama", peft.PrefixTuningConfig(num_virtual_tokens=3)),
    "prefix-yarn": ("qwen2-yarn", peft.PrefixTuningConfig(num_virtual_tokens=5)),
    "prefix-projected": ("llama", peft.PrefixTuningConfig(num_virtual_tokens=3, prefix_projection=True, encoder_hidden_size=8)),
    "prompt": ("llama-rope3", peft.PromptTuningConfig(num_virtual_tokens=4)),
    "prompt-yarn": ("qwen2-yarn", peft.PromptTuningConfig(num_virtual_tokens=2)),
}
SPECS = {  # what our methods build and PEFT must read
    "lora:rank=4": "llama", "lora:rank=3,alpha=7,root=true,targets=q_proj+layers.0.mlp.down_proj": "qwen3", "lora": "gemma2",
    "dora:rank=4": "llama-bias", "ia3": "llama-bias", "ia3:inputs=q_proj+down_proj,outputs=layers.1.*.k_proj": "llama",
    "adalora:start=4,rank=2": "llama-mha", "prefix_tuning:rows=3": "llama-bias", "prompt_tuning:rows=5": "qwen2-yarn",
}


@torch.no_grad()
def stir(weights, seed=0):
    """Move every weight off its start, which changes nothing."""
    dice = torch.Generator().manual_seed(seed)
    for weight in weights:
        weight.add_(0.05 * torch.randn(weight.shape, generator=dice, dtype=weight.dtype))


@torch.no_grad()
def theirs(model) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model(IDS).logits[:, -IDS.shape[1] :]


@torch.no_grad()
def ours(model) -> torch.Tensor:
    return model(IDS, logits=ALL).scores


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    """A family's small model, transformers' and ours of the same weights: in float64, where rounding hides no difference."""
    made = {}

    def get(name):
        if name not in made:
            folder = tmp_path_factory.mktemp("base") / name
            big = zoo.make(name)
            big.save_pretrained(folder)
            made[name] = big.double(), load(folder, dtype=torch.float64)
        return deepcopy(made[name])

    return get


def written(config, base, folder):
    """A folder as PEFT writes it, its weights stirred, and the model that wrote it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(base, deepcopy(config))
        config = model.peft_config["default"]
        config.task_type = "CAUSAL_LM"
        stir(weight for name, weight in model.named_parameters() if weight.requires_grad and "ranknum" not in name)
        model.save_pretrained(folder)
    return model.eval()


@pytest.mark.parametrize("case", CASES)
def test_theirs_here(case, family, tmp_path):
    name, config = CASES[case]
    config = deepcopy(config)
    config.task_type = "CAUSAL_LM"
    base, model = family(name)
    plain = ours(model)
    judge = written(config, base, tmp_path / "a")
    rack = Rack.of(model)
    rack.load(tmp_path / "a", name="a")
    wanted = theirs(judge)
    assert (wanted - plain).abs().max() > 1e-3, "the adapter changes nothing, so this proves nothing"
    assert (ours(model) - wanted).abs().max() <= 1e-5
    rack.use(None)
    assert torch.equal(ours(model), plain)


@pytest.mark.parametrize("spec", SPECS)
def test_ours_there(spec, family, tmp_path):
    base, model = family(SPECS[spec])
    plain = ours(model)
    rack = Rack.of(model)
    stir(rack.make(spec, name="a").parameters())
    rack.save("a", tmp_path / "a")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # missing and unexpected keys are warnings there
        judge = peft.PeftModel.from_pretrained(base, str(tmp_path / "a")).eval()
    assert (ours(model) - plain).abs().max() > 1e-3, "the adapter changes nothing, so this proves nothing"
    assert (theirs(judge) - ours(model)).abs().max() <= 1e-5


def test_shared_out_ranks_both_ways(family, tmp_path):
    """Ranks that differ by module, one of them none, keep the scale they were trained at."""
    base, model = family("llama")
    rack = Rack.of(model)
    a = rack.make("adalora:start=4,rank=2,targets=q_proj+v_proj", name="a")
    stir(a.parameters())
    kept = [[0, 2], [], [0, 1, 2, 3], [1], [0, 1, 2], [3]]
    for part, rows in zip(a.parts.values(), kept, strict=True):
        part.keep(torch.tensor([i in rows for i in range(4)]))
    rack.save("a", tmp_path / "a")
    judge = peft.PeftModel.from_pretrained(base, str(tmp_path / "a")).eval()
    assert (theirs(judge) - ours(model)).abs().max() <= 1e-5
    judge.save_pretrained(tmp_path / "b")
    before = ours(model)
    rack.load(tmp_path / "b", name="b")
    assert (ours(model) - before).abs().max() <= 1e-5


REFUSED = {
    "modules_to_save": (peft.LoraConfig(r=2, target_modules=QV, modules_to_save=["lm_head"]), "modules_to_save"),
    "bias": (peft.LoraConfig(r=2, target_modules=QV, bias="all"), "bias"),
    "pissa": (peft.LoraConfig(r=2, target_modules=QV, init_lora_weights="pissa"), "init_lora_weights"),
    "head": (peft.LoraConfig(r=2, target_modules=["q_proj", "lm_head"]), "lm_head"),
    "embedding": (peft.LoraConfig(r=2, target_modules=["embed_tokens"]), "embed_tokens"),
    "tokens": (peft.LoraConfig(r=2, target_modules=QV, trainable_token_indices=[1]), "trainable_token_indices"),
    "lora_bias": (peft.LoraConfig(r=2, target_modules=QV, lora_bias=True), "lora_bias"),
    "copies": (peft.LoraConfig(r=2, target_modules=QV, layer_replication=[(0, 2), (1, 3)]), "layer_replication"),
    "other kind": (peft.LoHaConfig(r=2, target_modules=QV), "LOHA"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_part_here_is_refused_by_name(case, family, tmp_path):
    config, word = REFUSED[case]
    base, model = family("llama")
    plain = ours(model)
    written(config, base.float(), tmp_path / "a")  # some of these starts need float32
    with pytest.raises((UnsupportedError, FormatError), match=word):
        Rack.of(model).load(tmp_path / "a")
    assert torch.equal(ours(model), plain)


def test_another_familys_adapter_is_refused(family, tmp_path):
    written(peft.LoraConfig(r=2, target_modules=["q_proj"]), family("qwen3")[0], tmp_path / "a")
    with pytest.raises(LitheError, match=r"q_proj.*does not fit this model: it is for 32 inputs and 64 outputs, not 32 and 32"):
        Rack.of(family("llama")[1]).load(tmp_path / "a")
