"""`python -m cluster.mlflow`: the MLflow server."""

from cluster.mlflow.server import main

main()
