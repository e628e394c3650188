"""Files of Hugging Face transformers: the same outputs as its own models'."""

import pytest
import torch
import transformers
from random_models import SIZE, load
from safetensors.torch import load_file, save_file

from pt_peft.errors import UserError

SMALL = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 192}
SMALL |= {"image_size": SIZE, "patch_size": 8}
VIT = {**SMALL, "layer_norm_eps": 1e-6}  # theirs is 1e-12, Google's own and timm's 1e-6
TEXT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 16, "vocab_size": 20}
TEXT |= {"bos_token_id": 1, "eos_token_id": 2}
DECODER = {"decoder_num_hidden_layers": 1, "decoder_hidden_size": 16, "decoder_num_attention_heads": 1}
DECODER |= {"decoder_intermediate_size": 16, "mask_ratio": 0.0}
SCALED = {"init_values": 1.0}


def pooled(outputs):
    return outputs.pooler_output


def tokens(outputs):
    return outputs.last_hidden_state


def model_of(name, **config):
    """A model of transformers of which nothing is at its start."""
    kind = getattr(transformers, name)
    made = kind(kind.config_class(**config))
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(1)
        for value in made.parameters():
            value.add_(torch.randn_like(value) * 0.1)
    return made.eval()


CASES = {
    "ViT": ("ViTForImageClassification", VIT, "vit_tiny_patch16_224", {}, tokens),
    "ViT with a pooler": ("ViTModel", VIT, "vit_tiny_patch16_224", {}, tokens),
    "MAE": ("ViTMAEForPreTraining", {**VIT, **DECODER}, "vit_tiny_patch16_224", {}, tokens),
    "BEiT": (
        "BeitModel",
        {**VIT, "use_relative_position_bias": True},
        "beit_base_patch16_224",
        {"init_values": 0.1},
        pooled,
    ),
    "DINOv2": ("Dinov2Model", SMALL, "vit_small_patch14_dinov2", SCALED, tokens),
    "DINOv2 with registers": (
        "Dinov2WithRegistersModel",
        {**SMALL, "num_register_tokens": 4},
        "vit_small_patch14_reg4_dinov2",
        SCALED,
        tokens,
    ),
    "DINOv2 giant": (
        "Dinov2ForImageClassification",
        {**SMALL, "use_swiglu_ffn": True},
        "vit_giant_patch14_dinov2",
        {**SCALED, "mlp_ratio": 256 / 48},
        tokens,
    ),
    "CLIP": (
        "CLIPModel",
        {"vision_config": SMALL, "text_config": TEXT},
        "vit_base_patch16_clip_quickgelu_224",
        {},
        pooled,
    ),
    "CLIP's tower": ("CLIPVisionModelWithProjection", SMALL, "vit_base_patch16_clip_quickgelu_224", {}, pooled),
    "SigLIP": ("SiglipVisionModel", SMALL, "vit_base_patch16_siglip_224", {"act_layer": "gelu_tanh"}, pooled),
}


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_the_same_outputs(case, tmp_path):
    theirs, config, name, kwargs, of = CASES[case]
    model = model_of(theirs, **config)
    model.save_pretrained(tmp_path)
    # Since transformers 5 the names in memory are others.
    save_file({key: value.clone() for key, value in model.state_dict().items()}, tmp_path / "memory.safetensors")
    images = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    encoder = getattr(model.base_model, "vision_model", model.base_model)
    # MAE draws an order of the patches even where it masks none.
    options = {"noise": torch.arange(16.0).expand(2, -1)} if case == "MAE" else {}
    expected = of(encoder(images, **options))
    for file in ("model", "memory"):
        loaded = load(tmp_path / f"{file}.safetensors", name, **kwargs)
        found = loaded.forward_features(images)
        if of is pooled:
            found = loaded.forward_head(found, pre_logits=True)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_what_is_wrong_is_named_as_the_file_has_it(tmp_path):
    model_of("ViTModel", **VIT).save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    path = tmp_path / "w.safetensors"
    query = "encoder.layer.0.attention.attention.query.weight"

    def refused(message, **changes):
        save_file({key: value for key, value in {**state, **changes}.items() if value is not None}, path)
        with pytest.raises(UserError, match=message):
            load(path)

    refused(rf"'{query}' has values that are not finite", **{query: state[query] * torch.nan})
    key = query.replace("query", "key")
    grouped = {query: state[query][:34], key: torch.cat([state[key], state[query][34:]])}  # together as wide as ever
    refused(
        r"do not fit one another \(\('encoder.layer.0.attention.attention.query.weight', .* have the shapes", **grouped
    )
    refused("w.safetensors: tensors do not fit one another", **{query: state[query][:, :40].clone()})
    refused(
        r"missing 1 tensor \(blocks.0.attn.qkv.weight\); left over 2 tensors \(\S+key.weight, \S+value.weight\)",
        **{query: None},
    )
    refused(r"left over 1 tensor \(encoder.layer.0.extra.weight\)", **{"encoder.layer.0.extra.weight": torch.ones(2)})


@torch.no_grad()
def test_siglip_2_with_flat_patches(tmp_path):
    """Its patches are rows of pixels, each with its three colours; timm's old flat ones are planes of a colour."""
    config = {key: value for key, value in SMALL.items() if key != "image_size"}
    model = model_of("Siglip2VisionModel", **config, num_patches=16)
    model.save_pretrained(tmp_path)
    images = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    patches = images.reshape(2, 3, 4, 8, 4, 8).permute(0, 2, 4, 3, 5, 1).reshape(2, 16, 192)
    mask, shape = torch.ones(2, 16, dtype=torch.int32), torch.tensor([[4, 4], [4, 4]])
    expected = model(pixel_values=patches, pixel_attention_mask=mask, spatial_shapes=shape).pooler_output
    loaded = load(tmp_path / "model.safetensors", "vit_base_patch16_siglip_224", act_layer="gelu_tanh")
    found = loaded.forward_head(loaded.forward_features(images), pre_logits=True)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_half_precision_and_another_image_size(tmp_path):
    """Position embeddings without a batch dimension are resampled too."""
    model = model_of("CLIPVisionModel", **{**SMALL, "image_size": 48}).half()
    save_file({key: value.clone() for key, value in model.state_dict().items()}, tmp_path / "w.safetensors")
    loaded = load(tmp_path / "w.safetensors", "vit_base_patch16_clip_quickgelu_224")
    assert loaded.pos_embed.shape == (1, 17, 48)
    assert loaded.pos_embed.dtype == torch.float32
