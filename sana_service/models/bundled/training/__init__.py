"""How the bundled pair was made: one module a concern, one command a stage (docs/bundled-model.md)."""
