"""LoRA of Uni-MoE in the files of PEFT."""
