"""What the project knows of plans, logs, hosts, engines and doses: plain Python, no Prefect."""

__version__ = "0.1.0"
