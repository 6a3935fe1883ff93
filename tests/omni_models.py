"""Small random omni models in the real layout: transformers' own config classes with tiny sizes, a tokenizer with the
family's special tokens, and both preprocessors, all written by `save_pretrained` into one folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>",
    "<|vision_bos|>", "<|vision_eos|>", "<|IMAGE|>", "<|VIDEO|>",
)  # fmt: skip
TEXTS = (
    "user assistant system You are a helpful assistant.",
    "The speaker says: I am so glad to see you! Based on the text, video and audio content, what is the emotion?",
    "The candidate labels for emotion are: neutral, joy, sadness, anger, surprise, fear, disgust.",
    "我 很 高兴 你 来 了 -1.0 +1.0 +0.5 0 1 2 3 4 5 6 7 8 9",
)


def tokenizer() -> Any:
    """A byte-level BPE of a few hundred tokens; digits and signs stay single, as Qwen splits them."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    splits = pre_tokenizers.Split(Regex(r"\p{N}|[+-]| ?\p{L}+|\s+|[^\s\p{L}\p{N}]"), "isolated")
    made.pre_tokenizer = pre_tokenizers.Sequence([splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def save(folder: Path, family: str = "qwen2_5_omni") -> Path:
    """A model of this family with random weights from seed 0; returns `folder`."""
    import torch
    from safetensors.torch import load_file, save_file

    words = tokenizer()
    roles = {"audio": "AUDIO", "image": "IMAGE", "video": "VIDEO"}
    for kind in ("audio", "vision"):
        roles |= {f"{kind}_start": f"{kind}_bos", f"{kind}_end": f"{kind}_eos"}
    tokens = {f"{role}_token_id": words.convert_tokens_to_ids(f"<|{name}|>") for role, name in roles.items()}
    config, model = _model(family, len(words), tokens)
    model.save_pretrained(folder)
    # As published: the whole model's config around the thinker's, "thinker." before its weights' names, and a talker.
    weights = {f"thinker.{name}": tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(weights | {"talker.weight": torch.zeros(2)}, folder / "model.safetensors", {"format": "pt"})
    words.save_pretrained(folder)
    whole = {"model_type": family, "architectures": ["Whole"], "thinker_config": config.to_dict()}
    patch = config.vision_config.patch_size
    both = {  # one flat file for frames and sound, as the families publish it
        "image_processor_type": "Qwen2VLImageProcessor", "feature_extractor_type": "WhisperFeatureExtractor",
        "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
        "min_pixels": 4 * patch * patch, "max_pixels": 12845056, "patch_size": patch, "temporal_patch_size": 2,
        "merge_size": 2, "feature_size": 16, "sampling_rate": 16000, "hop_length": 160, "n_fft": 400,
        "chunk_length": 30, "n_samples": 480000, "nb_max_frames": 3000, "padding_side": "right", "padding_value": 0.0,
        "return_attention_mask": True, "dither": 0.0,
    }  # fmt: skip
    for name, content in (("config.json", whole), ("preprocessor_config.json", both)):
        (folder / name).write_text(json.dumps(content))
    return folder


def _model(family: str, vocabulary: int, tokens: dict[str, int]) -> tuple[Any, Any]:
    """A thinker's config, and the thinker with random weights from seed 0."""
    import torch
    import transformers

    from cmpta_lib.beyond.omni_model import FAMILIES

    text = {
        "vocab_size": vocabulary, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096, "initializer_range": 0.3,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]},
    }  # fmt: skip
    vision = {
        "depth": 2, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "patch_size": 4, "out_hidden_size": 32,
        "initializer_range": 0.3,
    }  # fmt: skip
    audio = {
        "num_mel_bins": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 24, "d_model": 16,
        "output_dim": 32, "initializer_range": 0.3,
    }  # fmt: skip
    if family == "qwen2_5_omni":
        text |= {"tie_word_embeddings": False}
        vision |= {"window_size": 16, "fullatt_block_indexes": [1]}
        audio |= {"n_window": 20}
    else:
        text |= {"head_dim": 8, "moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2}
        vision |= {"num_position_embeddings": 16, "deepstack_visual_indexes": [0]}
        audio |= {"n_window": 50, "n_window_infer": 100, "downsample_hidden_size": 8}
    thinker = getattr(transformers, FAMILIES[family][0])
    sizes = {"text_config": text, "vision_config": vision, "audio_config": audio, "initializer_range": 0.3}
    config = thinker.config_class(**sizes, **tokens)
    torch.manual_seed(0)
    return config, thinker(config)


def write_recording(path: Path, seconds: float = 2.0, hz: float = 440.0, sound: bool = True, picture: bool = True) -> Path:
    """A sine at half loudness, 44.1 kHz stereo, and 10 frames a second of 64 x 48 in one colour that rises with time."""
    import av
    import numpy as np

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        audio = container.add_stream("aac" if path.suffix == ".mp4" else "pcm_s16le", rate=44_100) if sound else None
        video = container.add_stream("mpeg4", rate=10) if picture and path.suffix != ".wav" else None
        if audio is not None:
            audio.layout = "stereo"
        if video is not None:
            video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
            for number in range(round(10 * seconds)):
                image = np.full((48, 64, 3), (10 * number, 60, 200), np.uint8)
                container.mux(video.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(video.encode(None))
        if audio is not None:
            wave = 0.5 * np.sin(2 * np.pi * hz * np.arange(round(44_100 * seconds)) / 44_100)
            for start in range(0, wave.size, 1024):
                part = np.repeat((wave[start : start + 1024] * 32767).astype(np.int16), 2)[None]
                frame = av.AudioFrame.from_ndarray(part, format="s16", layout="stereo")
                frame.sample_rate, frame.pts = 44_100, start
                container.mux(audio.encode(frame))
            container.mux(audio.encode(None))
    return path
