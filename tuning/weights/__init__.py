"""What is done with fine-tuned weights after a search: exported, or averaged to a soup."""
