"""Measures Ragherd beside what people would use instead, all in one run: `scripts/benchmark`.

`figures` has the targets and the arithmetic, `load` sends requests, `place` starts the servers. `hits`, `misses`,
`streams` and `resources` measure, `report` writes the table and the picture. `rival_apps` has the rivals' endpoints.
"""
