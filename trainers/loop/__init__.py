"""Parts of the fine-tuning loop: state, steps, distributed training, precision, timing."""
