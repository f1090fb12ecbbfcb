"""What tests share and that is no test: processes, servers, fakes, waiting."""
