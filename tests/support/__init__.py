"""Shared helpers of the tests: processes, servers, fakes, waiting."""
