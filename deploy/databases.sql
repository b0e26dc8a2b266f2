-- Run by PostgreSQL at its first start, in the database of Prefect.
CREATE DATABASE mlflow OWNER onenip;
