"""What is proposed, what is stopped early, and when the search ends."""
