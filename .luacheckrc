-- The scripts run inside Redis, which provides these. `python -m scripts.check_lua` runs luacheck with this file.
std = "lua51"
read_globals = {"redis", "KEYS", "ARGV", "cjson", "cmsgpack", "bit"}
max_line_length = false
