"""The HTTP layer: one module per endpoint or group of endpoints. Endpoints read the worker's `AppState`."""
