"""One fine-tuning loop: its state, its steps and its clocks."""
