"""What is done with fine-tuned weights after a search: they are exported."""
