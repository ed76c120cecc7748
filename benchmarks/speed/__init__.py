"""How fast training and scoring are: beside peers, beside the limit of the machine, and as sizes grow."""
