"""Which words of a question carry the answer, before and after unlearning, and what emphasising
them recovers.
"""
