"""A settings module, named by the environment variable EDDA_SETTINGS_MODULE."""

EDDA = {
    "SERVICE_NAME": "shop",
    "WORKFLOWS": ["shop"],
    "DEFAULT_RETRY_POLICY": {"max_attempts": 10, "initial_interval": 2.0, "max_interval": 120.0},
    "HOOKS": ["telemetry.Hooks"],
}
EDDA_THREADS = 8
