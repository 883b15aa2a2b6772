"""What follows from a journal: goal, ranking, estimates, and the conclusion in words."""
