"""The zoo's tokenizer: byte-level BPE with 4,096 ids, digits one by one, any text round-trips."""

import json
import random
import sys
from pathlib import Path

from corpus import ASSISTANT, END, MASK, USER, Split, sources
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

VOCAB = 4096
SPECIALS = [END, USER, ASSISTANT, MASK]  # ids 0 to 3
SAMPLE = {  # characters of each source that the merges are learned from: what is generated most gets the most
    "stories": 6e6, "books_children": 9e6, "books_general": 6e6, "instructions": 3e6,
    "maths": 2e6, "python": 3e6, "programs": 1e5, "plays": 5e5,
}  # fmt: skip
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}<|assistant|>\n{{ message['content'] }}<|endoftext|>"
    "{% else %}<|user|>\n{{ message['content'] }}\n{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def sample(corpus: dict[str, Split]) -> list[str]:
    texts = []
    for name, characters in SAMPLE.items():
        documents = list(corpus[name].train)
        random.Random(0).shuffle(documents)
        while documents and characters > 0:
            texts.append(documents.pop()[: int(characters)])
            characters -= len(texts[-1])
    return texts


def train(texts: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),  # all 256 bytes: no unknown token is ever needed
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def save(tokenizer: Tokenizer, folder: Path) -> None:
    """tokenizer.json and tokenizer_config.json, as the Hugging Face layout has them."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END,
        "pad_token": END,
        "mask_token": MASK,
        "extra_special_tokens": [USER, ASSISTANT],
        "model_max_length": 1024,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


if __name__ == "__main__":
    save(train(sample(sources())), Path(sys.argv[1] if len(sys.argv) > 1 else ".lithe/zoo/tokenizer"))
