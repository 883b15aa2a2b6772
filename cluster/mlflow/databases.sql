-- Two databases of one PostgreSQL, each with a user of its own: MLflow's and Optuna's. They must not
-- share one, for both keep a table `alembic_version`.
--
--   export MLFLOW_DB_PASSWORD=... OPTUNA_DB_PASSWORD=...     # long and random, of letters and digits
--   sudo -u postgres --preserve-env=MLFLOW_DB_PASSWORD,OPTUNA_DB_PASSWORD psql < databases.sql
\set ON_ERROR_STOP on
\getenv mlflow_password MLFLOW_DB_PASSWORD
\getenv optuna_password OPTUNA_DB_PASSWORD
CREATE ROLE mlflow LOGIN PASSWORD :'mlflow_password';
CREATE ROLE optuna LOGIN PASSWORD :'optuna_password';
CREATE DATABASE mlflow OWNER mlflow;
CREATE DATABASE optuna OWNER optuna;
REVOKE CONNECT ON DATABASE mlflow, optuna FROM PUBLIC;
