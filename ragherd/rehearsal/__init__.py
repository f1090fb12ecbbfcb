"""What `ragherd rehearse` does on a Kubernetes cluster: objects, load, steps and report."""
