"""Stock transformers checkpoints, made in the test: tiny random models with tokenizers over a fixed word list."""

from __future__ import annotations

import string
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    DistilBertConfig,
    DistilBertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
    T5Config,
    T5ForConditionalGeneration,
)

WORDS = """
play turn the lights on off in kitchen music some jazz what is weather today set a timer for ten minutes who wrote
book room answer was born paris london one two three call mom now please it
""".split()  # noqa: SIM905  readable
_PIECES = [*string.ascii_lowercase, *string.digits, *string.punctuation]


def bert_tokenizer(*, types: bool = True) -> PreTrainedTokenizerFast:
    """WordPiece over the word list and letters, with BERT's special tokens; DistilBERT's has no token types."""
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = [*names, *WORDS, *_PIECES, *(f"##{piece}" for piece in _PIECES)]
    vocabulary = list(dict.fromkeys(vocabulary))
    tokenizer = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.decoder = decoders.WordPiece()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_input_names=["input_ids", *(["token_type_ids"] if types else []), "attention_mask"],
        model_max_length=64,
    )


def byte_tokenizer(*, t5: bool = False) -> PreTrainedTokenizerFast:
    """Byte-level BPE without merges: GPT-2's shape (no padding token), or T5's with an end token after each text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = ["<pad>", "</s>", "<unk>"] if t5 else ["<|endoftext|>"]
    vocabulary = {piece: i for i, piece in enumerate([*names, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if t5:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
        )
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=64
        )
    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=end, eos_token=end, model_max_length=64)


def roberta_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE without merges in RoBERTa's shape: special tokens around the text, a mask, no token types."""
    names = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate([*names, *alphabet])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        mask_token="<mask>",
        model_max_length=62,
    )


def save_bert(folder: Path, **changes: object) -> Path:
    """A two-layer BERT with a masked-LM head, 64 positions."""
    tokenizer = bert_tokenizer()
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = BertConfig(
        vocab_size=len(tokenizer), max_position_embeddings=64, initializer_range=0.3, **shape, **changes
    )
    return _saved(BertForMaskedLM, config, tokenizer, folder)


def save_distilbert(folder: Path) -> Path:
    """A two-layer DistilBERT with a masked-LM head, 64 positions."""
    tokenizer = bert_tokenizer(types=False)
    config = DistilBertConfig(
        vocab_size=len(tokenizer), max_position_embeddings=64, dim=16, n_layers=2, n_heads=2, hidden_dim=32
    )
    return _saved(DistilBertForMaskedLM, config, tokenizer, folder)


def save_roberta(folder: Path) -> Path:
    """A one-layer RoBERTa: 64 rows of positions, of which 62 can be used."""
    tokenizer = roberta_tokenizer()
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = RobertaConfig(
        vocab_size=len(tokenizer), max_position_embeddings=64, pad_token_id=1, initializer_range=0.3, **shape
    )
    return _saved(RobertaForMaskedLM, config, tokenizer, folder)


def save_gpt2(folder: Path) -> Path:
    """A two-layer GPT-2 without a padding token, 64 positions."""
    tokenizer = byte_tokenizer()
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=64,
        n_embd=16,
        n_layer=2,
        n_head=2,
        bos_token_id=0,
        eos_token_id=0,
        initializer_range=0.3,
    )
    return _saved(GPT2LMHeadModel, config, tokenizer, folder)


def save_llama(folder: Path) -> Path:
    """A two-layer Llama with grouped keys and values, without a padding token, 64 positions."""
    tokenizer = byte_tokenizer()
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=64,
        num_key_value_heads=1,
        bos_token_id=0,
        eos_token_id=0,
        **shape,
    )
    return _saved(LlamaForCausalLM, config, tokenizer, folder)


def save_bart(folder: Path) -> Path:
    """A BART of one layer on each side, with RoBERTa's kind of tokens, 64 positions."""
    tokenizer = roberta_tokenizer()
    sides = {
        f"{side}_{part}": size
        for side in ("encoder", "decoder")
        for part, size in (("layers", 1), ("attention_heads", 2), ("ffn_dim", 32))
    }
    config = BartConfig(vocab_size=len(tokenizer), d_model=16, max_position_embeddings=64, **sides)
    return _saved(BartForConditionalGeneration, config, tokenizer, folder)


def save_t5(folder: Path) -> Path:
    """A one-layer T5."""
    tokenizer = byte_tokenizer(t5=True)
    config = T5Config(
        vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0
    )
    return _saved(T5ForConditionalGeneration, config, tokenizer, folder)


def _saved(model_class: type, config: object, tokenizer: PreTrainedTokenizerFast, folder: Path) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(7)
        model = model_class(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
