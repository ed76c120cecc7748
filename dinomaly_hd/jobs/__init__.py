"""Jobs: processes of their own on this machine's slots or on a Ray cluster, started again where they fail."""
