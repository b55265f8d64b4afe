"""The goals that the original lab's users stated, one for each factor of the playbook."""

EIGHT_FACTORS = [
    "Compare AdamW vs. Lion optimizer on small transformer training",
    "Test learning rate warmup strategies",
    "Test gradient clipping thresholds",
    "Compare batch sizes for training stability",
    "Evaluate weight decay impact on generalization",
    "Test if reducing hidden dimension by 50% impacts final loss",
    "Measure memory savings from gradient checkpointing",
    "Test mixed precision (fp16) vs. full precision training stability",
]
