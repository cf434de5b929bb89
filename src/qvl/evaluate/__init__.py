"""How good a model is on rows with known answers: asked through the one engine, scored by named metrics."""

from qvl.evaluate.metrics import METRICS, Metric, Scoring, scoring
from qvl.evaluate.questions import Asking, Question, question_of
from qvl.evaluate.report import Prediction, Report, TaskScore
from qvl.evaluate.run import Settings, ask_questions, evaluate, read_questions

__all__ = [
    "METRICS",
    "Asking",
    "Metric",
    "Prediction",
    "Question",
    "Report",
    "Scoring",
    "Settings",
    "TaskScore",
    "ask_questions",
    "evaluate",
    "question_of",
    "read_questions",
    "scoring",
]
