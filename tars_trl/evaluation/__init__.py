"""Measuring a speech LLM on the same questions, aloud and in writing: accuracies, the gap, what is recovered."""
