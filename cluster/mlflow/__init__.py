"""An MLflow server over a real database, for searches of several machines or people."""
