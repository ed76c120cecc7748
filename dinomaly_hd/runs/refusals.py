"""Answers of a scoring server that are no scores. Imports mlflow: only for a process that has it already."""

import json

from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import BAD_REQUEST, INTERNAL_ERROR


class Refusal(MlflowException):
    """One line and nothing else: the server would put the whole request before it, and a traceback behind.

    Args:
        line: What was wrong.
        fault_is_ours: Status 500 instead of 400.
    """

    def __init__(self, line: str, *, fault_is_ours: bool = False) -> None:
        super().__init__(line, error_code=INTERNAL_ERROR if fault_is_ours else BAD_REQUEST)
        self.line = line

    def serialize_as_json(self) -> str:
        """Return the answer's body; the name is MLflow's."""
        return json.dumps({"error_code": self.error_code, "message": self.line})
