"""HTTP: one file an endpoint or a group of them. They speak to `WorkerState`, which the lifespan yields."""
