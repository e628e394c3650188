"""Shapes of what travels, without a model. Imports no torch."""

from pt_peft.exchange.tensors import TensorSpec


def lora_vpt(width: int, blocks: int, rank: int, prompts: int, classes: int) -> dict[str, TensorSpec]:
    """Returns the specs of what LoRA on the fused qkv and deep prompts exchange on a ViT, with its head.

    Args:
        width: of the ViT's tokens.
        blocks: of the ViT.
        rank: of LoRA.
        prompts: in each block; 0 for LoRA alone.
        classes: outputs of the head.
    """
    shapes: dict[str, tuple[int, ...]] = {"head.weight": (classes, width), "head.bias": (classes,)}
    for block in range(blocks):
        shapes[f"blocks.{block}.attn.qkv.lora_A"] = (rank, width)
        shapes[f"blocks.{block}.attn.qkv.lora_B"] = (3 * width, rank)
        if prompts:
            shapes[f"blocks.{block}.prompts"] = (prompts, width)
    return {key: TensorSpec(shape, "float32") for key, shape in shapes.items()}
