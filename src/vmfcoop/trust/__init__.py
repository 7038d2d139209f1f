"""How far a prediction can be trusted: calibrated probabilities, prediction sets, outside images."""
