"""Trains the verifier: the model that reads two questions and says whether one answer serves both.

Only `ragherd train-verifier` imports this package. It needs the extra `train`; the service never imports it.
"""
