"""What the project knows of plans, logs, hosts, engines and doses. Plain Python: nothing here imports Prefect."""

__version__ = "0.1.0"
