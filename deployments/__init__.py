"""How the project is installed, started, configured and watched: ``python3 -m deployments``."""
