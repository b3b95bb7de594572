"""Random checkpoints that real servers load in a second: a Llama, a classifier, a Qwen2-VL.

They have a tokenizer, a chat template and, for Qwen2-VL, an image processor, so every request of the
OpenAI API can be sent to them. Weights are seeded: the same folder content every time.
"""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForSequenceClassification,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)

VOCABULARY = 512
CONTEXT = 4096  # tokens

_IMAGE_TOKENS = ["<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"]
_SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *_IMAGE_TOKENS]

_CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}"
    "{% if part.type == 'text' %}{{ part.text }}"
    "{% else %}<|vision_start|><|image_pad|><|vision_end|>{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_TRAINING_TEXT = """
A request is a prompt and what the model answers. Many requests share the beginning of their prompt, and
the work for a shared beginning is done once. Reading a prompt takes arithmetic, writing an answer takes
memory bandwidth, and a batch that mixes the two keeps both busy. Classify the sentence as positive or
negative. Translate the sentence into French. Summarise the following text in a few words. The user asked
a question, the assistant gave an answer. System, user, assistant: hello, how are you? {"name": "value",
"count": 12, "list": [1, 2, 3], "flag": true}
"""


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of VOCABULARY entries with ChatML tokens; every text round-trips."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=_SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TRAINING_TEXT.splitlines(), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=CONTEXT,
    )
    fast.chat_template = _CHAT_TEMPLATE
    return fast


def make_llama(folder: Path, *, layers: int = 2, seed: int = 0) -> Path:
    """Write a float32 Llama of about 0.2M parameters to `folder` and return it."""
    return _make_decoder(LlamaConfig, folder, layers, seed)


def make_qwen2(folder: Path, *, layers: int = 2, seed: int = 0) -> Path:
    """Write a float32 Qwen2 of about 0.2M parameters to `folder` and return it."""
    return _make_decoder(Qwen2Config, folder, layers, seed)


def _make_decoder(config_class: type[PretrainedConfig], folder: Path, layers: int, seed: int) -> Path:
    """A decoder and its tokenizer.

    The weights are drawn wide (standard deviation 0.3), so that answers depend on the whole prompt and
    greedy continuations do not settle on one repeated token.
    """
    tokenizer = make_tokenizer()
    config = config_class(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        initializer_range=0.3,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):  # which are drawn as zeros
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_classifier(folder: Path, *, labels: int = 3, seed: int = 0) -> Path:
    """Write `make_llama`'s decoder with a head that tells `labels` classes apart, LABEL_0 and so on."""
    config = AutoConfig.from_pretrained(make_llama(folder, seed=seed), num_labels=labels)
    torch.manual_seed(seed)
    LlamaForSequenceClassification(config).save_pretrained(folder)
    return folder


def make_qwen2_vl(folder: Path, *, seed: int = 0) -> Path:
    """Write a float32 Qwen2-VL of under 1M parameters, with its image processor, to `folder`."""
    tokenizer = make_tokenizer()
    token_id = tokenizer.convert_tokens_to_ids
    vision = {
        "depth": 1,
        "embed_dim": 64,
        "hidden_size": 64,
        "num_heads": 2,
        "mlp_ratio": 2,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "in_channels": 3,
        "in_chans": 3,  # the name SGLang's model reads
    }
    text = {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": CONTEXT,
        "initializer_range": 0.3,
        "rope_scaling": {"type": "mrope", "rope_type": "default", "mrope_section": [2, 3, 3]},
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "tie_word_embeddings": False,
    }
    config = AutoConfig.for_model(
        "qwen2_vl",
        **text,
        vision_config=vision,
        image_token_id=token_id("<|image_pad|>"),
        video_token_id=token_id("<|video_pad|>"),
        vision_start_token_id=token_id("<|vision_start|>"),
        vision_end_token_id=token_id("<|vision_end|>"),
        vision_token_id=token_id("<|vision_pad|>"),
        dtype="float32",
    )
    torch.manual_seed(seed)
    Qwen2VLForConditionalGeneration(config).float().save_pretrained(folder)
    processor = Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(min_pixels=56 * 56, max_pixels=112 * 112),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(),
        chat_template=_CHAT_TEMPLATE,
    )
    processor.save_pretrained(folder)
    return folder
