"""Lipsum-Tune: hyperparameter search for the robust fine-tuning of CLIP."""
