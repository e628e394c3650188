"""LoRA and deep prompts together: the hybrid of Alkhunaizi et al. 2024."""

from pt_peft.model.method import Hybrid, register

register(
    Hybrid(
        name="lora_vpt",
        summary="lora and vpt_deep together",
        paper="Alkhunaizi et al. 2024, doi:10.1007/978-3-031-77610-6_22",
        parts=("lora", "vpt_deep"),
        learning_rate=3e-3,
        job=True,
    )
)
