"""The MLflow run, the model flavour, and where a named model lies. Importing this imports no mlflow."""
