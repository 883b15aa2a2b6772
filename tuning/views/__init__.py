"""What is made of the log of a search: MLflow, dashboard, tables, figures, page, progress."""
