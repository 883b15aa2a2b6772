"""The configuration file: schema, loading, validation and the search space."""
