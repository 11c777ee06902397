"""Tables, sentences, plots and pages of a run. May import analysis and storage; computes no
statistic.
"""
