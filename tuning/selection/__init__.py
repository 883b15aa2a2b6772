"""Which trial a rule selects once trials have ended."""
