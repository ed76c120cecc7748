"""The drills: each tries to break one promise of the README's reliability table, in a fast or full size."""
