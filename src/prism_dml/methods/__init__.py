"""Methods of the comparison: one class, one file each. `registry` finds them, `config` holds their settings."""
